"""Which variant answers a request, and what is counted of it.

`choose` names the variant of a request by the split of traffic; the request is then submitted to
the `Route` it gave. A canary that does worse than the live variant (see `serve.variants.canary`)
loses its traffic between two requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from serve.answering.answering import Pool
from serve.errors import OverloadedError, RequestError
from serve.pool.job import Job, ServedStream
from serve.served import Identity, Served
from serve.variants.canary import Arm, CanaryObservation, CanaryTest, Comparison
from serve.variants.metrics import Ending, VariantMetrics
from serve.variants.plan import Source
from serve.variants.shadow import Shadow
from serve.variants.split import Split, routing_key

logger = logging.getLogger(__name__)

LATENCIES_KEPT = 1000  # of each variant, for what a canary is compared with
State = Literal["loading", "ready", "draining", "failed"]


@dataclass(slots=True, eq=False)
class Variant:
    """A model, where it lies, the pool that runs it, and its state.

    `note` says why it failed, is doubtful or was rolled back; `in_flight` counts requests of
    clients.
    """

    name: str
    source: Source
    identity: Identity
    pool: Pool
    state: State = "loading"
    note: str = ""
    in_flight: int = 0
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES_KEPT))


class Router:
    """Assigns requests to variants and watches the canary."""

    def __init__(
        self,
        first: Variant,
        metrics: VariantMetrics,
        on_rollback: Callable[[str, Comparison], None] = lambda name, why: None,
    ) -> None:
        """All traffic goes to `first` until `set_split` says otherwise."""
        self.variants: dict[str, Variant] = {first.name: first}
        self.split = Split(live=first.name)
        self.canary: CanaryTest | None = None
        self.shadow = Shadow(metrics, lambda: sum(v.in_flight for v in self.variants.values()))
        self._metrics, self._on_rollback = metrics, on_rollback
        self._draining = False
        metrics.is_quiet = self._is_quiet
        metrics.announce(first.name)
        self._show_shares()

    @property
    def live(self) -> Variant:
        """The variant that answers what no policy sends elsewhere."""
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
        await self.shadow.close()
        await asyncio.gather(*(variant.pool.stop() for variant in self.variants.values()))

    def choose(self, fact: str, user: str | None = None, request_id: str | None = None) -> Route:
        """The route of a request: the same for the same user, or without one for the same case."""
        plain = self.split.canary is None and not self.split.weights
        name = self.split.live if plain else self.split.assign(routing_key(fact, user))
        variant = self.variants[name]
        if name != self.split.live and not (variant.state == "ready" and variant.pool.ready):
            self._metrics.rerouted.labels(name).inc()
            # Without this a canary that is dead would never look bad.
            self._observe(variant, CanaryObservation(error=True))
            variant = self.live
        return Route(self, variant, user, request_id)

    def add(self, variant: Variant) -> None:
        """Know one more variant, which gets no traffic yet."""
        self.variants[variant.name] = variant
        self._metrics.announce(variant.name)
        if self._draining:
            variant.pool.drain()

    def remove(self, name: str) -> None:
        """Forget a variant. Raises ValueError where it has a part in the split."""
        if name in self.split.names:
            raise ValueError(f"{name} has traffic: take it out of the split first")
        self._metrics.forget(name)
        del self.variants[name]

    def set_split(self, split: Split) -> None:
        """Split traffic anew, from the next request on.

        A canary whose share changes keeps what was counted of it, unless the live variant changes.
        Raises ValueError where a variant that is to have a part in the split is not ready.
        """
        for name in split.names - {self.split.live}:
            if name not in self.variants or self.variants[name].state != "ready":
                raise ValueError(f"{name} is not ready: load it, and wait until it is")
        before, self.split = self.split, split
        same = before.canary and split.canary and before.canary.name == split.canary.name
        if split.canary is None:
            self.canary = None
        elif not same or before.live != split.live:
            self.canary = CanaryTest(self.live.latencies_s)
        self._show_shares()

    def began(self, variant: Variant) -> None:
        """Count a request that a variant has now."""
        variant.in_flight += 1
        self.shadow.make_way()

    def ended(self, route: Route, job: Job, how: Served | BaseException) -> None:
        """Count the end of a request, by its answer or by what it ended with instead."""
        variant = route.chosen
        variant.in_flight -= 1
        if isinstance(how, Served):
            self._answered(route, job, how)
        elif isinstance(how, asyncio.CancelledError | GeneratorExit):
            self._count(variant, "cancelled")
        else:
            self._count(variant, "refused" if isinstance(how, OverloadedError) else "failed")
            # A draining pool says nothing of its model, nor does a client's mistake.
            blameless = isinstance(how, RequestError) and (
                how.status < 500 or how.reason == "draining"
            )
            if not blameless:
                self._observe(variant, CanaryObservation(error=True))

    def _answered(self, route: Route, job: Job, served: Served) -> None:
        """Count an answer, compare it with the baseline and let the shadow have a copy."""
        variant, seconds = route.chosen, time.monotonic() - job.arrived_s
        degraded = served.model_verdict is None
        variant.latencies_s.append(seconds)
        self._count(variant, "degraded" if degraded else "full")
        self._metrics.latency.labels(variant.name).observe(seconds)
        self._observe(variant, CanaryObservation(degraded=degraded, seconds=seconds))
        if self.split.shadow is None or variant is not self.live or self._draining:
            return
        name = self.split.shadow_for(routing_key(job.fact, route.user))
        if name is not None and self.variants[name].pool.ready:
            fields = {"request_id": route.request_id, "variant": variant.name}
            self.shadow.offer(name, self.variants[name].pool, job, served, fields)

    def _observe(self, variant: Variant, observation: CanaryObservation) -> None:
        canary = self.split.canary
        if self.canary is None or canary is None:
            return
        arms: Mapping[str, Arm] = {canary.name: "canary", self.split.live: "baseline"}
        arm = arms.get(variant.name)
        worse = self.canary.observe(arm, observation) if arm else None
        if worse is None:
            return
        self.set_split(self.split.without(canary.name))
        self.variants[canary.name].note = f"rolled back for its {worse}"
        self._metrics.rollbacks.labels(worse.rate).inc()
        share = worse.share("canary")
        fields = {"variant": canary.name, "rate": worse.rate, "canary_rate": share}
        logger.error("canary %s rolled back: %s", canary.name, worse, extra=fields)
        self._on_rollback(canary.name, worse)

    def _is_quiet(self, name: str) -> bool:
        """Whether a variant serves nobody: it loads, or is only a shadow."""
        shadow, variant = self.split.shadow, self.variants.get(name)
        is_shadow = shadow is not None and shadow.name == name
        return variant is None or variant.state == "loading" or is_shadow

    def _count(self, variant: Variant, ending: Ending) -> None:
        self._metrics.requests.labels(variant.name, ending).inc()

    def _show_shares(self) -> None:
        for name in self.variants:
            self._metrics.share.labels(name).set(self.split.share_of(name))


@dataclass(frozen=True, slots=True)
class Route:
    """The way of one request: which variant answers it, as which model."""

    router: Router
    chosen: Variant
    user: str | None
    request_id: str | None

    @property
    def variant(self) -> str:
        """The variant's name, for the reply and the log line."""
        return self.chosen.name

    @property
    def identity(self) -> Identity:
        """The model that answers."""
        return self.chosen.identity

    async def submit(self, job: Job) -> Served:
        """Serve the job on this variant or raise a RequestError."""
        self.router.began(self.chosen)
        try:
            served = await self.chosen.pool.submit(job)
        except BaseException as error:
            self.router.ended(self, job, error)
            raise
        self.router.ended(self, job, served)
        return served

    def stream(self, job: Job) -> ServedStream:
        """Serve the job on this variant and stream its reasoning; raises as the pool's `stream`."""
        self.router.began(self.chosen)
        try:
            stream = self.chosen.pool.stream(job)
        except BaseException as error:
            self.router.ended(self, job, error)
            raise
        stream.on_end(lambda how: self.router.ended(self, job, how))
        return stream

    def expected_thinking(self, job: Job) -> int | None:
        """Thinking tokens this variant would grant a job now; None where it would refuse it."""
        return self.chosen.pool.expected_thinking(job)
