from __future__ import annotations

import copy
import json
import math
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest._cases import Sent
from loadtest._reply import REST, Outcome, Slo, find_flaw, judge_reply
from loadtest._slo import (
    miss_rate_upper_bound,
    nearest_rank,
    requests_needed,
    state_confidence,
    summarise,
    summarise_windows,
)

SENT = Sent({"fact": "…", "deadline_ms": 400}, "r-1", "short")
SLO = Slo(p99_ms=400, max_miss_rate=0.01)
REPLY: dict[str, Any] = {
    "request_id": "r-1",
    "degraded": False,
    "defendants": [{"charges": []}],
    "thinking": {"tokens": 12, "allowed": 40, "stated_budget": 32, "cut": False},
    "timings_ms": {"queue": 1.0, "prefill": 20, "decode": 60.5, "total": 82.0},
    "warnings": [],
    "deadline_ms": 400,
    "notice": "for reference only",
}


def changed(**changes: Any) -> dict[str, Any]:
    reply = copy.deepcopy(REPLY)
    for name, value in changes.items():
        reply[name] = value
    return reply


def served(latency_ms: float) -> Outcome:
    return judge_reply(200, json.dumps(REPLY).encode(), latency_ms, SLO, SENT)


def test_a_good_reply_in_time_is_served() -> None:
    outcome = served(399.9)
    assert outcome.miss is None
    assert outcome.answered
    assert outcome.phases_ms.pop(REST) == pytest.approx(399.9 - 81.5)
    assert outcome.phases_ms == {"queue": 1, "prefill": 20, "decode": 60.5, "total": 82}
    assert outcome.thinking_tokens == 12


@pytest.mark.parametrize(
    ("status", "body", "latency_ms", "miss", "answered"),
    [
        (200, REPLY, 404.0, "over the SLO", True),
        (200, changed(degraded=True), 10.0, "degraded", False),
        (
            200,
            changed(degraded=True, degraded_reason="deadline", defendants=[]),
            500.0,
            "degraded: deadline",
            False,
        ),
        (503, {"error": "overload"}, 2.0, "shed (503)", False),
        (500, REPLY, 2.0, "status 500", False),
        (404, {}, 2.0, "status 404", False),
    ],
)
def test_every_kind_of_miss_has_its_reason(
    status: int, body: dict[str, Any], latency_ms: float, miss: str, answered: bool
) -> None:
    outcome = judge_reply(status, json.dumps(body).encode(), latency_ms, SLO, SENT)
    assert (outcome.miss, outcome.answered) == (miss, answered)


@pytest.mark.parametrize(
    ("reply", "flaw"),
    [
        ([], "not an object"),
        (changed(request_id=""), "request_id"),
        (changed(request_id=None), "request_id"),
        (changed(request_id="r-2"), "request_id of another request"),
        (changed(deadline_ms=None), "deadline_ms"),
        (changed(deadline_ms=800), "deadline_ms other than sent"),
        (changed(timings_ms={"queue": 10**400}), "timings_ms.queue"),
        (changed(degraded="no"), "degraded"),
        (changed(defendants=[]), "defendants"),
        (changed(defendants=["甲"]), "defendants"),
        (changed(thinking=None), "thinking.tokens"),
        (changed(thinking={"tokens": True}), "thinking.tokens"),
        (changed(thinking={"tokens": -1}), "thinking.tokens"),
        (changed(timings_ms=[]), "timings_ms"),
        (changed(timings_ms={"queue": 1, "prefill": 1, "decode": "1"}), "timings_ms.decode"),
        (
            changed(timings_ms={"queue": math.nan, "prefill": 1, "decode": 1, "total": 2}),
            "timings_ms.queue",
        ),
        (changed(warnings="none"), "warnings"),
        (changed(notice=""), "notice"),
    ],
)
def test_a_reply_of_the_wrong_shape_is_a_miss(reply: Any, flaw: str) -> None:
    assert find_flaw(reply, SENT) == flaw
    assert judge_reply(200, json.dumps(reply).encode(), 5.0, SLO, SENT).miss == f"schema: {flaw}"


