"""Refusing at the door: where so much arrives that saying no costs the machine its answers.

A request that the pool refuses has been read, checked and perhaps answered by the classifier by
then: milliseconds of the front, which the workers lack where they share its cores. While the pool
refuses and the front is busy, only some more requests than are answered come in; the others are
turned away unread. Nobody is turned away while the pool takes everything, however busy the front.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.edge.context import COUNTED_PATHS, request_id_of
from serve.errors import error_body
from serve.metrics import Metrics

BEAT_S = 0.05
BUSY = 0.4  # share of its time that the front may work before the door is watched
MEMORY_S = 1.0  # how long a refusal counts, and over how long answers are counted
MORE = 1.25  # times the answers that come in: the pool refuses the rest, and rises with them
LEAST_PER_S = 10.0  # come in however few are answered
BURST_S = 0.1  # of the rate may come at once
RETRY_AFTER_S = 1
FRONT_BUSY = "front_busy"  # the reason, as it is counted


class Pressure:
    """How many may come in, from what the pool, the clients and the event loop tell."""

    def __init__(self) -> None:
        self.watched = False  # whether the door is
        self._refusing = asyncio.Event()  # there is something to watch for
        self._refused_at_s = self._turned_at_s = float("-inf")
        self._answered: deque[float] = deque()
        self._tokens = self._filled_s = 0.0

    def note_refusal(self, now_s: float | None = None) -> None:
        """The pool could not take a request."""
        self._refusing.set()
        self._refused_at_s = time.monotonic() if now_s is None else now_s

    def note_answer(self, now_s: float | None = None) -> None:
        """A client got a full answer of the model, a kept one among them."""
        now_s = time.monotonic() if now_s is None else now_s
        self._answered.append(now_s)
        self._forget(now_s)

    def beat(self, now_s: float, busy: float) -> None:
        """Decide whether the door is watched; `busy` is the share of its time the front worked."""
        if now_s - self._refused_at_s >= MEMORY_S:
            self.watched = False
        elif busy > BUSY and not self.watched:
            self.watched, self._tokens, self._filled_s = True, 0.0, now_s
            self._turned_at_s = now_s
        elif now_s - self._turned_at_s >= MEMORY_S:  # what arrives is no more than may come in
            self.watched = False

    def rate_per_s(self, now_s: float) -> float:
        """How many requests a second may come in."""
        self._forget(now_s)
        return LEAST_PER_S + MORE * len(self._answered) / MEMORY_S

    def turns_away(self, now_s: float | None = None) -> bool:
        """Whether the request that has just arrived is to be turned away."""
        if not self.watched:
            return False
        now_s = time.monotonic() if now_s is None else now_s
        rate_per_s = self.rate_per_s(now_s)
        filled = self._tokens + rate_per_s * (now_s - self._filled_s)
        self._tokens, self._filled_s = min(filled, max(1.0, rate_per_s * BURST_S)), now_s
        if self._tokens >= 1:
            self._tokens -= 1
            return False
        self._turned_at_s = now_s
        return True

    async def keep_beating(self) -> None:
        """Watch the running event loop until cancelled, while the pool refuses now and then."""
        while True:
            await self._refusing.wait()
            began_s, began_cpu_s = time.monotonic(), time.thread_time()
            await asyncio.sleep(BEAT_S)
            now_s = time.monotonic()
            self.beat(now_s, (time.thread_time() - began_cpu_s) / (now_s - began_s))
            if now_s - self._refused_at_s >= MEMORY_S:
                self._refusing.clear()

    def _forget(self, now_s: float) -> None:
        while self._answered and self._answered[0] < now_s - MEMORY_S:
            self._answered.popleft()


class Doorman:
    """ASGI middleware that turns requests for verdicts away with 503, before anything is read."""

    def __init__(self, app: ASGIApp, pressure: Pressure, metrics: Metrics) -> None:
        self.app = app
        self._pressure, self._metrics = pressure, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if self._turns_away(scope):
            self._metrics.shed.labels(FRONT_BUSY).inc()
            self._metrics.record_end(503, "overloaded", 0.0)
            await refuse(scope, send)
        else:
            await self.app(scope, receive, send)

    def _turns_away(self, scope: Scope) -> bool:
        wants_verdict = scope["type"] == "http" and scope["path"] in COUNTED_PATHS
        return wants_verdict and self._pressure.turns_away()


async def refuse(scope: Scope, send: Send) -> None:
    """Answer 503 with nothing but what a client needs to try again."""
    request_id = request_id_of(scope)
    message = "more requests arrive than can be read: try again later"
    body = json.dumps(error_body("overloaded", message, request_id)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(RETRY_AFTER_S).encode()),
        (b"x-request-id", request_id.encode()),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
