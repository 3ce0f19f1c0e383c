"""Shedding load by what the front and the pool tell."""

from __future__ import annotations

import asyncio
import json
import time

from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from serve.edge.shedding import (
    BUSY_SHARE,
    CHECK_INTERVAL_S,
    HEADROOM,
    MIN_ADMITTED_PER_S,
    WINDOW_S,
    AdmissionControl,
    LoadShedder,
)
from serve.metrics import Metrics

PREDICT: Scope = {"type": "http", "path": "/predict", "headers": []}


def admitted(
    admission: AdmissionControl, per_s: int, seconds: float, answered_per_s: float = 0.0
) -> int:
    """How many of regular arrivals are admitted while the pool refuses and the front is busy."""
    count = owed = 0.0
    for i in range(int(per_s * seconds)):
        now_s = i / per_s
        admission.note_refusal(now_s)
        admission.update(now_s, busy_share=1.0)
        owed += answered_per_s / per_s
        while owed >= 1:
            admission.note_answer(now_s)
            owed -= 1
        count += not admission.sheds(now_s)
    return int(count)


def test_a_busy_front_sheds_nothing_while_the_pool_takes_everything() -> None:
    admission = AdmissionControl()
    for i in range(100):
        admission.update(i * CHECK_INTERVAL_S, busy_share=1.0)
        assert not admission.sheds(i * CHECK_INTERVAL_S)


def test_a_front_with_time_left_sheds_nothing_while_the_pool_refuses() -> None:
    admission = AdmissionControl()
    for i in range(100):
        admission.note_refusal(i * CHECK_INTERVAL_S)
        admission.update(i * CHECK_INTERVAL_S, busy_share=BUSY_SHARE / 2)
        assert not admission.sheds(i * CHECK_INTERVAL_S)


def test_somewhat_more_are_admitted_than_are_answered() -> None:
    count = admitted(AdmissionControl(), per_s=600, seconds=10, answered_per_s=100)
    expected = 10 * (MIN_ADMITTED_PER_S + HEADROOM * 100)
    assert 0.85 * expected < count < 1.05 * expected


def test_some_are_admitted_where_nothing_is_answered() -> None:
    count = admitted(AdmissionControl(), per_s=600, seconds=10)
    assert 0.9 * 10 * MIN_ADMITTED_PER_S < count < 1.1 * 10 * MIN_ADMITTED_PER_S


def test_limiting_ends_when_the_pool_refuses_no_more() -> None:
    admission = AdmissionControl()
    admitted(admission, per_s=600, seconds=2)
    assert admission.is_limiting
    admission.update(2 + WINDOW_S, busy_share=1.0)
    assert not admission.sheds(2 + WINDOW_S)


def test_limiting_ends_when_fewer_arrive_than_are_admitted() -> None:
    admission = AdmissionControl()
    admitted(admission, per_s=600, seconds=2)
    for i in range(int(2 * WINDOW_S / CHECK_INTERVAL_S)):
        now_s = 2 + i * CHECK_INTERVAL_S
        admission.note_refusal(now_s)
        admission.update(now_s, busy_share=BUSY_SHARE / 2)
    assert not admission.is_limiting


@given(st.lists(st.floats(0.0001, 0.1), max_size=200), st.integers(0, 50))
def test_no_more_than_the_rate_and_a_burst_are_ever_admitted(
    gaps: list[float], answers: int
) -> None:
    admission = AdmissionControl()
    for _ in range(answers):
        admission.note_answer(0.0)
    admission.note_refusal(0.0)
    admission.update(0.0, busy_share=1.0)
    most_per_s, now_s, count = admission.rate_per_s(0.0), 0.0, 0
    for gap in gaps:
        now_s += gap
        count += not admission.sheds(now_s)
    assert count <= most_per_s * now_s + 1e-6


def test_a_loop_that_works_without_a_pause_is_noticed() -> None:
    async def scenario() -> bool:
        admission = AdmissionControl()
        updating = asyncio.create_task(admission.keep_updating())
        for _ in range(4):
            admission.note_refusal()
            end_s = time.thread_time() + 2 * CHECK_INTERVAL_S
            while time.thread_time() < end_s:
                pass
            await asyncio.sleep(0.001)
        updating.cancel()
        return admission.is_limiting

    assert asyncio.run(scenario())


def ask(limiting: bool, scope: Scope, times: int) -> tuple[list[Message], int, Metrics]:
    """All that was sent, how many requests came through, and the counts."""
    sent: list[Message] = []
    through = 0

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal through
        through += 1

    async def receive() -> Message:
        raise AssertionError("what is shed is not read")

    async def send(message: Message) -> None:
        sent.append(message)

    metrics, admission = Metrics(), AdmissionControl()
    if limiting:
        admission.note_refusal()
        admission.update(time.monotonic(), busy_share=1.0)
    shedder = LoadShedder(inside, admission, metrics)

    async def scenario() -> None:
        for _ in range(times):
            await shedder({**scope}, receive, send)

    asyncio.run(scenario())
    return sent, through, metrics


def test_a_client_whose_request_is_shed_learns_when_to_come_back() -> None:
    sent, through, metrics = ask(True, PREDICT, 1)
    start, body = sent
    headers = dict(start["headers"])
    assert (start["status"], through) == (503, 0)
    assert headers[b"retry-after"] == b"1"
    reply = json.loads(body["body"])
    assert reply["error"]["code"] == "overloaded"
    assert reply["request_id"].encode() == headers[b"x-request-id"]
    assert metrics.registry.get_sample_value("curt_shed_total", {"reason": "front_busy"}) == 1
    assert metrics.registry.get_sample_value("curt_requests_total", {"status": "503"}) == 1


def test_other_paths_are_never_shed() -> None:
    assert ask(True, PREDICT, 50)[1] < 5
    assert ask(True, {**PREDICT, "path": "/readyz"}, 50)[1] == 50
    assert ask(False, PREDICT, 50)[1] == 50