def test_the_reply_the_server_declares_is_the_reply_read_here() -> None:
    from serve.api.schemas import Defendant, Law, PredictReply, Thinking, Timings
    from serve.served import Model

    verdict = Defendant(charges=None, articles=None, term=None, fine_yuan=0, ruling="…")
    reply = PredictReply(
        request_id="r-1",
        model=Model(name="micro", manifest="0" * 12, precision="fp32"),
        statute_version="s",
        law=Law(version="s", day=date(2020, 5, 1), told_by="fact"),
        kind="prosecution",
        prompt_version="p",
        defendants=[verdict],
        reasoning=None,
        thinking=Thinking(tokens=3, allowed=8, stated_budget=8, cut=False),
        degraded=False,
        degraded_reason=None,
        warnings=[],
        deadline_ms=400,
        timings_ms=Timings(queue=1, prefill=2, decode=3, total=6),
    )
    assert find_flaw(reply.model_dump(mode="json"), SENT) is None
    degraded = reply.model_copy(
        update={"defendants": [], "degraded": True, "degraded_reason": "deadline"}
    )
    outcome = judge_reply(200, degraded.model_dump_json().encode(), 5.0, SLO, SENT)
    assert outcome.miss == "degraded: deadline"


@given(st.binary(max_size=40))
def test_no_body_raises(body: bytes) -> None:
    assert judge_reply(200, body, 5.0, SLO, SENT).miss is not None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_is_a_value_that_enough_values_reach(values: list[float], q: float) -> None:
    found = nearest_rank(values, q)
    assert found in values
    assert sum(value <= found for value in values) >= q * len(values) - 1e-6
    assert sum(value < found for value in values) < q * len(values)


def test_quantiles_are_exact_and_not_bucketed() -> None:
    values = [float(v) for v in range(1, 101)]
    assert nearest_rank(values, 0.99) == 99
    assert nearest_rank(values, 0.5) == 50
    assert nearest_rank([404.4], 0.99) == 404.4


@pytest.mark.parametrize(("misses", "fewest"), [(0, 299), (4, 913), (10, 1693)])
def test_the_known_sample_sizes_prove_a_p99(misses: int, fewest: int) -> None:
    assert miss_rate_upper_bound(misses, fewest) < 0.01
    assert miss_rate_upper_bound(misses, fewest - 1) >= 0.01
    assert requests_needed(misses) == fewest


@given(st.integers(1, 2000), st.floats(0, 1))
def test_the_bound_is_where_the_binomial_tail_equals_the_doubt(requests: int, share: float) -> None:
    misses = int(share * (requests - 1))
    bound = miss_rate_upper_bound(misses, requests)
    assert misses / requests < bound <= 1
    tail = math.fsum(
        math.exp(
            math.lgamma(requests + 1)
            - math.lgamma(k + 1)
            - math.lgamma(requests - k + 1)
            + k * math.log(bound)
            + (requests - k) * math.log1p(-bound)
        )
        for k in range(misses + 1)
    )
    assert tail == pytest.approx(0.05, rel=1e-6)


def test_the_bound_at_its_ends() -> None:
    assert miss_rate_upper_bound(7, 7) == 1.0
    assert miss_rate_upper_bound(0, 10) == pytest.approx(1 - 0.05**0.1)
    with pytest.raises(ValueError, match="8 misses in 7"):
        miss_rate_upper_bound(8, 7)


def test_a_healthy_long_run_passes_and_proves_its_claim() -> None:
    report = summarise([served(100.0 + i) for i in range(299)], SLO, require_proof=True)
    assert report["verdict"] == {"passed": True, "reasons": []}
    assert report["confidence"]["proven"] is True
    assert report["latency_ms"] == {"p50": 249, "p90": 369, "p95": 384, "p99": 396, "max": 398}
    assert report["server_ms"]["prefill"] == 20
    assert report["thinking_tokens_mean"] == 12
    assert json.loads(json.dumps(report)) == report


def test_a_short_clean_run_passes_but_says_that_it_proves_little() -> None:
    outcomes = [served(50.0)] * 20
    report = summarise(outcomes, SLO, require_proof=False)
    assert report["verdict"]["passed"]
    assert not report["confidence"]["proven"]
    assert "too few requests" in report["confidence"]["statement"]
    assert "299 needed with 0 misses" in report["confidence"]["statement"]
    assert not summarise(outcomes, SLO, require_proof=True)["verdict"]["passed"]


