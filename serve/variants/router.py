"""Several models behind one pool: who answers, who is tried out, who is only watched.

A `Router` does what a pool does, so the routes need not know of it; those that want the variant's
name and identity ask `choose` first and submit to the `Route` they get. A canary that does worse
than the live variant (see `serve.variants.canary`) loses its traffic between two requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from serve.answering.answering import Pool
from serve.errors import OverloadedError, RequestError
from serve.pool.job import Job, Piece, ServedStream
from serve.served import Identity, Served
from serve.variants.canary import Alarm, Arm, CanaryLimits, Outcome, Watch
from serve.variants.metrics import Ending, VariantMetrics
from serve.variants.shadow import ShadowRunner, verdict_in
from serve.variants.split import Split, routing_key

logger = logging.getLogger(__name__)

LATENCIES_KEPT = 1000  # of each variant, for what a canary is held against
State = Literal["loading", "ready", "draining", "failed"]


@dataclass(slots=True, eq=False)
class Variant:
    """A model folder, the pool that runs it, and how it stands.

    `note` says why it failed or was rolled back; `in_flight` counts requests for clients.
    """

    name: str
    folder: Path
    identity: Identity
    pool: Pool
    state: State = "loading"
    note: str = ""
    in_flight: int = 0
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=LATENCIES_KEPT))


class Router:
    """A pool made of the pools of variants."""

    def __init__(
        self,
        first: Variant,
        metrics: VariantMetrics,
        *,
        limits: CanaryLimits | None = None,
        max_live_beside_shadow: int = 0,
        on_rollback: Callable[[str, Alarm], None] = lambda name, alarm: None,
    ) -> None:
        """All traffic goes to `first` until `set_split` says otherwise."""
        self.variants: dict[str, Variant] = {first.name: first}
        self.on_rollback = on_rollback
        self._metrics = metrics
        self._limits = limits or CanaryLimits()
        self._shadow = ShadowRunner(metrics, self._count_live, max_live_beside_shadow)
        self._split = Split(live=first.name)
        self._watch: Watch | None = None
        self._draining = False
        metrics.announce(first.name)
        self._show_shares()

    @property
    def split(self) -> Split:
        """How traffic is split now."""
        return self._split

    @property
    def live(self) -> Variant:
        """The variant that answers what no policy sends elsewhere."""
        return self.variants[self._split.live]

    @property
    def ready(self) -> bool:
        """Whether the live variant is ready: no other is needed to serve."""
        return not self._draining and self.live.pool.ready

    @property
    def canary_figures(self) -> dict[str, dict[str, float]] | None:
        """How the canary compares up to now; None without one."""
        return self._watch.figures() if self._watch else None

    async def start(self) -> None:
        """Begin to start the live variant's pool."""
        await self.live.pool.start()

    def drain(self) -> None:
        """Take no new requests in any variant."""
        self._draining = True
        for variant in self.variants.values():
            variant.pool.drain()

    async def stop(self) -> None:
        """Finish what was taken everywhere and end every pool."""
        self.drain()
        await self._shadow.close()
        await asyncio.gather(*(variant.pool.stop() for variant in self.variants.values()))

    async def submit(self, job: Job) -> Served:
        """Serve a job on the variant of its case."""
        return await self.choose(job.fact).submit(job)

    def stream(self, job: Job) -> ServedStream:
        """Serve a job and tell its reasoning, on the variant of its case."""
        return self.choose(job.fact).stream(job)

    def expected_thinking(self, job: Job) -> int | None:
        """Thinking tokens the variant of its case would grant a job now."""
        return self.variants[self._assign(job.fact, None)].pool.expected_thinking(job)

    def choose(self, fact: str, *, user: str | None = None, request_id: str | None = None) -> Route:
        """The way a request goes: the same for the same user, or without one for the same case."""
        name = self._assign(fact, user)
        variant = self.variants[name]
        if name != self._split.live and not (variant.state == "ready" and variant.pool.ready):
            self._metrics.rerouted.labels(name).inc()
            self._observe(variant, Outcome(error=True))  # or a dead canary would never look bad
            variant = self.live
        return Route(self, variant, user, request_id)

    def add(self, variant: Variant) -> None:
        """Know one more variant, which gets no traffic yet."""
        if variant.name in self.variants:
            raise ValueError(f"there is a variant {variant.name} already: unload it first")
        self.variants[variant.name] = variant
        self._metrics.announce(variant.name)
        if self._draining:
            variant.pool.drain()

    def remove(self, name: str) -> Variant:
        """Forget a variant that has no part in the split."""
        if name in self._split.names:
            raise ValueError(f"{name} has traffic: take it out of the split first")
        self._metrics.forget(name)
        return self.variants.pop(name)

    def set_split(self, split: Split) -> None:
        """Split traffic anew, from the next request on.

        Raises ValueError where a variant that is to have a part in it is not ready. A canary
        whose share changes keeps what was counted of it, unless the live variant changes.
        """
        for name in split.names - {self._split.live}:
            if name not in self.variants or self.variants[name].state != "ready":
                raise ValueError(f"{name} is not ready: load it, and wait until it is")
        before, self._split = self._split, split
        same = before.canary and split.canary and before.canary.name == split.canary.name
        if split.canary is None:
            self._watch = None
        elif not same or before.live != split.live:
            self._watch = Watch(self._limits, self.live.latencies_s)
        self._show_shares()

    def record(self, variant: Variant, job: Job, served: Served) -> None:
        """Count an answer and hold it against the baseline."""
        seconds = time.monotonic() - job.arrived_s
        degraded = verdict_in(served) is None
        variant.latencies_s.append(seconds)
        self._count(variant, "degraded" if degraded else "full")
        self._metrics.latency.labels(variant.name).observe(seconds)
        self._observe(variant, Outcome(degraded=degraded, seconds=seconds))

    def offer_shadow(
        self, variant: Variant, user: str | None, job: Job, served: Served, request_id: str | None
    ) -> None:
        """Let the shadow have a copy of what the live variant answered."""
        if self._split.shadow is None or variant is not self.live or self._draining:
            return
        name = self._split.shadow_for(routing_key(job.fact, user))
        if name is None:
            return
        shadow = self.variants[name]
        if shadow.pool.ready:
            self._shadow.offer(name, shadow.pool, job, served, variant.name, request_id)

    @contextmanager
    def under_way(self, variant: Variant) -> Iterator[None]:
        """Around one request: counts it, and what becomes of it when it fails."""
        variant.in_flight += 1
        self._shadow.make_way()
        try:
            yield
        except RequestError as fault:
            # A pool that drains says nothing of its model, and what the client did wrong neither.
            is_refusal = isinstance(fault, OverloadedError)
            self._count(variant, "refused" if is_refusal else "failed")
            if fault.status >= 500 and fault.reason != "draining":
                self._observe(variant, Outcome(error=True))
            raise
        except (asyncio.CancelledError, GeneratorExit):
            self._count(variant, "cancelled")
            raise
        except Exception:
            self._count(variant, "failed")
            self._observe(variant, Outcome(error=True))
            raise
        finally:
            variant.in_flight -= 1

    async def stop_shadow(self) -> None:
        """Stop the copy that runs now, if one does."""
        await self._shadow.close()

    def _observe(self, variant: Variant, outcome: Outcome) -> None:
        canary = self._split.canary
        if self._watch is None or canary is None:
            return
        arms: Mapping[str, Arm] = {canary.name: "canary", self._split.live: "baseline"}
        arm = arms.get(variant.name)
        alarm = self._watch.observe(arm, outcome) if arm else None
        if alarm is None:
            return
        self.set_split(self._split.without(canary.name))
        self.variants[canary.name].note = f"rolled back for its {alarm}"
        self._metrics.rollbacks.labels(alarm.rate).inc()
        fields = {"variant": canary.name, "rate": alarm.rate, "canary_rate": alarm.canary}
        logger.error("canary %s rolled back: %s", canary.name, alarm, extra=fields)
        self.on_rollback(canary.name, alarm)

    def _assign(self, fact: str, user: str | None) -> str:
        """The variant of a case or user; the key is worked out only where it decides anything."""
        split = self._split
        return split.live if split.is_plain else split.assign(routing_key(fact, user))

    def _count(self, variant: Variant, ending: Ending) -> None:
        self._metrics.requests.labels(variant.name, ending).inc()

    def _count_live(self) -> int:
        return sum(variant.in_flight for variant in self.variants.values())

    def _show_shares(self) -> None:
        for name in self.variants:
            self._metrics.share.labels(name).set(self._split.share_of(name))


