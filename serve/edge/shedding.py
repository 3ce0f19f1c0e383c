"""Shed load before parsing when refusals starve the workers.

By the time the pool refuses a request, the front has read and checked it, and perhaps let the
classifier answer it. That takes milliseconds of processor time, which the workers lack where they
share the front's cores. So while the pool refuses and the front is busy, only a few more requests
are admitted than are answered; the others get 503 unread. Where clients have API keys, one that
asks no more than its part is let in before any is that asks for more. Nothing is shed while the
pool takes every request, however busy the front is.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.edge.context import COUNTED_PATHS, refuse, request_id_of
from serve.edge.keys import KeyFile, presented_key
from serve.metrics import Metrics

CHECK_INTERVAL_S = 0.05
BUSY_SHARE = 0.4  # of its time that the front may work before the admission rate is limited
WINDOW_S = 1.0  # how long a refusal counts, and over how long answers are counted
HEADROOM = 1.25  # requests admitted for each that is answered; the pool refuses the surplus
MIN_ADMITTED_PER_S = 10.0  # however few are answered
BURST_S = 0.1  # seconds' worth of the admission rate that may arrive at once
RETRY_AFTER_S = 1
FRONT_BUSY = "front_busy"  # the reason, as the metrics count it


@dataclass(slots=True)
class _Caller:
    """A client that asked within the last `WINDOW_S`, and the tokens of its own part."""

    weight: float
    seen_s: float
    tokens: float = 1.0


class AdmissionControl:
    """Decides how many requests are admitted, from refusals, answers and the event loop's load."""

    def __init__(self) -> None:
        self.is_limiting = False
        self._refusing = asyncio.Event()  # set while the pool has refused lately
        self._refused_at_s = self._shed_at_s = float("-inf")
        self._answered_at_s: deque[float] = deque()
        self._tokens = self._filled_at_s = 0.0
        self._callers: dict[str, _Caller] = {}  # who asked last stands last

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

    def sheds(self, now_s: float | None = None, client: str = "", weight: float = 1.0) -> bool:
        """Whether to shed the request of a client that has just arrived.

        Of several clients each has a part of the rate by weight. What one doesn't use is for all;
        where another has used that up already, the others wait for it.
        """
        if not self.is_limiting:
            return False
        now_s = time.monotonic() if now_s is None else now_s
        rate_per_s = self.rate_per_s(now_s)
        self._tokens = _refill(self._tokens, rate_per_s, now_s - self._filled_at_s)
        self._filled_at_s = now_s
        caller = self._fill_part(client, weight, rate_per_s, now_s)
        if self._tokens < 1 and (len(self._callers) == 1 or caller.tokens < 1):
            self._shed_at_s = now_s
            return True
        self._tokens -= 1
        caller.tokens = max(0.0, caller.tokens - 1)
        return False

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

    def _fill_part(self, client: str, weight: float, rate_per_s: float, now_s: float) -> _Caller:
        """The client with the tokens that it has gained since it asked last."""
        while self._callers:
            name, oldest = next(iter(self._callers.items()))
            if oldest.seen_s > now_s - WINDOW_S:
                break
            del self._callers[name]
        caller = self._callers.pop(client, None) or _Caller(weight, now_s)
        self._callers[client] = caller
        part = weight / sum(each.weight for each in self._callers.values())
        caller.tokens = _refill(caller.tokens, rate_per_s * part, now_s - caller.seen_s)
        caller.weight, caller.seen_s = weight, now_s
        return caller

    def _forget_old_answers(self, now_s: float) -> None:
        while self._answered_at_s and self._answered_at_s[0] < now_s - WINDOW_S:
            self._answered_at_s.popleft()


def _refill(tokens: float, rate_per_s: float, seconds: float) -> float:
    return min(tokens + rate_per_s * seconds, max(1.0, rate_per_s * BURST_S))


class LoadShedder:
    """ASGI middleware that answers requests for verdicts with 503 before their body is read.

    With `keys` those without a valid one are the first.
    """

    def __init__(
        self,
        app: ASGIApp,
        admission: AdmissionControl,
        metrics: Metrics,
        keys: KeyFile | None = None,
    ) -> None:
        self.app = app
        self._admission, self._metrics, self._keys = admission, metrics, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        wants_verdict = scope["type"] == "http" and scope["path"] in COUNTED_PATHS
        if not (wants_verdict and self._admission.is_limiting):
            await self.app(scope, receive, send)
            return
        log: dict[str, str] = {}
        client, weight, is_known = "", 1.0, True
        if self._keys:
            presented = presented_key(scope)
            record = self._keys.find(presented) if presented else None
            is_known = record is not None
            if record:
                client, weight, log["key"] = record.id, record.weight, record.id
        if is_known and not self._admission.sheds(client=client, weight=weight):
            await self.app(scope, receive, send)
            return
        self._metrics.shed.labels(FRONT_BUSY).inc()
        self._metrics.record_end(503, "overloaded", 0.0)
        self._metrics.record_case(503, log)
        request_id = request_id_of(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        message = "more requests arrive than can be read: try again later"
        headers = {"Retry-After": str(RETRY_AFTER_S), "X-Request-ID": request_id}
        await refuse(scope, receive, send, 503, "overloaded", message, headers)