def test_quick_refusals_do_not_lower_a_percentile() -> None:
    shed = judge_reply(503, b"", 1.0, SLO, SENT)
    report = summarise([served(300.0)] * 98 + [shed] * 2, SLO, require_proof=False)
    assert report["latency_ms"]["p95"] == 300
    assert report["latency_ms"]["p99"] is None
    assert report["latencies_ms"] == [300.0] * 98
    assert report["misses_by_reason"] == {"shed (503)": 2}
    assert not report["verdict"]["passed"]


def test_a_late_p99_fails_even_where_more_misses_are_allowed() -> None:
    lenient = Slo(p99_ms=400, max_miss_rate=0.5)
    outcomes = [served(100.0)] * 97 + [served(404.0)] * 3
    report = summarise(outcomes, lenient, require_proof=False)
    assert report["verdict"]["reasons"] == ["p99 is 404.0 ms, over 400 ms"]


@given(st.integers(1, 400), st.integers(0, 400))
def test_at_one_percent_both_rules_agree(good: int, bad: int) -> None:
    """Ranking failures last, p99 is in time exactly when at most 1% of requests miss."""
    outcomes = [served(10.0)] * good + [judge_reply(503, b"", 1.0, SLO, SENT)] * bad
    report = summarise(outcomes, SLO, require_proof=False)
    assert report["verdict"]["passed"] == (bad * 100 <= good + bad)
    assert len(report["verdict"]["reasons"]) in (0, 2)


def test_a_run_without_requests_fails() -> None:
    report = summarise([], SLO, require_proof=False)
    assert report["verdict"] == {"passed": False, "reasons": ["no request was made"]}
    assert report["latency_ms"]["p99"] is None
    assert not report["confidence"]["proven"]


def test_a_miss_rate_over_one_percent_is_not_called_too_few() -> None:
    statement = state_confidence(5, 100, SLO)["statement"]
    assert "not proven" in statement
    assert "too few" not in statement


def test_a_reply_within_the_slo_and_past_its_deadline_is_a_miss() -> None:
    hurried = Sent({"deadline_ms": 300}, "r-1", "short")
    body = json.dumps(changed(deadline_ms=300)).encode()
    assert judge_reply(200, body, 299.0, SLO, hurried).miss is None
    assert judge_reply(200, body, 301.0, SLO, hurried).miss == "past its deadline"
    assert judge_reply(200, body, 401.0, SLO, hurried).miss == "over the SLO"


def test_phases_and_the_clients_own_lateness_make_up_the_latency() -> None:
    outcome = judge_reply(200, json.dumps(REPLY).encode(), 120.0, SLO, SENT, lag_ms=7.0)
    parts = [outcome.phases_ms[name] for name in ("queue", "prefill", "decode", REST)]
    assert sum(parts) + 7.0 == pytest.approx(120.0)
    phases = summarise([outcome], SLO, require_proof=False)["phases_ms"]
    assert phases[REST]["mean"] == phases[REST]["p99"] == pytest.approx(120 - 7 - 81.5)


def test_degraded_replies_are_counted_beside_their_misses() -> None:
    degraded = judge_reply(200, json.dumps(changed(degraded=True)).encode(), 5.0, SLO, SENT)
    report = summarise([served(5.0), degraded], SLO, require_proof=False)
    assert (report["degraded"], report["misses"], len(report["latencies_ms"])) == (1, 1, 1)


def test_windows_cover_the_schedule_and_lose_nobody() -> None:
    times = (0.0, 0.5, 4.9, 5.0)
    outcomes = [Outcome(10.0 * i, None, True, at_s=at_s) for i, at_s in enumerate(times)]
    windows = summarise_windows(outcomes, 2.0)
    assert [row["from_s"] for row in windows] == [0, 2, 4]
    assert [row["requests"] for row in windows] == [2, 0, 2]
    assert windows[1]["p99"] is None
    assert windows[2]["p99"] == 30
    assert summarise_windows([], 2.0) == []


def test_an_outcome_survives_its_way_to_the_master() -> None:
    outcome = served(100.0)
    assert Outcome(**json.loads(json.dumps(outcome.to_json()))) == outcome
