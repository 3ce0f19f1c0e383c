"""What a connection may take, on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from serve.edge.connections import (
    SPARE_FILES,
    ConnectionLimits,
    limited_protocol,
    raise_file_limit,
)

LIMITS = ConnectionLimits(8, max_header_bytes=4_096, max_headers=20, head_s=0.4, write_s=0.4)
opened: list[asyncio.StreamWriter] = []
REQUEST = b"GET / HTTP/1.1\r\nHost: curt\r\n\r\n"


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """2 bytes, or as many as the path says; /slow takes longer than a head may."""
    assert scope["type"] == "http"
    if scope["path"] == "/slow":
        await asyncio.sleep(1.0)
    size = int(scope["path"][1:] or "2") if scope["path"][1:].isdecimal() else 2
    head = {"type": "http.response.start", "status": 200, "headers": [
        (b"content-length", str(size).encode())]}  # fmt: skip
    await send(head)
    for start in range(0, size, 100_000):
        data = b"x" * min(100_000, size - start)
        more = start + 100_000 < size
        await send({"type": "http.response.body", "body": data, "more_body": more})


@asynccontextmanager
async def serving(limits: ConnectionLimits = LIMITS) -> AsyncIterator[uvicorn.Server]:
    config = uvicorn.Config(
        answer, port=0, http=limited_protocol(limits), ws="none", lifespan="off",
        log_config=None, timeout_keep_alive=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    running = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server
    finally:
        server.should_exit = server.force_exit = True
        await running


async def connect(server: uvicorn.Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    opened.append(writer)
    return reader, writer


def run(scenario: Callable[[uvicorn.Server], Awaitable[None]], **changes: float) -> None:
    async def serve() -> None:
        async with serving(replace(LIMITS, **changes)) as server:
            await scenario(server)
            for writer in opened:
                writer.transport.abort()
            await asyncio.gather(*(w.wait_closed() for w in opened), return_exceptions=True)
            opened.clear()

    asyncio.run(serve())


async def reply(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(size)


async def is_closed_within(reader: asyncio.StreamReader, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await reader.read() == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nX: " + b"a" * 5_000,
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(30)) + b"\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 900) for n in range(9)),
        b"GET /" + b"a" * 5_000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["one without an end", "too many", "too many bytes", "address"],
)
def test_a_head_that_is_too_large_is_refused_and_the_connection_closed(head: bytes) -> None:
    async def scenario(server: uvicorn.Server) -> None:
        reader, writer = await connect(server)
        writer.write(head)
        status, body = await reply(reader)
        assert status == 431
        assert json.loads(body)["error"]["code"] == "head_too_large"
        assert await is_closed_within(reader, 1)

    run(scenario)


def test_headers_without_end_take_no_memory() -> None:
    async def scenario(server: uvicorn.Server) -> None:
        _, writer = await connect(server)
        writer.write(b"GET / HTTP/1.1\r\n")
        sent = 0
        with contextlib.suppress(OSError):  # whichever way the connection breaks
            while sent < 200_000_000:
                writer.write(b"X: " + b"a" * 99_995 + b"\r\n")
                await writer.drain()
                sent += 100_000
        assert sent < 20_000_000  # what the sockets themselves take

    run(scenario)


def test_what_is_no_request_is_refused_in_our_words() -> None:
    async def scenario(server: uvicorn.Server) -> None:
        reader, writer = await connect(server)
        writer.write(b"\x16\x03\x01\r\n\r\n")
        status, body = await reply(reader)
        assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_request")

    run(scenario)


@pytest.mark.parametrize("kind", ["silent", "byte by byte", "after an answer", "body after it"])
def test_a_connection_that_asks_nothing_whole_is_closed(kind: str) -> None:
    async def scenario(server: uvicorn.Server) -> None:
        reader, writer = await connect(server)
        if kind == "after an answer":
            writer.write(REQUEST)
            assert (await reply(reader))[0] == 200
        if kind == "body after it":
            writer.write(b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
            assert (await reply(reader))[0] == 200

        async def drip() -> None:
            for character in "GET /" + "a" * 100:
                await asyncio.sleep(0.05)
                writer.write(character.encode())

        dripping = asyncio.create_task(drip()) if kind != "silent" else None
        assert await is_closed_within(reader, 1.5)
        if dripping:
            dripping.cancel()

    run(scenario)


def test_a_request_under_way_is_not_hurried_and_connections_are_kept() -> None:
    async def scenario(server: uvicorn.Server) -> None:
        reader, writer = await connect(server)
        for _ in range(3):
            writer.write(b"GET /slow HTTP/1.1\r\nHost: curt\r\n\r\n")
            assert await reply(reader) == (200, b"xx")
            await asyncio.sleep(0.6)  # longer than a head may take, shorter than it is kept

    run(scenario)


def test_silent_connections_give_way_to_new_ones() -> None:
    async def scenario(server: uvicorn.Server) -> None:
        busy_reader, busy = await connect(server)
        busy.write(b"GET /slow HTTP/1.1\r\nHost: curt\r\n\r\n")
        await asyncio.sleep(0.05)
        silent = [await connect(server) for _ in range(20)]
        reader, writer = await connect(server)
        writer.write(REQUEST)
        assert await reply(reader) == (200, b"xx")
        assert len(server.server_state.connections) <= 8
        assert await is_closed_within(silent[0][0], 0.5)
        assert await reply(busy_reader) == (200, b"xx")

    run(scenario, head_s=30.0)


def test_a_client_that_does_not_read_is_dropped() -> None:
    async def scenario(server: uvicorn.Server) -> None:
        _, writer = await connect(server)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /30000000 HTTP/1.1\r\nHost: curt\r\n\r\n")
        await asyncio.sleep(0.1)
        assert len(server.server_state.connections) == 1
        await asyncio.sleep(0.8)
        assert not server.server_state.connections

    run(scenario)


def test_connections_are_as_many_as_files_may_be_open() -> None:
    kept = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, kept[1]))
        assert raise_file_limit(500) == 500
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 500 + SPARE_FILES
        assert raise_file_limit(100) == 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, kept)
