"""Shed load before parsing when refusals starve the workers.

By the time the pool refuses a request, the front has read and checked it, and perhaps let the
classifier answer it. That takes milliseconds of processor time, which the workers lack where they
share the front's cores. So while the pool refuses and the front is busy, only a few more requests
are admitted than are answered; the others get 503 unread. Nothing is shed while the pool takes
every request, however busy the front is.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.edge.context import COUNTED_PATHS, refuse, request_id_of
from serve.metrics import Metrics

CHECK_INTERVAL_S = 0.05
BUSY_SHARE = 0.4  # of its time that the front may work before the admission rate is limited
WINDOW_S = 1.0  # how long a refusal counts, and over how long answers are counted
HEADROOM = 1.25  # requests admitted for each that is answered; the pool refuses the surplus
MIN_ADMITTED_PER_S = 10.0  # however few are answered
BURST_S = 0.1  # seconds' worth of the admission rate that may arrive at once
RETRY_AFTER_S = 1
FRONT_BUSY = "front_busy"  # the reason, as the metrics count it


class AdmissionControl:
    """Decides how many requests are admitted, from refusals, answers and the event loop's load."""

    def __init__(self) -> None:
        self.is_limiting = False
        self._refusing = asyncio.Event()  # set while the pool has refused lately
        self._refused_at_s = self._shed_at_s = float("-inf")
        self._answered_at_s: deque[float] = deque()
        self._tokens = self._filled_at_s = 0.0

    def note_refusal(self, now_s: float | None = None) -> None:
        """The pool could not take a request."""
        self._refusing.set()
        self._refused_at_s = time.monotonic() if now_s is None else now_s

    def note_answer(self, now_s: float | None = None) -> None:
        """A client got a full answer of the model, fresh or cached."""
        now_s = time.monotonic() if now_s is None else now_s
        self._answered_at_s.append(now_s)
        self._forget_old_answers(now_s)

    def update(self, now_s: float, busy_share: float) -> None:
        """Begin or end limiting; `busy_share` is the share of its time that the front worked."""
        if now_s - self._refused_at_s >= WINDOW_S:
            self.is_limiting = False
        elif busy_share > BUSY_SHARE and not self.is_limiting:
            self.is_limiting, self._tokens, self._filled_at_s = True, 0.0, now_s
            self._shed_at_s = now_s
        elif now_s - self._shed_at_s >= WINDOW_S:  # no more arrive than are admitted anyway
            self.is_limiting = False

    def rate_per_s(self, now_s: float) -> float:
        """How many requests a second are admitted while limiting."""
        self._forget_old_answers(now_s)
        return MIN_ADMITTED_PER_S + HEADROOM * len(self._answered_at_s) / WINDOW_S

    def sheds(self, now_s: float | None = None) -> bool:
        """Whether to shed the request that has just arrived."""
        if not self.is_limiting:
            return False
        now_s = time.monotonic() if now_s is None else now_s
        rate_per_s = self.rate_per_s(now_s)
        filled = self._tokens + rate_per_s * (now_s - self._filled_at_s)
        self._tokens, self._filled_at_s = min(filled, max(1.0, rate_per_s * BURST_S)), now_s
        if self._tokens >= 1:
            self._tokens -= 1
            return False
        self._shed_at_s = now_s
        return True

    async def keep_updating(self) -> None:
        """Measure the running event loop until cancelled, whenever the pool refuses."""
        while True:
            await self._refusing.wait()
            began_s, began_cpu_s = time.monotonic(), time.thread_time()
            await asyncio.sleep(CHECK_INTERVAL_S)
            now_s = time.monotonic()
            self.update(now_s, (time.thread_time() - began_cpu_s) / (now_s - began_s))
            if now_s - self._refused_at_s >= WINDOW_S:
                self._refusing.clear()

    def _forget_old_answers(self, now_s: float) -> None:
        while self._answered_at_s and self._answered_at_s[0] < now_s - WINDOW_S:
            self._answered_at_s.popleft()


class LoadShedder:
    """ASGI middleware that answers requests for verdicts with 503 before their body is read."""

    def __init__(self, app: ASGIApp, admission: AdmissionControl, metrics: Metrics) -> None:
        self.app = app
        self._admission, self._metrics = admission, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        wants_verdict = scope["type"] == "http" and scope["path"] in COUNTED_PATHS
        if not (wants_verdict and self._admission.sheds()):
            await self.app(scope, receive, send)
            return
        self._metrics.shed.labels(FRONT_BUSY).inc()
        self._metrics.record_end(503, "overloaded", 0.0)
        self._metrics.record_case(503, {})
        request_id = request_id_of(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        message = "more requests arrive than can be read: try again later"
        headers = {"Retry-After": str(RETRY_AFTER_S), "X-Request-ID": request_id}
        await refuse(scope, receive, send, 503, "overloaded", message, headers)
