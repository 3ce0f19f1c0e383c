"""The fleet in virtual time: does it queue, shorten, refuse and size as it should."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.client import Exchange, arrivals_for
from benchmarks.fleet import size
from benchmarks.fleet.service import Sample, Service, fit_service, read_samples
from benchmarks.fleet.simulation import Fleet, simulate, summarise
from benchmarks.fleet.size import SizeConfig, find_size, try_fleet
from benchmarks.fleet.validate import compare
from curt.config import run as run_command
from loadtest._http import Got

SIZING = SizeConfig(requests=800, cell=4)


def make_sample(chars: int = 100, tokens: int = 20, answer_ms: float = 5.0) -> Sample:
    """10 ms of prefill, 5 of answer and 0.5 a token: 25 ms in a worker, 28 in all."""
    return Sample(
        chars=chars,
        thinking_tokens=tokens,
        prefill_ms=0.1 * chars,
        decode_ms=answer_ms + 0.5 * tokens,
        outside_ms=3.0,
    )


def make_service(*samples: Sample) -> Service:
    return Service(
        answer_ms=5.0,
        token_ms=0.5,
        max_thinking_tokens=128,
        samples=samples or (make_sample(),),
    )


def run(service: Service, fleet: Fleet, rate: float, seconds: float = 20.0) -> dict[str, Any]:
    requests, busy = simulate(service, fleet, arrivals_for(rate, 3, seconds), seed=3)
    return summarise(requests, seconds, busy)


def reply(index: int, due_s: float, tokens: int, **changes: Any) -> Exchange:
    """2 ms in the queue, 10 of prefill, 5 of answer, 0.5 a token, 3 outside the worker."""
    timings = {"queue": 2.0, "prefill": 10.0, "decode": 5 + 0.5 * tokens}
    answer = {
        "degraded_reason": None,
        "thinking": {"tokens": tokens, "cut": False},
        "timings_ms": timings,
        **changes,
    }
    done_s = due_s + (sum(timings.values()) + 3.0) / 1e3
    return Exchange(index, due_s, due_s, done_s, Got(200, json.dumps(answer).encode()))


def test_a_request_alone_takes_the_sum_of_its_parts() -> None:
    (request,), _ = simulate(make_service(), Fleet(1), [0.5])
    assert request.how == "answered"
    assert request.latency_ms == pytest.approx(28.0)
    assert request.allowed >= 20


def test_two_at_once_share_a_worker_by_turns_and_two_servers_not_at_all() -> None:
    one, _ = simulate(make_service(), Fleet(1), [0.5, 0.5])
    two, _ = simulate(make_service(), Fleet(2), [0.5, 0.5])
    assert sorted(each.latency_ms for each in one) == pytest.approx([28.0, 53.0])
    assert [each.latency_ms for each in two] == pytest.approx([28.0, 28.0])


def test_under_load_thinking_is_shortened_before_anyone_is_refused() -> None:
    service = make_service(make_sample(tokens=60))
    calm, busy = (run(service, Fleet(1), rate) for rate in (4.0, 32.0))
    assert calm["uncut_share"] == 1.0
    assert busy["uncut_share"] < 0.5
    assert busy["answered_share"] > 0.99


def test_beyond_capacity_it_refuses_or_degrades_and_still_answers_at_its_capacity() -> None:
    with_classifier = run(make_service(), Fleet(1), 200.0)
    without = run(make_service(), Fleet(1, fallback=False), 200.0)
    assert "refused" not in with_classifier["how"]
    assert set(without["how"]) == {"answered", "refused"}
    # 15 ms of a worker without thinking: 66 a second at most.
    assert 50 < without["goodput_per_s"] < 70
    assert with_classifier["latency_ms"]["p99"] < 400


def test_a_deadline_that_no_request_can_meet_is_refused_at_once() -> None:
    row = run(make_service(), Fleet(1, fallback=False, deadline_ms=20.0), 5.0)
    assert row["how"] == {"refused": row["arrived"]}
    assert row["latency_ms"]["max"] < 5


def test_a_run_repeats_with_its_seed() -> None:
    service = make_service(*(make_sample(chars) for chars in (60, 100, 200)))
    first, second, other = (
        [each.latency_ms for each in simulate(service, Fleet(2), [0.1, 0.11, 0.12, 0.13], n)[0]]
        for n in (1, 1, 5)
    )
    assert first == second != other


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.floats(1, 150),
    st.booleans(),
    st.integers(30, 800),
    st.integers(0, 2**16),
)
def test_every_request_ends_once_and_none_before_it_came(
    replicas: int, workers: int, rate: float, fallback: bool, deadline_ms: int, seed: int
) -> None:
    service = make_service(*(make_sample(chars) for chars in (40, 100, 400)))
    fleet = Fleet(replicas, workers, fallback, float(deadline_ms))
    arrivals_s = list(arrivals_for(rate, seed, 2.0))
    requests, busy = simulate(service, fleet, arrivals_s, seed)
    assert [each.at_s for each in requests] == pytest.approx(arrivals_s)
    assert all(each.how and each.latency_ms > 0 for each in requests)
    assert 0 <= busy <= 1.0001
    # The server's own promise: a reply by the deadline, and the way to and from it.
    assert all(each.latency_ms <= deadline_ms + 10 for each in requests)


def test_nothing_that_arrived_has_no_summary() -> None:
    with pytest.raises(ValueError, match="simulate longer"):
        summarise([], 1.0, 0.0)


def test_more_servers_are_needed_for_more_arrivals_and_each_size_meets_the_target() -> None:
    sizes = [find_size(SIZING, make_service(), rate) for rate in (1.0, 100.0, 1_000.0)]
    assert all(row["met"] for row in sizes)
    assert sizes[0]["replicas"] == 1
    # 25 ms a request, 15 without thinking: 40 a second, or a little more with some cut short.
    assert 100 / 45 <= sizes[1]["replicas"] <= 6
    assert 1_000 / 45 <= sizes[2]["replicas"] <= 50
    one_less = try_fleet(SIZING, make_service(), sizes[2]["replicas"] - 1, 1_000.0)
    assert not one_less["met"]


def test_a_model_too_slow_for_the_deadline_has_no_size() -> None:
    with pytest.raises(ValueError, match="quicker machine"):
        find_size(SIZING, make_service(make_sample(answer_ms=500.0)), 1.0)


def test_a_trial_of_a_large_fleet_says_how_much_of_it_was_simulated() -> None:
    row = try_fleet(SIZING, make_service(), 400, 10_000.0)
    assert (row["replicas"], row["simulated_replicas"]) == (400, 4)
    assert row["arrived"] == pytest.approx(SIZING.requests, rel=0.1)


def test_the_line_that_made_the_replies_is_found_again_in_spite_of_stalls() -> None:
    source = random.Random(4)
    tokens = [source.randint(8, 40) for _ in range(200)]
    samples = [
        make_sample(tokens=each, answer_ms=5 if n % 20 else 80) for n, each in enumerate(tokens)
    ]
    service = fit_service(samples, 128)
    assert service.token_ms == pytest.approx(0.5, rel=0.05)
    assert service.answer_ms == pytest.approx(5, rel=0.05)
    assert Service.model_validate_json(service.model_dump_json()) == service


def test_too_little_to_fit_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="measure 20 or more"):
        fit_service([make_sample()] * 5, 128)
    with pytest.raises(ValueError, match="more cases"):
        fit_service([make_sample()] * 40, 128)


def test_only_whole_answers_of_the_model_teach() -> None:
    exchanges = [
        reply(0, 0.0, 20),
        reply(1, 1.0, 20, degraded_reason="deadline"),
        reply(2, 2.0, 20, degraded_reason="unreadable_answer"),
        reply(3, 3.0, 20, thinking={"tokens": 20, "cut": True}),
        Exchange(4, 4.0, 4.0, 4.1, Got(503)),
    ]
    samples = read_samples(exchanges, ["a" * 50, "b" * 60])
    assert [each.chars for each in samples] == [50, 50]
    assert samples[0].outside_ms == pytest.approx(3.0)


def test_the_simulation_of_what_made_the_replies_is_close_to_them() -> None:
    source = random.Random(2)
    replies = [reply(n, 0.1 * n, source.choice([10, 20, 30])) for n in range(300)]
    service = fit_service(read_samples(replies, ["a" * 100]), 128)
    row = compare(service, Fleet(2), 10.0, replies, 3)
    assert row["requests"] == 300
    assert abs(row["error"]["p50"]) < 0.1
    assert abs(row["error"]["p99"]) < 0.1
    assert row["answered_share"] == {"real": 1.0, "simulated": 1.0}


def test_the_command_sizes_a_fleet_from_a_fit(tmp_path: Path) -> None:
    service, report = tmp_path / "service.json", tmp_path / "sizes.json"
    service.write_text(make_service().model_dump_json())
    command = ["--service", str(service), "--report", str(report)]
    command += ["--rates", "[1, 300]", "--requests", "300", "--cell", "2"]
    run_command(SizeConfig, size.work, command)
    small, large = json.loads(report.read_text())["sizes"]
    assert small["replicas"] == 1 < large["replicas"]


def test_a_fit_that_is_not_there_or_none_ends_the_command_with_a_message(tmp_path: Path) -> None:
    for text, message in ((None, "No such file"), ("{}", "holds no service times")):
        service = tmp_path / "service.json"
        if text is not None:
            service.write_text(text)
        with pytest.raises(SystemExit) as stopped:
            run_command(SizeConfig, size.work, ["--service", str(service)])
        assert message in str(stopped.value)
