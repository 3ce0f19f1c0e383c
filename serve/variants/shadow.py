"""Copies of requests on a second variant: compared, logged, and never returned.

Its priority is the lowest: a copy starts only once the answer has been given, only while no more
than `max_live` requests are under way, one at a time, and stops when another request comes. What
that costs is that quiet moments are seen more often than busy ones; the copy has the time that the
request had, so its budget is that of an idle server.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol

from curt.law.verdict import Verdict
from serve.errors import RequestError
from serve.pool.job import Job
from serve.served import Served
from serve.variants.metrics import VariantMetrics

logger = logging.getLogger("serve.variants.shadow")

DELAY_S = 0.005  # for the reply to be written and sent first


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two answers to one request compare; None where one of them is no full verdict.

    `months_apart` is the shadow's term less the live one's, where both count months.
    """

    same_charges: bool | None
    same_articles: bool | None
    same_term: bool | None
    same_verdict: bool | None
    months_apart: int | None
    live_degraded: bool
    shadow_degraded: bool
    live_thinking_tokens: int
    shadow_thinking_tokens: int


class Submits(Protocol):
    """A pool, as far as a shadow needs it."""

    async def submit(self, job: Job) -> Served:
        """Serve one job or raise a RequestError."""
        ...


def verdict_in(served: Served) -> Verdict | None:
    """The model's own full verdict; a classifier's in its place does not count."""
    return served.model_verdict


def compare(live: Served, shadow: Served) -> Agreement:
    """Hold a shadow's answer against the one that was given."""
    one, other = verdict_in(live), verdict_in(shadow)
    both = one is not None and other is not None
    counted = both and one and other and one.term.months and other.term.months
    return Agreement(
        same_charges=set(one.charges) == set(other.charges) if one and other else None,
        same_articles=set(one.articles) == set(other.articles) if one and other else None,
        same_term=one.term == other.term if one and other else None,
        same_verdict=(
            set(one.charges) == set(other.charges)
            and set(one.articles) == set(other.articles)
            and one.term == other.term
            if one and other
            else None
        ),
        months_apart=other.term.months - one.term.months if counted and one and other else None,
        live_degraded=one is None,
        shadow_degraded=other is None,
        live_thinking_tokens=live.generation.thinking_tokens,
        shadow_thinking_tokens=shadow.generation.thinking_tokens,
    )


class ShadowRunner:
    """Runs copies where there is room for them."""

    def __init__(
        self, metrics: VariantMetrics, live_count: Callable[[], int], max_live: int = 0
    ) -> None:
        """`live_count()` tells how many requests are under way for clients."""
        self._metrics = metrics
        self._live_count = live_count
        self._max_live = max_live
        self._task: asyncio.Task[None] | None = None
        self._submitted = False

    def offer(
        self, name: str, pool: Submits, job: Job, served: Served, live: str, request_id: str | None
    ) -> None:
        """Consider a copy of a request that was just answered. Returns at once."""
        if self._task is not None:
            self._metrics.shadows.labels(name, "dropped").inc()
            return
        took_ms = (time.monotonic() - job.arrived_s) * 1e3
        run = self._run(name, pool, job, served, live, request_id, took_ms)
        self._task, self._submitted = asyncio.create_task(run), False
        self._task.add_done_callback(lambda task: self._ended(name, task))

    def make_way(self) -> None:
        """A request has come: stop the copy that runs, unless there is room for both."""
        if self._task is not None and self._live_count() > self._max_live:
            self._task.cancel()

    async def close(self) -> None:
        """Stop the copy that runs."""
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            outcome = "preempted" if self._submitted else "dropped"
            self._metrics.shadows.labels(name, outcome).inc()
        elif error := task.exception():
            # Type only: its message may quote the fact.
            logger.error("comparing failed", extra={"error": type(error).__name__})

    async def _run(
        self,
        name: str,
        pool: Submits,
        job: Job,
        served: Served,
        live: str,
        request_id: str | None,
        took_ms: float,
    ) -> None:
        counts = self._metrics.shadows
        try:
            await asyncio.sleep(DELAY_S)
            if self._live_count() > self._max_live:
                counts.labels(name, "dropped").inc()
                return
            self._submitted, now_s = True, time.monotonic()
            copied = Job(job.fact, now_s, now_s + job.deadline_s - job.arrived_s)
            answer = await pool.submit(copied)
        except RequestError as fault:
            counts.labels(name, "failed").inc()
            fields = {"request_id": request_id, "variant": live, "shadow": name}
            logger.info("shadow failed", extra={**fields, "error": fault.reason})
            return
        agreement = compare(served, answer)
        same = agreement.same_verdict
        counts.labels(name, "agreed" if same else "differed").inc()
        extra = {
            "request_id": request_id,
            "variant": live,
            "shadow": name,
            "live_ms": round(took_ms, 2),
            "shadow_ms": round((time.monotonic() - now_s) * 1e3, 2),
            **asdict(agreement),
        }
        logger.info("shadow compared", extra=extra)
