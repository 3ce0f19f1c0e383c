"""The client against servers that answer, stall, cut off and are not there."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from loadtest._http import Got, HttpClient, wait_until_ready
from tests.benchmarks.fake_server import answer, http, serving

# The stand-in server's streams end with the loop.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


async def ask(reply: bytes | None, patience_s: float = 2.0) -> Got:
    async with serving(lambda _: reply) as url:
        client = HttpClient(url, patience_s)
        got = await client.exchange(b"{}")
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
    assert run(HttpClient(f"http://127.0.0.1:{port}", 1).exchange(b"{}")).failure == "not_connected"


def test_a_kept_connection_that_was_closed_meanwhile_is_not_used() -> None:
    async def scenario() -> tuple[Got, int]:
        replies = iter([http({}), None, http({})])
        async with serving(lambda _: next(replies)) as url:
            client = HttpClient(url, 2)
            await client.exchange(b"{}")
            await client.exchange(b"{}")  # the server closes after reading it
            got = await client.exchange(b"{}")
            client.close()
            return got, client.opened

    got, opened = run(scenario())
    assert (got.status, opened) == (200, 2)


@pytest.mark.parametrize(
    "told",
    [
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
        b"Content-Length: 13\r\n\r\nabc0123456789",
    ],
)
def test_a_body_is_read_in_chunks_or_by_its_length(told: bytes) -> None:
    assert run(ask(b"HTTP/1.1 200 OK\r\n" + told)) == Got(200, b"abc0123456789")


def test_a_body_without_a_length_ends_with_its_connection() -> None:
    async def scenario() -> Got:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"\r\nAuthorization: Bearer secret\r\n" in head
            assert b"\r\nX-Request-ID: 7\r\n" in head
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            return await HttpClient(url, 2, api_key="secret").exchange(request_id="7")

    assert run(scenario()) == Got(200, b"all of it")


def test_a_client_that_closes_opens_a_connection_for_every_request() -> None:
    async def scenario() -> tuple[list[int], int]:
        closing = http({}).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        async with serving(lambda _: closing) as url:
            client = HttpClient(url, 2, keep_alive=False)
            return [(await client.exchange(b"{}")).status for _ in range(3)], client.opened

    assert run(scenario()) == ([200] * 3, 3)


def test_a_server_is_waited_for_and_given_up() -> None:
    async def scenario() -> tuple[bool, bool]:
        replies = iter([http({}, "503 Loading"), http({})])
        async with serving(lambda _: next(replies)) as url:
            client = HttpClient(url, 2)
            came = await wait_until_ready(client, 5.0)
            client.close()
        return came, await wait_until_ready(client, 0.0)

    assert run(scenario()) == (True, False)


def test_only_an_http_server_has_an_address() -> None:
    for url in ("http://127.0.0.1:8140", "https://curt.example"):
        HttpClient(url)
    for url in ("ftp://127.0.0.1", "127.0.0.1:8000"):
        with pytest.raises(ValueError, match="use one such as"):
            HttpClient(url)
