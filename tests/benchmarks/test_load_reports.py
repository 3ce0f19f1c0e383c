"""What rates and survival make of exchanges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from typing import Any

import pytest

from benchmarks.client import Exchange, exact_share
from benchmarks.load import rates, survival
from benchmarks.pictures import draw_rates
from curt.artifact import Manifest
from curt.dialogue import render_answer
from curt.engines.protocol import Generation, Request
from curt.law.verdict import Term, Verdict
from loadtest._http import Failure, Got
from serve.api.reply import build_defendant
from serve.api.schemas import ALL_TASKS
from tests.benchmarks.fake_server import answer
from tests.serve.fake_engine import MANIFEST

THEFT = Verdict(("盗窃",), ("264",), Term("fixed", 8), 2000)
FULL = json.loads(build_defendant(THEFT, ALL_TASKS).model_dump_json())
DEGRADED = {"degraded": True, "degraded_reason": "deadline", "defendants": []}


def exchange(
    body: dict[str, Any] | None = None,
    *,
    status: int = 200,
    failure: Failure = "",
    ms: float = 30.0,
    sent_s: float = 10.0,
    index: int = 0,
) -> Exchange:
    data = json.dumps(answer() if body is None else body).encode()
    got = Got(failure=failure) if failure else Got(status, data)
    return Exchange(index, sent_s - 0.001, sent_s, sent_s + ms / 1e3, got)


MISSES = {
    "": exchange(),
    "lost": exchange(failure="silence"),
    "refused": exchange(status=503),
    "error": exchange(status=500),
    "degraded: deadline": exchange(answer(**DEGRADED)),
    "late": exchange(ms=399.5),  # within the deadline of its sending, not of its due time
}


@pytest.mark.parametrize("reason", MISSES)
def test_each_kind_of_miss(reason: str) -> None:
    assert rates.why_missed(MISSES[reason], 400) == reason


def test_a_rate_counts_every_arrival_once() -> None:
    row = rates.summarise(list(MISSES.values()), [THEFT], 400, 2.0)
    misses = dict(row["misses"])
    assert (row["arrived"], row["good"], misses.pop("all")) == (6, 1, 5)
    assert sum(misses.values()) == 5
    assert row["goodput_per_s"] == 0.5
    assert row["refusal_ms"]["max"] == pytest.approx(30)
    assert row["later_than_deadline_ms"]["max"] == pytest.approx(-0.5)
    assert row["latency_ms"]["max"] == pytest.approx(400.5)
    assert row["thinking_allowed"]["p50"] == 128
    assert row["exact_share"] == pytest.approx(2 / 6)  # late ones are right too


def test_each_request_is_held_against_the_case_it_asked() -> None:
    other = Verdict(("盗窃",), ("264",), Term("fixed", 9), 2000)
    rows = [exchange(index=n) for n in range(3)]
    assert exact_share(rows, [THEFT, other]) == pytest.approx(2 / 3)
    assert exact_share([], [THEFT]) is None


def test_a_picture_of_rates_and_deadlines_is_drawn() -> None:
    row = rates.summarise(list(MISSES.values()), [THEFT], 400, 2.0)
    row |= {"rate_per_s": 8.0, "deadline_ms": 400}
    silent = row | {"answer_ms": {}}  # nobody was answered
    results = {"deadline_ms": 400, "rates": [row, silent], "deadlines": []}
    assert draw_rates(results).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("got", "fate"),
    [
        (exchange(), "answered"),
        (exchange(answer(**DEGRADED)), "degraded"),
        (exchange(status=503), "refused"),
        (exchange(status=500), "error"),
        (exchange(failure="not_connected"), "not_accepted"),
        (exchange(failure="not_sent"), "closed_before_sending"),
        (exchange(failure="cut_off"), "lost"),
        (exchange(failure="silence"), "lost"),
        (exchange(failure="unreadable"), "lost"),
    ],
)
def test_what_became_of_a_request(got: Exchange, fate: str) -> None:
    assert survival.fate(got) == fate


def test_requests_are_told_apart_by_where_the_signal_fell() -> None:
    rows = [
        exchange(sent_s=9.0),
        exchange(sent_s=9.99),
        exchange(sent_s=10.001),  # before the server was unready
        exchange(status=503, sent_s=10.1),
        exchange(failure="cut_off", sent_s=10.9),
        exchange(failure="not_connected", sent_s=12.0),
    ]
    row = survival.judge_stop(rows, {"told": 10.0, "unready": 10.005, "ended": 11.5})
    assert row["before"] == {"answered": 1}
    assert row["under_way_at_signal"] == {"answered": 1}
    assert row["after"] == {"answered": 1, "refused": 1, "lost": 1, "not_accepted": 1}
    assert (row["lost"], row["served_once_unready"]) == (1, 0)
    assert (row["unready_after_ms"], row["ended_after_ms"]) == (5.0, 1500.0)


def test_a_kill_is_over_when_the_next_worker_is_ready() -> None:
    log = [
        {"message": "worker 7 ready", "at_s": 1.0},
        {"message": "a worker ended: exit code -9", "at_s": 5.01},
        {"message": "worker 8 ready", "at_s": 5.03},
        {"message": "worker 9 loaded in 0.6 s", "at_s": 5.6},
    ]
    assert survival.recoveries(log, [5.0, 10.0], " ready") == (pytest.approx([30]), 1)
    assert survival.recoveries(log, [5.0], " loaded in ") == (pytest.approx([600]), 0)


class Recital:
    """An engine that always says the same."""

    name = "recital"
    manifest: Manifest = MANIFEST

    def __init__(self, verdict: Verdict) -> None:
        self.asked: list[Request] = []
        self._text = f"数额较大</think>{render_answer(verdict)}"

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        self.asked += requests
        return [Generation(self._text, 90, 21, 20, False, "stop", 5.0, 9.0) for _ in requests]


def test_answers_are_compared_word_for_word_under_their_own_limits() -> None:
    engine = Recital(THEFT)
    same = exchange(answer(defendants=[FULL]), index=2)
    term = FULL["term"] | {"months": 9}
    other = exchange(answer(defendants=[FULL | {"term": term}]), index=3)
    thought = exchange(answer(defendants=[FULL], reasoning="数额巨大"), index=5)
    ruled = exchange(answer(defendants=[{}], reasoning=None, source="overruled"), index=7)
    wrong = survival.find_wrong(engine, ["甲", "乙"], [same, other, thought, ruled])
    assert wrong == [
        {"arrival": 3, "differ": ["defendants"]},
        {"arrival": 5, "differ": ["reasoning"]},
    ]
    assert engine.asked == [Request("甲", 128, 128), Request("乙", 128, 128)]


def test_a_verdict_is_held_against_the_law_that_its_reply_names() -> None:
    bribe = Verdict(("受贿",), ("385",), Term("fixed", 70))
    then, now = (
        json.loads(build_defendant(bribe, ALL_TASKS, day).model_dump_json())
        for day in (date(2010, 5, 1), None)
    )
    law = {"version": "criminal-law-amendment-7", "day": "2010-05-01", "told_by": "fact"}
    told = [
        exchange(answer(defendants=[each], law=law), index=i) for i, each in enumerate((then, now))
    ]
    wrong = survival.find_wrong(Recital(bribe), ["甲", "乙"], told)
    assert wrong == [{"arrival": 1, "differ": ["defendants"]}]
