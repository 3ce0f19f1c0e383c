"""Rolling figures of what the server answers, and how far its charges lie from the training mix.

Each hour and each day is counted (`serve.drift.tally`): charges answered, length of facts, thinking
tokens, latency, degraded replies, feedback. Forty-eight hours and sixty days are kept, in about a
megabyte, and saved to a file every minute. Charges that shift away from those of the training
corpus mean other cases than before, or a model that has become biased.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from curt.files import write_json
from curt.law.verdict import Verdict
from serve.drift.divergence import MixComparison, compare
from serve.drift.tally import DAY_S, HOUR_S, ChargeMix, DriftTally
from serve.errors import OverloadedError
from serve.served import Served

logger = logging.getLogger(__name__)

DRIFT_PATH = "/drift"
HOURS_KEPT, DAYS_KEPT = 48, 60
SAVE_INTERVAL_S = 60.0
PAGE_TTL_S = 30.0
RENDER_TIMEOUT_S = 60.0
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

Window = Literal["hour", "day", "week"]
WINDOWS: dict[Window, int] = {"hour": HOUR_S, "day": DAY_S, "week": 7 * DAY_S}


class Drift:
    """The counts of one server, by hour and by day. Safe to use from several threads."""

    def __init__(
        self,
        path: Path | None = None,
        reference: ChargeMix | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`path`: where the counts outlive a restart; a file that can't be read is set aside."""
        self.reference = reference
        self._path, self._clock = path, clock
        self._lock = threading.Lock()
        self._hours: dict[int, DriftTally] = {}
        self._days: dict[int, DriftTally] = {}
        self._saved_s = clock()
        if path and path.exists():
            self._load(path)

    def observe(self, served: Served, *, fact_chars: int, total_ms: float) -> None:
        """Count an answered request."""
        verdict = served.verdict
        self.observe_answer(
            verdict,
            fact_chars=fact_chars,
            thinking_tokens=served.generation.thinking_tokens,
            total_ms=total_ms,
            degraded=served.fallback is not None or verdict is None,
        )

    def observe_answer(
        self,
        verdict: Verdict | None,
        *,
        fact_chars: int,
        thinking_tokens: int,
        total_ms: float,
        degraded: bool,
    ) -> None:
        """Count an answer; a degraded one's charges are left out, as another model gave them."""
        charges = verdict.charges if verdict and not degraded else ()
        with self._lock:
            for tally in self._current():
                tally.add_answer(charges, fact_chars, thinking_tokens, total_ms, degraded=degraded)

    def observe_feedback(self, verdict: str) -> None:
        """Count one piece of feedback in the hour and day it came in."""
        with self._lock:
            for tally in self._current():
                tally.add_feedback(is_wrong=verdict == "wrong")

    def total(self, window: Window) -> DriftTally:
        """The sum over the last hour, day or week: whole hours or days and the one under way."""
        now_s = self._clock()
        with self._lock:
            if window == "week":
                wanted, step_s = self._days, DAY_S
            else:
                wanted, step_s = self._hours, HOUR_S
            first = int(now_s - WINDOWS[window]) // step_s
            return DriftTally.sum(tally for key, tally in wanted.items() if key > first)

    def compare(self, window: Window) -> MixComparison | None:
        """Compare a window's charges with the training corpus; None without a reference."""
        if self.reference is None:
            return None
        return compare(self.total(window).charges, self.reference.charges)

    def snapshot(self) -> dict[str, Any]:
        """Everything as JSON, for the file and the page."""
        with self._lock:
            return {
                "schema": 1,
                "at_s": round(self._clock(), 3),
                "hours": {str(key): tally.to_json() for key, tally in self._hours.items()},
                "days": {str(key): tally.to_json() for key, tally in self._days.items()},
            }

    def save(self) -> None:
        """Write the file, in one step. Raises OSError."""
        if self._path:
            write_json(self._path, self.snapshot())
            self._saved_s = self._clock()

    async def keep_saving(self) -> None:
        """Write the file every minute until cancelled, and then once more."""
        try:
            while True:
                await asyncio.sleep(SAVE_INTERVAL_S)
                await asyncio.to_thread(self._try_to_save)
        finally:
            self._try_to_save()

    def _try_to_save(self) -> None:
        try:
            self.save()
        except OSError as error:
            logger.error("drift figures can't be written: %s", error.strerror)

    def _current(self) -> Iterator[DriftTally]:
        now = int(self._clock())
        for kept, step_s, limit in (
            (self._hours, HOUR_S, HOURS_KEPT),
            (self._days, DAY_S, DAYS_KEPT),
        ):
            key = now // step_s
            if key not in kept:
                kept[key] = DriftTally()
                for old in [other for other in kept if other <= key - limit]:
                    del kept[old]
            yield kept[key]

    def _load(self, path: Path) -> None:
        try:
            saved = json.loads(path.read_bytes())
            if saved["schema"] != 1:
                raise ValueError("another schema")
            hours = {int(key): DriftTally.from_json(row) for key, row in saved["hours"].items()}
            days = {int(key): DriftTally.from_json(row) for key, row in saved["days"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            aside = path.with_suffix(".unreadable")
            path.replace(aside)
            logger.error("%s can't be read (%s): set aside", path.name, type(error).__name__)
            return
        now = int(self._clock())
        self._hours = {k: t for k, t in hours.items() if k > now // HOUR_S - HOURS_KEPT}
        self._days = {k: t for k, t in days.items() if k > now // DAY_S - DAYS_KEPT}


class DriftCollector(Collector):
    """Gauges that are computed when Prometheus asks for them."""

    def __init__(self, drift: Drift) -> None:
        self._drift = drift

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing: registering must not compute the gauges to learn their names."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Gauges by window; those of the mix only where there is a reference and an answer."""
        gauges = {
            name: GaugeMetricFamily(f"curt_drift_{name}", text, labels=["window"])
            for name, text in _GAUGES.items()
        }
        for window in WINDOWS:
            tally = self._drift.total(window)
            for name, value in tally.shares().items():
                if value is not None:
                    gauges[name].add_metric([window], value)
            comparison = self._drift.compare(window)
            if comparison:
                gauges["distance"].add_metric([window], comparison.distance)
                gauges["distance_limit"].add_metric([window], comparison.limit)
                gauges["drifted"].add_metric([window], float(comparison.has_drifted))
        yield from gauges.values()


_GAUGES = {
    "answers": "Answers counted in the window",
    "degraded_share": "Share of answers without a full verdict of the model",
    "fact_chars_median": "Median length of facts in characters",
    "thinking_tokens_mean": "Mean thinking tokens of an answer",
    "latency_p99_seconds": "99th percentile of the time from request to reply",
    "wrong_share": "Share of feedback that says wrong",
    "distance": "Jensen-Shannon distance of the charge mix to the training corpus, 0 to 1",
    "distance_limit": "Distance that chance alone exceeds once in a hundred",
    "drifted": "1 when the distance is beyond chance and large enough to matter",
}


def make_router(drift: Drift, registry: CollectorRegistry) -> APIRouter:
    """`GET /drift`; registers the gauges."""
    registry.register(DriftCollector(drift))
    router = APIRouter()
    lock = asyncio.Lock()
    rendered: tuple[float, str] | None = None

    @router.get(DRIFT_PATH, include_in_schema=False)
    async def show_drift() -> HTMLResponse:
        nonlocal rendered
        async with lock:  # drawn once for all who ask at the same time
            if rendered is None or time.monotonic() - rendered[0] > PAGE_TTL_S:
                rendered = (0.0, await _render_apart(drift))
                rendered = (time.monotonic(), rendered[1])
            page = rendered[1]
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    return router


async def _render_apart(drift: Drift) -> str:
    """The page, drawn in a process of its own: drawing holds the GIL for a second or two."""
    mix = drift.reference
    given = json.dumps(drift.snapshot() | {"reference": mix.model_dump() if mix else None})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "serve.drift", "page", "-",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        async with asyncio.timeout(RENDER_TIMEOUT_S):
            page, complaint = await process.communicate(given.encode())
    except TimeoutError:
        raise OverloadedError("drawing_late", "the page took too long to draw", 5.0) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        logger.error("drawing failed: %s", complaint.decode(errors="replace")[-500:])
        raise OverloadedError("drawing_failed", "the page can't be drawn now", 30.0)
    return page.decode()
