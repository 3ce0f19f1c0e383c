"""Requests on a schedule or one after another, over raw sockets, replies kept whole.

Nothing is parsed while the clock runs: the client shares the machine with the server it times.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from loadtest._arrivals import arrival_times_s

PATIENCE_S = 5.0
REUSED_WITHIN_S = 2.0  # servers close connections that idle for longer, uvicorn after 5 s


@dataclass(frozen=True, slots=True)
class Reply:
    """What request number `index` got; `status` is 0 when nothing came.

    `latency_ms` counts from the scheduled instant, `lag_ms` is how late it was sent.
    """

    index: int
    at_s: float
    status: int
    latency_ms: float
    lag_ms: float
    body: bytes


class Client:
    """POSTs over kept-alive connections, as many as are needed at once."""

    def __init__(self, url: str, path: str, patience_s: float = PATIENCE_S) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url} is no plain HTTP address: use http://host:port")
        self._host, self._port, self._patience_s = parts.hostname, parts.port or 80, patience_s
        self._head = f"POST {path} HTTP/1.1\r\nHost: peer\r\nContent-Type: application/json\r\n"
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter, float]] = []

    async def ask(self, body: bytes) -> tuple[int, bytes]:
        """Status and body, a chunked one as it came; status 0 when no reply came in time."""
        writer = None
        try:
            async with asyncio.timeout(self._patience_s):
                reader, writer = await self._connect()
                head = f"{self._head}Content-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                reply_head = (await reader.readuntil(b"\r\n\r\n")).lower()
                status = int(reply_head.split(b" ", 2)[1])
                if b"transfer-encoding: chunked" in reply_head:  # a stream of events
                    reply = await reader.readuntil(b"\r\n0\r\n\r\n")
                else:
                    length = reply_head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]
                    reply = await reader.readexactly(int(length))
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError, IndexError):
            if writer:
                writer.transport.abort()
            return 0, b""
        except asyncio.CancelledError:
            if writer:
                writer.transport.abort()
            raise
        if b"connection: close" in reply_head:
            writer.close()
        else:
            self._idle.append((reader, writer, time.monotonic()))
        return status, reply

    def close(self) -> None:
        """Close every idle connection."""
        while self._idle:
            self._idle.pop()[1].transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The connection used last, unless even that has idled too long."""
        if self._idle and time.monotonic() - self._idle[-1][2] < REUSED_WITHIN_S:
            return self._idle.pop()[:2]
        self.close()
        return await asyncio.open_connection(self._host, self._port)


async def send_on_schedule(
    client: Client,
    bodies: Sequence[bytes],
    rate_per_s: float,
    seed: int,
    is_lost: Callable[[Sequence[Reply]], bool] = lambda replies: False,
) -> list[Reply]:
    """One request a body at Poisson instants, whatever the server does; replies in their order.

    Stops early, giving up what is under way, once `is_lost` says that no further reply matters.
    """
    replies: list[Reply] = []
    tasks: set[asyncio.Task[None]] = set()
    start_s = time.monotonic() + 0.05

    async def one(index: int, offset_s: float) -> None:
        sent_s = time.monotonic()
        status, body = await client.ask(bodies[index])
        due_s = start_s + offset_s
        latency_ms, lag_ms = (time.monotonic() - due_s) * 1e3, (sent_s - due_s) * 1e3
        replies.append(Reply(index, offset_s, status, latency_ms, lag_ms, body))

    arrivals = zip(range(len(bodies)), arrival_times_s(rate_per_s, seed), strict=False)
    for index, offset_s in arrivals:
        if (wait_s := start_s + offset_s - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        if is_lost(replies):
            break
        task = asyncio.create_task(one(index, offset_s))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    while tasks and not is_lost(replies):
        await asyncio.wait(set(tasks), return_when=asyncio.FIRST_COMPLETED)
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return replies


async def send_in_turn(client: Client, bodies: Sequence[bytes], clients: int) -> list[Reply]:
    """Every body once, each of so many clients waiting for its reply before it sends another."""
    replies: list[Reply] = []
    waiting = iter(enumerate(bodies))
    start_s = time.monotonic()

    async def go() -> None:
        for index, body in waiting:
            sent_s = time.monotonic()
            status, reply = await client.ask(body)
            latency_ms = (time.monotonic() - sent_s) * 1e3
            replies.append(Reply(index, sent_s - start_s, status, latency_ms, 0.0, reply))

    await asyncio.gather(*(go() for _ in range(clients)))
    return replies
