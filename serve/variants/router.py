"""Which variant answers a request, which one gets a copy, and what is counted of both.

`choose` draws the variant of a request by the split of traffic; the request is then submitted to
it. A canary that does worse than the live variant (see `serve.variants.canary`) loses its traffic
between two requests.

Copies for a shadow are compared, counted, and never returned. They have the lowest priority: one
starts only once the answer has been given and while no other request is under way, one at a time,
and stops when another request comes. So quiet moments are seen more often than busy ones. A copy
has as much time as the request had.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field
from typing import Literal

from curt.law.verdict import Verdict
from serve.answering.answering import Pool
from serve.errors import RequestError
from serve.pool.job import Job, ServedStream
from serve.served import Identity, Served
from serve.variants.canary import CanaryTest, Rate
from serve.variants.metrics import Ending, ShadowEnding, VariantMetrics
from serve.variants.split import Split

logger = logging.getLogger(__name__)

COPY_DELAY_S = 0.005  # for the reply to be written and sent first
State = Literal["loading", "ready", "draining", "failed"]


@dataclass(slots=True, eq=False)
class Variant:
    """A model, the pool that runs it, and its state; the way of a request to it.

    `folder` lies below the models folder, or is None for the configured model. `note` says why it
    failed, is doubtful or was rolled back; `in_flight` counts requests of clients.
    """

    name: str
    folder: str | None
    identity: Identity
    pool: Pool
    router: Router = field(init=False)
    state: State = "loading"
    note: str = ""
    in_flight: int = 0

    async def submit(self, job: Job) -> Served:
        """Serve a job on this variant or raise a RequestError."""
        if job.background:  # which tells nothing of latency
            return await self.pool.submit(job)
        self.router.began(self)
        try:
            served = await self.pool.submit(job)
        except BaseException as error:
            self.router.ended(self, job, error)
            raise
        self.router.ended(self, job, served)
        return served

    def stream(self, job: Job) -> ServedStream:
        """Serve a job on this variant and stream its reasoning; raises as the pool's `stream`."""
        self.router.began(self)
        try:
            stream = self.pool.stream(job)
        except BaseException as error:
            self.router.ended(self, job, error)
            raise
        stream.on_end(lambda how: self.router.ended(self, job, how))
        return stream

    def expected_thinking(self, job: Job) -> int | None:
        """Thinking tokens this variant would grant a job now; None where it would refuse it."""
        return self.pool.expected_thinking(job)


def differing_parts(one: Verdict, other: Verdict) -> list[str]:
    """The parts in which two verdicts differ; the order of charges and articles does not count."""
    same = {
        "charges": set(one.charges) == set(other.charges),
        "articles": set(one.articles) == set(other.articles),
        "term": one.term == other.term,
    }
    return [part for part, is_same in same.items() if not is_same]


