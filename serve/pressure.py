"""Refusing at the door: where so much arrives that saying no costs the machine its answers.

A request that the pool refuses has been read, checked and perhaps answered by the classifier by
then: milliseconds of the front, which the workers lack where they share its cores. While the pool
refuses and the front has hardly time left, a share of what arrives is turned away unread. Nobody
is turned away while the pool takes everything, however busy the front is.
"""

from __future__ import annotations

import asyncio
import json
import random
import time

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.faults import error_body
from serve.metrics import Metrics
from serve.middleware import COUNTED_PATHS, request_id_of

BEAT_S = 0.05
BUSY = 0.4  # share of its time that the front may work while the pool refuses
LATE_S = 0.02  # how late its event loop may be
STEP = 0.2  # by which the share turned away sinks in a beat, at most
LEAP = 5  # times as much it may rise: a loop that is far behind beats seldom
MOST = 0.95  # who is let in shows when it is over
REFUSING_S = 1.0  # after its last refusal the pool counts as refusing
RETRY_AFTER_S = 1


class Pressure:
    """How much is turned away at the door, from what the pool and the event loop tell."""

    def __init__(self) -> None:
        self.share = 0.0
        self._refused_at_s = float("-inf")

    def note_refusal(self) -> None:
        """The pool could not take a request."""
        self._refused_at_s = time.monotonic()

    def beat(self, now_s: float, busy: float, late_s: float) -> None:
        """Set the share anew: `busy` is that of the front's time since the last beat."""
        load = max(busy / BUSY, late_s / LATE_S) if self._is_refusing(now_s) else 0.0
        change = STEP * max(-1.0, min(LEAP, load - 1.0))
        self.share = max(0.0, min(MOST, self.share + change))

    async def keep_beating(self) -> None:
        """Watch the running event loop until cancelled."""
        while True:
            began_s, began_cpu_s = time.monotonic(), time.thread_time()
            await asyncio.sleep(BEAT_S)
            now_s = time.monotonic()
            spent_s = now_s - began_s
            busy = (time.thread_time() - began_cpu_s) / spent_s
            self.beat(now_s, busy, spent_s - BEAT_S)

    def _is_refusing(self, now_s: float) -> bool:
        return now_s - self._refused_at_s < REFUSING_S


class Doorman:
    """ASGI middleware that turns requests for verdicts away with 503, before anything is read."""

    def __init__(self, app: ASGIApp, pressure: Pressure, metrics: Metrics) -> None:
        self.app = app
        self._pressure, self._metrics = pressure, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if self._turns_away(scope):
            self._metrics.shed.labels("front_busy").inc()
            self._metrics.record_end(503, "overloaded", 0.0)
            await refuse(scope, send)
        else:
            await self.app(scope, receive, send)

    def _turns_away(self, scope: Scope) -> bool:
        share = self._pressure.share
        if not share or scope["type"] != "http" or scope["path"] not in COUNTED_PATHS:
            return False
        return random.random() < share


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
