"""Turning requests away at the door, by what the front and the pool tell."""

from __future__ import annotations

import asyncio
import json
import time

from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from serve.edge.shedding import BEAT_S, BUSY, LEAST_PER_S, MEMORY_S, MORE, Doorman, Pressure
from serve.metrics import Metrics

PREDICT: Scope = {"type": "http", "path": "/predict", "headers": []}


def let_in(pressure: Pressure, per_s: int, seconds: float, answered_per_s: float = 0.0) -> int:
    """How many of regular arrivals come in while the pool refuses and the front is busy."""
    came_in = owed = 0.0
    for i in range(int(per_s * seconds)):
        now_s = i / per_s
        pressure.note_refusal(now_s)
        pressure.beat(now_s, busy=1.0)
        owed += answered_per_s / per_s
        while owed >= 1:
            pressure.note_answer(now_s)
            owed -= 1
        came_in += not pressure.turns_away(now_s)
    return int(came_in)


def test_a_busy_front_turns_nobody_away_while_the_pool_takes_everything() -> None:
    pressure = Pressure()
    for i in range(100):
        pressure.beat(i * BEAT_S, busy=1.0)
        assert not pressure.turns_away(i * BEAT_S)


def test_a_front_with_time_left_turns_nobody_away_while_the_pool_refuses() -> None:
    pressure = Pressure()
    for i in range(100):
        pressure.note_refusal(i * BEAT_S)
        pressure.beat(i * BEAT_S, busy=BUSY / 2)
        assert not pressure.turns_away(i * BEAT_S)


def test_somewhat_more_come_in_than_are_answered() -> None:
    came_in = let_in(Pressure(), per_s=600, seconds=10, answered_per_s=100)
    expected = 10 * (LEAST_PER_S + MORE * 100)
    assert 0.85 * expected < came_in < 1.05 * expected


def test_some_come_in_where_nothing_is_answered() -> None:
    came_in = let_in(Pressure(), per_s=600, seconds=10)
    assert 0.9 * 10 * LEAST_PER_S < came_in < 1.1 * 10 * LEAST_PER_S


def test_the_door_opens_when_the_pool_refuses_no_more() -> None:
    pressure = Pressure()
    let_in(pressure, per_s=600, seconds=2)
    assert pressure.watched
    pressure.beat(2 + MEMORY_S, busy=1.0)
    assert not pressure.turns_away(2 + MEMORY_S)


def test_the_door_opens_when_fewer_arrive_than_may_come_in() -> None:
    pressure = Pressure()
    let_in(pressure, per_s=600, seconds=2)
    for i in range(int(2 * MEMORY_S / BEAT_S)):
        now_s = 2 + i * BEAT_S
        pressure.note_refusal(now_s)
        pressure.beat(now_s, busy=BUSY / 2)
    assert not pressure.watched


@given(st.lists(st.floats(0.0001, 0.1), max_size=200), st.integers(0, 50))
def test_no_more_than_the_rate_and_a_burst_ever_come_in(gaps: list[float], answers: int) -> None:
    pressure = Pressure()
    for _ in range(answers):
        pressure.note_answer(0.0)
    pressure.note_refusal(0.0)
    pressure.beat(0.0, busy=1.0)
    most_per_s, now_s, came_in = pressure.rate_per_s(0.0), 0.0, 0
    for gap in gaps:
        now_s += gap
        came_in += not pressure.turns_away(now_s)
    assert came_in <= most_per_s * now_s + 1e-6


def test_a_loop_that_works_without_a_pause_is_noticed() -> None:
    async def scenario() -> bool:
        pressure = Pressure()
        beating = asyncio.create_task(pressure.keep_beating())
        for _ in range(4):
            pressure.note_refusal()
            end_s = time.thread_time() + 2 * BEAT_S
            while time.thread_time() < end_s:
                pass
            await asyncio.sleep(0.001)
        beating.cancel()
        return pressure.watched

    assert asyncio.run(scenario())


def ask(watched: bool, scope: Scope, times: int) -> tuple[list[Message], int, Metrics]:
    """All that was sent, how many requests came through, and the counts."""
    sent: list[Message] = []
    through = 0

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal through
        through += 1

    async def receive() -> Message:
        raise AssertionError("who is turned away is not read")

    async def send(message: Message) -> None:
        sent.append(message)

    metrics, pressure = Metrics(), Pressure()
    if watched:
        pressure.note_refusal()
        pressure.beat(time.monotonic(), busy=1.0)
    door = Doorman(inside, pressure, metrics)

    async def scenario() -> None:
        for _ in range(times):
            await door({**scope}, receive, send)

    asyncio.run(scenario())
    return sent, through, metrics


def test_who_is_turned_away_learns_when_to_come_back() -> None:
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


def test_other_addresses_stay_open() -> None:
    assert ask(True, PREDICT, 50)[1] < 5
    assert ask(True, {**PREDICT, "path": "/readyz"}, 50)[1] == 50
    assert ask(False, PREDICT, 50)[1] == 50