class Router:
    """Assigns requests to variants, watches the canary, and runs copies for the shadow."""

    def __init__(self, first: Variant, metrics: VariantMetrics) -> None:
        """All traffic goes to `first` until `set_split` says otherwise."""
        first.router = self
        self.variants = {first.name: first}
        self.metrics = metrics
        self._copy: asyncio.Task[None] | None = None
        self._copy_ending: ShadowEnding = "dropped"
        self._draining = False
        self.set_split(Split(first.name))

    @property
    def live(self) -> Variant:
        """The variant that answers what no trial takes."""
        return self.variants[self.split.live]

    @property
    def ready(self) -> bool:
        """Whether the live variant is ready: no other is needed to serve."""
        return not self._draining and self.live.pool.ready

    def drain(self) -> None:
        """Take no new requests in any variant."""
        self._draining = True
        for variant in self.variants.values():
            variant.pool.drain()

    async def stop(self) -> None:
        """Finish what was taken everywhere and end every pool."""
        self.drain()
        await self.stop_copy()
        await asyncio.gather(*(variant.pool.stop() for variant in self.variants.values()))

    def choose(self) -> Variant:
        """The variant of a new request."""
        variant = self.variants[self.split.assign(random.random())]
        if variant is self.live or (variant.state == "ready" and variant.pool.ready):
            return variant
        self._count(variant, "rerouted")
        # Without this a canary that is dead would never look bad.
        self._observe(variant, time.monotonic(), "errors")
        return self.live

    def add(self, variant: Variant) -> None:
        """Know one more variant, which gets no traffic yet."""
        variant.router = self
        self.variants[variant.name] = variant
        self.metrics.show_split(self.split, self.variants)
        if self._draining:
            variant.pool.drain()

    def remove(self, name: str) -> None:
        """Forget a variant, which must have no part in the split."""
        assert name not in (self.split.live, *self.split.trials)
        self.metrics.forget(name)
        del self.variants[name]

    def set_split(self, split: Split) -> None:
        """Split traffic anew, from the next request on; the test of a canary begins again."""
        self.split, self._split_s = split, time.monotonic()
        self.canary: CanaryTest | None = None
        if canary := split.named("canary"):
            share = split.share_of(canary)
            self.canary = CanaryTest(share / (share + split.share_of(split.live)))
        self.metrics.show_split(split, self.variants)

    def began(self, variant: Variant) -> None:
        """Count a request that a variant has now."""
        variant.in_flight += 1
        if self._copy is not None:
            self._copy.cancel()

    def ended(self, variant: Variant, job: Job, how: Served | BaseException) -> None:
        """Count the end of a request, by its answer or by what it ended with instead."""
        variant.in_flight -= 1
        if isinstance(how, Served):
            now_s = time.monotonic()
            failure: Literal["degraded", "late"] | None = None
            if how.model_verdict is None or now_s > job.deadline_s:
                failure = "degraded" if how.model_verdict is None else "late"
            self._count(variant, failure or "full")
            self.metrics.latency.labels(variant.name).observe(now_s - job.arrived_s)
            self._observe(variant, job.arrived_s, failure)
            self._offer_copy(variant, job, how)
        elif isinstance(how, asyncio.CancelledError | GeneratorExit):
            self._count(variant, "cancelled")
        else:
            status = how.status if isinstance(how, RequestError) else 500
            self._count(variant, "failed" if status == 500 else "refused")
            # A draining pool says nothing of its model, nor does a client's mistake.
            if status >= 500 and getattr(how, "reason", "") != "draining":
                self._observe(variant, job.arrived_s, "errors")

    async def stop_copy(self) -> None:
        """Stop the copy for a shadow that runs and wait for its end."""
        if self._copy is not None:
            self._copy.cancel()
            await asyncio.wait({self._copy})

    def _offer_copy(self, variant: Variant, job: Job, served: Served) -> None:
        """Let the shadow have its share of what the live variant answered. Returns at once."""
        name = self.split.named("shadow")
        if name is None or variant is not self.live or self._draining:
            return
        shadow, share = self.variants[name], self.split.trials[name].share
        if not shadow.pool.ready or random.random() >= share:
            return
        if self._copy is not None:
            self.metrics.shadows.labels(name, "dropped").inc()
            return
        self._copy_ending = "dropped"
        self._copy = asyncio.create_task(self._run_copy(shadow, job, served))
        self._copy.add_done_callback(lambda _: self._end_copy(name))

    def _end_copy(self, name: str) -> None:
        self._copy = None
        self.metrics.shadows.labels(name, self._copy_ending).inc()

    async def _run_copy(self, shadow: Variant, job: Job, served: Served) -> None:
        await asyncio.sleep(COPY_DELAY_S)
        if any(variant.in_flight for variant in self.variants.values()):
            return
        self._copy_ending, now_s = "preempted", time.monotonic()
        copy = Job(job.fact, now_s, now_s + job.deadline_s - job.arrived_s)
        try:
            one, other = served.model_verdict, (await shadow.pool.submit(copy)).model_verdict
        except Exception as error:
            self._copy_ending = "failed"
            # Of a bug only the type is logged: its message may quote the fact.
            reason = error.reason if isinstance(error, RequestError) else type(error).__name__
            logger.info("shadow failed", extra={"shadow": shadow.name, "error": reason})
            return
        if one is None or other is None:
            self._copy_ending = "degraded"
            return
        differing = differing_parts(one, other)
        self._copy_ending = "differed" if differing else "agreed"
        for part in differing:
            self.metrics.shadow_differences.labels(shadow.name, part).inc()

    def _observe(self, variant: Variant, arrived_s: float, failure: Rate | None) -> None:
        """Tell the test of a canary how a request went, if it arrived under the present split."""
        name = self.split.named("canary")
        if self.canary is None or name is None or arrived_s < self._split_s:
            return
        if variant.name not in (name, self.split.live):
            return
        worse = self.canary.observe("canary" if variant.name == name else "baseline", failure)
        if worse is None:
            return
        canary, why = self.variants[name], self.canary.explain(worse)
        canary.note = f"rolled back for its {why}"
        self.metrics.rollbacks.labels(worse).inc()
        logger.error("canary %s rolled back: %s", name, why, extra={"variant": name, "rate": worse})
        self.set_split(self.split.without(name))

    def _count(self, variant: Variant, ending: Ending) -> None:
        self.metrics.requests.labels(variant.name, ending).inc()
