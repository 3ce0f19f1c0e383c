"""Turning requests away at the door, by what the front and the pool tell."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from serve.metrics import Metrics
from serve.pressure import BEAT_S, BUSY, LATE_S, MOST, REFUSING_S, Doorman, Pressure

PREDICT: Scope = {"type": "http", "path": "/predict", "headers": []}


def refusing() -> tuple[Pressure, float]:
    pressure = Pressure()
    pressure.note_refusal()
    return pressure, time.monotonic()


def test_a_busy_front_turns_nobody_away_while_the_pool_takes_everything() -> None:
    pressure = Pressure()
    for _ in range(100):
        pressure.beat(time.monotonic(), busy=1.0, late_s=1.0)
    assert pressure.share == 0


def test_a_front_with_time_left_turns_nobody_away_while_the_pool_refuses() -> None:
    pressure, now_s = refusing()
    for _ in range(100):
        pressure.beat(now_s, busy=BUSY / 2, late_s=LATE_S / 2)
    assert pressure.share == 0


@pytest.mark.parametrize(("busy", "late_s"), [(1.0, 0.0), (0.3, 5 * LATE_S)])
def test_a_front_that_is_behind_turns_more_and_more_away_but_never_all(
    busy: float, late_s: float
) -> None:
    pressure, now_s = refusing()
    shares = []
    for _ in range(100):
        pressure.beat(now_s, busy, late_s)
        shares.append(pressure.share)
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert shares[-1] == MOST


def test_the_door_opens_again_when_the_pool_refuses_no_more() -> None:
    pressure, now_s = refusing()
    for _ in range(100):
        pressure.beat(now_s, busy=1.0, late_s=0.0)
    for _ in range(10):
        pressure.beat(now_s + REFUSING_S, busy=1.0, late_s=1.0)
    assert pressure.share == 0


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(-1, 10)), max_size=50))
def test_the_share_is_always_one(beats: list[tuple[float, float]]) -> None:
    pressure, now_s = refusing()
    for busy, late_s in beats:
        pressure.beat(now_s, busy, late_s)
        assert 0 <= pressure.share <= MOST


def test_a_loop_that_is_blocked_is_noticed() -> None:
    async def scenario() -> float:
        pressure = Pressure()
        beating = asyncio.create_task(pressure.keep_beating())
        for _ in range(6):
            pressure.note_refusal()
            await asyncio.sleep(0)
            end_s = time.monotonic() + 2 * BEAT_S
            while time.monotonic() < end_s:
                pass
            await asyncio.sleep(0)
        beating.cancel()
        return pressure.share

    assert asyncio.run(scenario()) > 0


def ask(share: float, scope: Scope, times: int) -> tuple[list[Message], int, Metrics]:
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
    pressure.share = share
    door = Doorman(inside, pressure, metrics)

    async def scenario() -> None:
        for _ in range(times):
            await door({**scope}, receive, send)

    asyncio.run(scenario())
    return sent, through, metrics


def test_who_is_turned_away_learns_when_to_come_back() -> None:
    sent, through, metrics = ask(1.0, PREDICT, 1)
    start, body = sent
    headers = dict(start["headers"])
    assert (start["status"], through) == (503, 0)
    assert headers[b"retry-after"] == b"1"
    reply = json.loads(body["body"])
    assert reply["error"]["code"] == "overloaded"
    assert reply["request_id"].encode() == headers[b"x-request-id"]
    assert metrics.registry.get_sample_value("curt_shed_total", {"reason": "front_busy"}) == 1
    assert metrics.registry.get_sample_value("curt_requests_total", {"status": "503"}) == 1


def test_the_share_is_kept_and_other_addresses_stay_open() -> None:
    _, through, _ = ask(0.8, PREDICT, 1000)
    assert 120 < through < 280
    assert ask(0.95, {**PREDICT, "path": "/readyz"}, 50)[1] == 50
    assert ask(0.0, PREDICT, 50)[1] == 50
