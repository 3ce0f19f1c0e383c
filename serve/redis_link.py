"""Redis within a time budget, so that a slow, broken or absent Redis delays no request.

A call either returns within the budget or raises `RedisMissError`. A command that takes longer is
left to end by itself: cancelling it half-way would close its connection and could take longer than
the budget. After a few failures in a row no call is tried for a moment, so that an outage costs
requests nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from redis.asyncio import Redis

logger = logging.getLogger(__name__)

BUDGET_S = 0.005  # what one call may cost a request
STRAGGLER_S = 0.25  # after this a slow command is given up and its connection closed
CONNECT_S = 1.0
MAX_PENDING = 64  # commands under way, late ones included
FAILURES_TO_PAUSE = 3
PAUSE_S = 1.0

T = TypeVar("T")


class RedisMissError(Exception):
    """Redis did not answer in time or not sensibly. `kind`: timeout, paused, busy or failed."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"no answer from Redis: {kind}")
        self.kind = kind


class RedisLink:
    """One client of one Redis, shared by everything in this process that uses it."""

    def __init__(
        self,
        url: str,
        *,
        budget_s: float = BUDGET_S,
        pause_s: float = PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a link to `redis://…`, `rediss://…` or `unix://…`; connects at first use.

        Raises ValueError on an address of another kind or without the `redis` package.
        """
        self._client = _make_client(url)
        self._budget_s = budget_s
        self._pause_s = pause_s
        self._clock = clock
        self._pending: set[asyncio.Task[Any]] = set()
        self._failures = 0
        self._paused_until_s = float("-inf")

    async def open(self) -> bool:
        """Connect ahead of the first request. False, and a log line, where Redis is not there."""
        try:
            await self.call(lambda client: client.ping(), budget_s=CONNECT_S)
        except RedisMissError as miss:
            logger.warning("Redis is not reachable (%s): serving without it until it is", miss.kind)
            return False
        return True

    async def call(
        self, command: Callable[[Redis], Awaitable[T]], *, budget_s: float | None = None
    ) -> T:
        """Run a command on the client. Raises RedisMissError at the latest after the budget."""
        if self._clock() < self._paused_until_s:
            raise RedisMissError("paused")
        if len(self._pending) >= MAX_PENDING:
            raise RedisMissError("busy")
        task: asyncio.Task[T] = asyncio.ensure_future(_await(command, self._client))
        self._pending.add(task)
        task.add_done_callback(self._forget)
        await asyncio.wait({task}, timeout=self._budget_s if budget_s is None else budget_s)
        if not task.done():
            self._count_failure("timeout")
            raise RedisMissError("timeout")
        # Any exception is a miss, counted and its type logged: a broken server makes the client
        # raise more than RedisError.
        error = task.exception() if not task.cancelled() else None
        if error is not None or task.cancelled():
            self._count_failure(type(error).__name__)
            raise RedisMissError("failed") from error
        if self._failures >= FAILURES_TO_PAUSE:
            logger.info("Redis answers again")
        self._failures = 0
        return task.result()

    async def close(self) -> None:
        """Wait a moment for what is under way, then close the connections."""
        if self._pending:
            await asyncio.wait(set(self._pending), timeout=STRAGGLER_S)
        await self._client.aclose()

    def _count_failure(self, kind: str) -> None:
        self._failures += 1
        if self._failures == FAILURES_TO_PAUSE:
            logger.warning("Redis failed %d times (%s): pausing", self._failures, kind)
        if self._failures >= FAILURES_TO_PAUSE:
            self._paused_until_s = self._clock() + self._pause_s

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._pending.discard(task)
        if not task.cancelled():
            task.exception()  # read it; the failure of a late command was counted as a timeout


async def _await(command: Callable[[Redis], Awaitable[T]], client: Redis) -> T:
    return await command(client)


def _make_client(url: str) -> Redis:
    try:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError as error:
        raise ValueError("a Redis address needs the package redis: install it") from error
    return Redis.from_url(
        url,
        protocol=2,  # saves a round trip on connecting
        driver_info=None,
        socket_timeout=STRAGGLER_S,
        socket_connect_timeout=CONNECT_S,
        retry=Retry(NoBackoff(), 0),  # a second try would outlive the budget
        max_connections=MAX_PENDING,
    )
