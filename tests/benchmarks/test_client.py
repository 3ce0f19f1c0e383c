"""The client against servers that answer, stall, cut off and refuse."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from benchmarks.client import (
    arrivals_for,
    read_verdict,
    send_in_turn,
    send_on_time,
    write_body,
)
from curt.dialogue import ParseFailure
from curt.law.verdict import Term, Verdict
from curt.scores.metrics import is_exact
from loadtest._http import HttpClient
from serve.api.reply import build_defendant
from serve.api.schemas import ALL_TASKS
from tests.benchmarks.fake_server import answer, http, serving

# The stand-in server's streams end with the loop.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def test_every_arrival_is_sent_when_due_though_the_first_never_ends() -> None:
    async def scenario() -> list[Any]:
        def reply(body: dict[str, Any]) -> bytes:
            stalled = body["fact"] == "0"
            return b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" if stalled else http(answer())

        async with serving(reply) as url:
            client = HttpClient(url, 0.4)
            return await send_on_time(
                client, [0.0, 0.05, 0.1], lambda index: write_body(str(index), 400)
            )

    stalled, *others = run(scenario())
    assert (stalled.index, stalled.got.failure) == (0, "silence")
    assert stalled.answer == {}
    for exchange in others:
        assert exchange.got.status == 200
        assert exchange.done_s < stalled.done_s
        assert exchange.latency_ms == pytest.approx(exchange.lag_ms + exchange.service_ms)


def test_arrivals_end_in_time_and_repeat_with_their_seed() -> None:
    offsets = list(arrivals_for(50, 3, 2.0))
    assert offsets == list(arrivals_for(50, 3, 2.0))
    assert 0 < offsets[0] < offsets[-1] < 2.0
    assert next(arrivals_for(50, 4, 2.0)) != offsets[0]


BODIES = [str(i).encode() for i in range(60)]


def test_every_request_gets_its_own_reply_or_the_run_ends_early() -> None:
    async def scenario() -> None:
        async with serving(lambda body: http({"said": body})) as url:
            client = HttpClient(url)
            offsets_s = [index / 200 for index in range(60)]
            exchanges = await send_on_time(client, offsets_s, BODIES.__getitem__)
            assert [e.answer["said"] for e in exchanges] == list(range(60))
            in_turn = await send_in_turn(client, BODIES[:10], 3)
            assert [(e.index, e.answer["said"]) for e in in_turn] == [(n, n) for n in range(10)]
            assert all(e.lag_ms == 0 for e in in_turn)
            few = await send_on_time(
                client, offsets_s, BODIES.__getitem__, lambda seen: len(seen) > 3
            )
            assert 3 < len(few) < 60

    run(scenario())


def test_a_verdict_is_read_back_from_its_reply() -> None:
    theft = Verdict(("盗窃",), ("264",), Term("fixed", 8), 2000)
    assert read_verdict(answer()) == theft
    assert read_verdict({}) == ParseFailure("no verdict")
    suspended = Verdict(("盗窃", "诈骗"), ("264", "266"), Term("fixed", 30, 36))
    told = build_defendant(suspended, ALL_TASKS).model_dump()
    told["fine_yuan"] = None  # as a classifier's
    read = read_verdict({"defendants": [told]})
    assert isinstance(read, Verdict)
    assert is_exact(read, suspended)
