"""A job in the pool: what is asked, its place in the queue, and the stream its client reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Protocol

from curt.engines.protocol import Request
from serve.pool.process import Worker
from serve.pool.schedule import Demand
from serve.served import Served


@dataclass(frozen=True, slots=True)
class Job:
    """A fact to judge before `deadline_s`, a `time.monotonic()` instant.

    `max_thinking_tokens` is the client's own limit, however much the deadline allows;
    `traceparent` names the request's span to a remote engine. `client` is whose job it is, by the
    id of an API key, and `weight` its part of the workers' time beside that of others. One in the
    `background` has a worker only while nobody else wants it; its time begins when it does.
    """

    fact: str
    arrived_s: float
    deadline_s: float
    max_thinking_tokens: int | None = None
    traceparent: str | None = None
    client: str = ""
    weight: float = 1.0
    background: bool = False

    def cap(self, allowed: int) -> int:
        """Thinking tokens to grant: those the deadline allows, within the client's limit."""
        limit = self.max_thinking_tokens
        return allowed if limit is None else min(allowed, limit)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more of the reasoning, as whole characters; about one piece every 20 ms.

    `attempt` grows when a worker died and the reasoning starts again from the beginning.
    """

    text: str
    attempt: int


@dataclass(slots=True, eq=False)
class Ticket:
    """A job in the queue or under way; `events` receives its reasoning if the client wants it."""

    job: Job
    demand: Demand
    prompt_tokens: int
    order: tuple[float, int]
    future: asyncio.Future[Served]
    events: asyncio.Queue[Piece | None] | None = None
    worker: Worker | None = None  # that runs it now
    attempts: int = 0
    allowed_alone: int = 0  # thinking tokens, had it come alone
    admitted_s: float = 0.0
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

    def request(self, stated_budget: int, thinking_limit: int, until_s: float) -> Request:
        """The request a worker is sent."""
        return Request(
            self.job.fact,
            stated_budget,
            thinking_limit,
            deadline_s=until_s,
            tell_text=self.events is not None,
            traceparent=self.job.traceparent,
        )

    def tell(self, piece: str) -> None:
        """Pass a piece of reasoning on to the client."""
        if self.events and not self.future.done():
            self.events.put_nowait(Piece(piece, self.attempts))


@dataclass(slots=True, eq=False)
class Slot:
    """A place for one worker; `free_at_s` is when it is expected to take the next request."""

    free_at_s: float = 0.0
    worker: Worker | None = None
    busy: bool = False
    lent: bool = False  # to the background

    @property
    def free(self) -> bool:
        """Whether its worker can take a request, or as soon as the background gives way."""
        return self.worker is not None and (self.lent or not self.busy)


class JobStream(Protocol):
    """What a client of a stream reads: `Piece`s and, last, the `Served` answer."""

    def __aiter__(self) -> AsyncIterator[Piece | Served]: ...

    def close(self) -> None:
        """Give up what is not done yet; harmless afterwards."""
        ...


class KeptAnswer:
    """A stream of an answer that was there before: it alone."""

    def __init__(self, served: Served) -> None:
        self._served = served

    async def __aiter__(self) -> AsyncIterator[Piece | Served]:
        yield self._served

    def close(self) -> None:
        """Nothing is under way."""


class ServedStream:
    """A job under way: `async for` gives its `Piece`s and, last, the `Served` answer.

    Iteration raises the job's RequestError. `close()` ends it at any point: a job that waits
    leaves the queue, one under way is stopped.
    """

    def __init__(self, ticket: Ticket, leave: Callable[[Ticket], None]) -> None:
        assert ticket.events is not None
        self._events = ticket.events
        self._ticket = ticket
        self._leave = leave
        self._over = self._closed = False
        ticket.future.add_done_callback(lambda _: self._events.put_nowait(None))

    def __aiter__(self) -> ServedStream:
        return self

    async def __anext__(self) -> Piece | Served:
        if self._over:
            raise StopAsyncIteration
        piece = await self._events.get()
        if piece is not None:
            return piece
        self._over = True
        return await self._ticket.future

    def on_end(self, callback: Callable[[Served | BaseException], None]) -> None:
        """Call back with the answer, or with the exception that ended the job without one."""

        def report(future: asyncio.Future[Served]) -> None:
            if future.cancelled():
                callback(asyncio.CancelledError())
            else:
                callback(future.exception() or future.result())

        self._ticket.future.add_done_callback(report)

    def close(self) -> None:
        """Give up what is not done yet; harmless afterwards."""
        if self._closed:
            return
        self._over = self._closed = True
        if not self._ticket.future.cancel() and not self._ticket.future.cancelled():
            self._ticket.future.exception()  # read it, or asyncio logs it as never retrieved
        self._leave(self._ticket)