class Route:
    """The way of one request: which variant answers it, as which model."""

    def __init__(
        self, router: Router, variant: Variant, user: str | None, request_id: str | None
    ) -> None:
        self._router, self._variant = router, variant
        self._user, self._request_id = user, request_id

    @property
    def variant(self) -> str:
        """The variant's name, for the reply and the log line."""
        return self._variant.name

    @property
    def identity(self) -> Identity:
        """The model that answers."""
        return self._variant.identity

    async def submit(self, job: Job) -> Served:
        """Serve the job on this variant or raise a RequestError."""
        with self._router.under_way(self._variant):
            served = await self._variant.pool.submit(job)
        self.done(job, served)
        return served

    def stream(self, job: Job) -> ServedStream:
        """Serve the job on this variant, telling its reasoning; raises as the pool's `stream`."""
        return RoutedStream(self._router, self._variant, job, self.done)

    def expected_thinking(self, job: Job) -> int | None:
        """Thinking tokens this variant would grant a job now; None where it would refuse it."""
        return self._variant.pool.expected_thinking(job)

    def done(self, job: Job, served: Served) -> None:
        """Count the answer, and let the shadow have a copy."""
        self._router.record(self._variant, job, served)
        self._router.offer_shadow(self._variant, self._user, job, served, self._request_id)


class RoutedStream(ServedStream):
    """A variant's stream that is counted when it ends."""

    def __init__(
        self,
        router: Router,
        variant: Variant,
        job: Job,
        done: Callable[[Job, Served], None],
    ) -> None:
        # Not ServedStream's own: all it does is done by the stream within.
        self._job, self._done = job, done
        self._around = router.under_way(variant)
        self._around.__enter__()
        self._ended = False
        try:
            self._inner = variant.pool.stream(job)
        except BaseException as error:
            self._end(error)
            raise

    def __aiter__(self) -> RoutedStream:
        return self

    async def __anext__(self) -> Piece | Served:
        try:
            event = await anext(self._inner)
        except StopAsyncIteration:
            raise
        except BaseException as error:
            self._end(error)
            raise
        if isinstance(event, Served):
            self._end(None)
            self._done(self._job, event)
        return event

    def close(self) -> None:
        """Give up what is not done yet; harmless afterwards."""
        self._inner.close()
        self._end(asyncio.CancelledError())

    def _end(self, error: BaseException | None) -> None:
        if self._ended:
            return
        self._ended = True
        try:
            self._around.__exit__(type(error) if error else None, error, None)
        except BaseException as raised:
            if raised is not error:
                raise
