"""Requests on a schedule or one after another, over raw sockets, replies kept whole.

Nothing is parsed while the clock runs: the client shares the machine with the server it times.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks import client as open_loop
from benchmarks.client import PATIENCE_S, read_address
from loadtest._arrivals import arrival_times_s


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
    """POSTs to one path over kept-alive connections, as many as are needed at once."""

    def __init__(self, url: str, path: str, patience_s: float = PATIENCE_S) -> None:
        host, port = read_address(url)
        self._connections = open_loop.Client(host, port, patience_s)
        self._what = f"POST {path}"

    async def ask(self, body: bytes) -> tuple[int, bytes]:
        """Status and body, a chunked one as it came; status 0 when no reply came in time."""
        got = await self._connections.exchange(body, what=self._what)
        return got.status, got.body

    def close(self) -> None:
        """Close every idle connection."""
        self._connections.close()


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
