"""Copies of requests on a second variant: compared, logged, and never returned.

They have the lowest priority: a copy starts only once the answer has been given and while no other
request is under way, one at a time, and stops when another request comes. So quiet moments are seen
more often than busy ones. A copy has as much time as the request had.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from serve.answering.answering import Pool
from serve.errors import RequestError
from serve.pool.job import Job
from serve.served import Served
from serve.variants.metrics import ShadowEnding, VariantMetrics

logger = logging.getLogger("serve.variants.shadow")

DELAY_S = 0.005  # for the reply to be written and sent first


def compare(live: Served, shadow: Served) -> dict[str, Any]:
    """How a shadow's answer compares with the one that was given, as fields of the log line.

    `same_*` is None where one of them is no full verdict of its model; `months_apart` is the
    shadow's term less the live one's, where both count months.
    """
    one, other = live.model_verdict, shadow.model_verdict
    fields: dict[str, Any] = dict.fromkeys(("same_charges", "same_articles", "same_term"))
    fields |= {"same_verdict": None, "months_apart": None}
    if one and other:
        fields["same_charges"] = set(one.charges) == set(other.charges)
        fields["same_articles"] = set(one.articles) == set(other.articles)
        fields["same_term"] = one.term == other.term
        fields["same_verdict"] = all(
            fields[f"same_{part}"] for part in ("charges", "articles", "term")
        )
        if one.term.months and other.term.months:
            fields["months_apart"] = other.term.months - one.term.months
    return fields | {
        "live_degraded": one is None,
        "shadow_degraded": other is None,
        "live_thinking_tokens": live.generation.thinking_tokens,
        "shadow_thinking_tokens": shadow.generation.thinking_tokens,
    }


class Shadow:
    """Runs copies of requests where there is room for them."""

    def __init__(self, metrics: VariantMetrics, count_live: Callable[[], int]) -> None:
        """`count_live()` says how many requests are under way for clients."""
        self._metrics, self._count_live = metrics, count_live
        self._task: asyncio.Task[None] | None = None
        self._outcome: ShadowEnding = "dropped"

    def offer(
        self, name: str, pool: Pool, job: Job, served: Served, fields: dict[str, Any]
    ) -> None:
        """Consider a copy of a request that was just answered. Returns at once.

        `name` and `pool` are the shadow's; `fields` go into the log line.
        """
        if self._task is not None:
            self._metrics.shadows.labels(name, "dropped").inc()
            return
        fields = fields | {"shadow": name}
        fields["live_ms"] = round((time.monotonic() - job.arrived_s) * 1e3, 2)
        self._outcome = "dropped"
        self._task = asyncio.create_task(self._run(pool, job, served, fields))
        self._task.add_done_callback(lambda _: self._count_end(name))

    def make_way(self) -> None:
        """A request has come: stop the copy that runs."""
        if self._task is not None and self._count_live() > 0:
            self._task.cancel()

    async def close(self) -> None:
        """Stop the copy that runs and wait for its end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _count_end(self, name: str) -> None:
        self._task = None
        self._metrics.shadows.labels(name, self._outcome).inc()

    async def _run(self, pool: Pool, job: Job, served: Served, fields: dict[str, Any]) -> None:
        await asyncio.sleep(DELAY_S)
        if self._count_live() > 0:
            return
        self._outcome, now_s = "preempted", time.monotonic()
        try:
            answer = await pool.submit(Job(job.fact, now_s, now_s + job.deadline_s - job.arrived_s))
            compared = compare(served, answer)
            self._outcome = "agreed" if compared["same_verdict"] else "differed"
            fields["shadow_ms"] = round((time.monotonic() - now_s) * 1e3, 2)
            logger.info("shadow compared", extra=fields | compared)
        except Exception as error:
            self._outcome = "failed"
            # Of a bug only the type is logged: its message may quote the fact.
            reason = error.reason if isinstance(error, RequestError) else type(error).__name__
            logger.info("shadow failed", extra=fields | {"error": reason})
