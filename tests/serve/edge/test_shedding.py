"""Shedding load by what the front and the pool tell."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from serve.edge.keys import KeyFile, add_key, make_key
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


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_who_asks_little_is_let_in_beside_one_who_floods(weight: float) -> None:
    admission, let_in = AdmissionControl(), Counter[str]()
    arrivals = [(i / 600, "flood") for i in range(6_000)] + [
        (0.01 + i / 4, "calm") for i in range(40)
    ]
    for number, (now_s, client) in enumerate(sorted(arrivals)):
        admission.note_refusal(now_s)
        admission.update(now_s, busy_share=1.0)
        if number % 6 == 0:
            admission.note_answer(now_s)
        let_in[client] += not admission.sheds(now_s, client, weight if client == "flood" else 1.0)
    assert let_in["calm"] == 40
    assert let_in.total() == pytest.approx(10 * (MIN_ADMITTED_PER_S + HEADROOM * 101), rel=0.15)


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


def ask(
    limiting: bool, scopes: Sequence[Scope], keys: KeyFile | None = None
) -> tuple[list[Message], list[Scope], Metrics]:
    """All that was sent, which requests came through, and the counts."""
    sent: list[Message] = []
    through: list[Scope] = []

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        through.append(scope)

    async def receive() -> Message:
        raise AssertionError("what is shed is not read")

    async def send(message: Message) -> None:
        sent.append(message)

    metrics, admission = Metrics(), AdmissionControl()
    if limiting:
        admission.note_refusal()
        admission.update(time.monotonic(), busy_share=1.0)
    shedder = LoadShedder(inside, admission, metrics, keys)

    async def scenario() -> None:
        for scope in scopes:
            await shedder({**scope}, receive, send)

    asyncio.run(scenario())
    return sent, through, metrics


def test_a_client_whose_request_is_shed_learns_when_to_come_back() -> None:
    sent, through, metrics = ask(True, [PREDICT])
    start, body = sent
    headers = dict(start["headers"])
    assert (start["status"], through) == (503, [])
    assert headers[b"retry-after"] == b"1"
    reply = json.loads(body["body"])
    assert reply["error"]["code"] == "overloaded"
    assert reply["request_id"].encode() == headers[b"x-request-id"]
    assert metrics.registry.get_sample_value("curt_shed_total", {"reason": "front_busy"}) == 1
    assert metrics.registry.get_sample_value("curt_requests_total", {"status": "503"}) == 1


def test_clients_are_told_apart_by_valid_keys_alone(tmp_path: Path) -> None:
    made = {name: make_key(name, "predict") for name in ("flood", "calm")}
    for _, record in made.values():
        add_key(tmp_path / "keys.json", record)
    keys = {name: key.encode() for name, (key, _) in made.items()} | {"nobody": b"curt_0_0"}
    scopes = {n: {**PREDICT, "headers": [(b"x-api-key", key)]} for n, key in keys.items()}
    file = KeyFile(tmp_path / "keys.json")
    order = [scopes["nobody"]] + [scopes["flood"]] * 50 + [scopes["calm"]]
    _, through, metrics = ask(True, order, file)
    assert through[-1] == scopes["calm"]
    assert scopes["nobody"] not in through
    assert len(through) < 10
    labels = {"key": made["flood"][1].id, "outcome": "refused"}
    assert metrics.registry.get_sample_value("curt_key_cases_total", labels) > 40


def test_other_paths_are_never_shed() -> None:
    assert len(ask(True, [PREDICT] * 50)[1]) < 5
    assert len(ask(True, [{**PREDICT, "path": "/readyz"}] * 50)[1]) == 50
    assert len(ask(False, [PREDICT] * 50)[1]) == 50
