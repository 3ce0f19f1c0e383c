"""The open-loop client against servers that answer, stall, cut off and refuse."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from itertools import islice
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.client import (
    Client,
    Got,
    arrivals_for,
    fill_up,
    read_address,
    send_on_time,
    write_body,
)
from tests.benchmarks.fake_server import answer, http, serving
from tests.micro import FACTS

# The stand-in server's streams end with the loop.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


async def ask(reply: bytes | None, patience_s: float = 2.0) -> Got:
    async with serving(lambda _: reply) as url:
        client = Client(*read_address(url), patience_s)
        got = await client.exchange(write_body(FACTS[0], 400))
        client.close()
        return got


def test_a_whole_reply_is_read() -> None:
    got = run(ask(http(answer())))
    assert (got.status, got.failure) == (200, "")


@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        (None, "cut_off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", "silence"),
        (b"220 ready\r\n\r\n", "unreadable"),
    ],
)
def test_a_reply_that_is_not_whole_is_told_by_its_failure(
    reply: bytes | None, failure: str
) -> None:
    got = run(ask(reply, patience_s=0.2))
    assert (got.status, got.failure) == (0, failure)


def test_a_port_nobody_listens_on_is_no_connection() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert run(Client("127.0.0.1", port, 1).exchange(b"{}")).failure == "not_connected"


def test_a_kept_connection_that_was_closed_meanwhile_is_not_used() -> None:
    async def scenario() -> tuple[Got, int]:
        replies = iter([http({}), None, http({})])
        async with serving(lambda _: next(replies)) as url:
            client = Client(*read_address(url), 2)
            await client.exchange(b"{}")
            await client.exchange(b"{}")  # the server closes after reading it
            got = await client.exchange(b"{}")
            client.close()
            return got, client.opened

    got, opened = run(scenario())
    assert (got.status, opened) == (200, 2)


def test_every_arrival_is_sent_when_due_though_the_first_never_ends() -> None:
    async def scenario() -> list[Any]:
        def reply(body: dict[str, Any]) -> bytes:
            stalled = body["fact"] == "0"
            return b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" if stalled else http(answer())

        async with serving(reply) as url:
            client = Client(*read_address(url), 0.4)
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
    assert list(islice(arrivals_for(50, 4, 2.0), 1)) != offsets[:1]


@given(st.text(min_size=1, max_size=50), st.integers(1, 200))
def test_a_filled_up_fact_has_the_length_and_the_whole_fact(fact: str, chars: int) -> None:
    filled = fill_up(fact, chars)
    assert len(filled) == chars
    assert filled.endswith(fact) if chars >= len(fact) else fact.startswith(filled)


def test_only_plain_http_is_an_address() -> None:
    assert read_address("http://127.0.0.1:8140") == ("127.0.0.1", 8140)
    with pytest.raises(ValueError, match="http://host:port"):
        read_address("https://127.0.0.1:8140")
