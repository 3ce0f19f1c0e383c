"""The life of variants: load beside what serves, promote, roll back, unload.

Memory: the workers of both models exist while a new one loads and while a canary, shadow or second
arm runs, three models at most (`MAX_LOADED`). After a promotion the old ones finish and end, unless
`keep_previous`. What is to be served is on the disk first. A load that fails changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from curt.artifact import ArtifactError, Format, Manifest
from serve.answering.answering import Pool
from serve.errors import RequestError
from serve.metrics import Metrics
from serve.pool.job import Job
from serve.pool.worker import CALIBRATION_TEXT
from serve.served import Identity
from serve.variants.canary import Comparison
from serve.variants.metrics import VariantMetrics
from serve.variants.plan import (
    CONFIGURED,
    OWN_FORMATS,
    ServingPlan,
    Source,
    VariantError,
    find_folder,
    verify,
)
from serve.variants.router import Router, Variant
from serve.variants.split import Role, Split

logger = logging.getLogger(__name__)

MAX_LOADED = 3
MAX_LOAD_DEATHS = 2  # of workers, before a load is given up; one may be bad luck
LOAD_TIMEOUT_S = 300.0
WARM_UP_S = 30.0  # for the one request a model answers before it may have traffic
GRACE_S = 0.25  # between the last request that was sent to a variant and its end
POLL_S = 0.05
EVENTS_KEPT = 100

MakePool = Callable[[Path, Manifest, Metrics], Pool]
Work = Coroutine[Any, Any, None]


class Variants:
    """The variants of one server, and the router over them."""

    def __init__(
        self,
        configured: Path,
        make_pool: MakePool,
        metrics: Metrics,
        *,
        models: Path | None = None,
        state: Path | None = None,
        keep_previous: bool = False,
        formats: Collection[Format] = OWN_FORMATS,
    ) -> None:
        """`make_pool` makes a pool over a verified folder; `state` is where the plan is kept.

        A promoted model that is gone or altered gives way to the one before, else to the configured
        one. Raises ArtifactError where that is not valid, ValueError where `state` can't be read.
        """
        self._configured, self._models, self._state = configured, models, state
        self._make_pool, self._formats, self._keep_previous = make_pool, formats, keep_previous
        self._metrics = VariantMetrics(metrics)
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._events: deque[dict[str, str]] = deque(maxlen=EVENTS_KEPT)
        self._loading: str | None = None
        self._wanted = ServingPlan.read(state, configured)
        first = self._open_first()
        first.state = "ready"  # as far as it depends on us: its pool says when
        self._plan = self._wanted.model_copy(update={"split": Split(live=first.name)})
        self.router = Router(first, self._metrics, self._on_rollback)

    @property
    def ready(self) -> bool:
        """Whether requests can be served now."""
        return self.router.ready

    async def start(self) -> None:
        """Start the live model, and load what else had traffic when the server ended."""
        await self.router.live.pool.start()
        self._spawn(self._resume())

    def drain(self) -> None:
        """Take no new requests in any variant."""
        self.router.drain()

    async def stop(self) -> None:
        """End what goes on here and every pool."""
        self.router.drain()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.router.stop()

    async def settled(self) -> None:
        """Wait until no load and no end of a variant is under way."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def describe(self) -> dict[str, Any]:
        """The state of everything, without a path of this machine."""
        router = self.router
        return {
            "previous": self._plan.previous,
            "loading": self._loading,
            "history": list(self._events),
            "live": router.split.live,
            "split": router.split.model_dump(),
            "canary": router.canary.figures() if router.canary else None,
            "variants": [
                {
                    "name": variant.name,
                    "state": variant.state,
                    "ready": variant.pool.ready,
                    "share": round(router.split.share_of(variant.name), 6),
                    "in_flight": variant.in_flight,
                    "model": variant.identity.model.model_dump(),
                    "note": variant.note,
                }
                for variant in router.variants.values()
            ],
        }

    # What administrators ask for

    async def load(self, name: str, folder: str, manifest_sha256: str | None = None) -> Variant:
        """Begin to load a folder below the models folder; returns while it loads.

        Raises VariantError for a bad folder, and where another model loads, the name is taken or
        too many are loaded.
        """
        async with self._lock:
            return await self._begin(name, folder, manifest_sha256)

    async def promote(
        self, name: str, role: Role = "live", share: float | None = None, *, force: bool = False
    ) -> None:
        """Give a loaded variant traffic: all of it, a share as canary or shadow, or a weight.

        `share` is from 0 to 1; as a weight it is what the variant gets beside the other arms. One
        whose warm-up answer was no verdict is promoted with `force` only. Raises VariantError;
        OSError where the plan can't be written.
        """
        async with self._lock:
            variant = self._find(name)
            if variant.state != "ready":
                raise VariantError("not_ready", f"{name} is {variant.state}: {variant.note}")
            if variant.note and not force:
                raise VariantError("doubtful", f"{name}: {variant.note}; promote it with force")
            before = self._plan
            try:
                split = before.split.with_role(name, role, share)
            except ValueError as error:
                raise VariantError("bad_role", str(error)) from None
            previous = before.split.live if split.live != before.split.live else before.previous
            await self._apply(before, split, previous)
            variant.note = ""
            self._remember(name, f"promoted to {role}")
            if role == "live":
                self._end_others(before.split)

    async def rollback(self) -> str:
        """End the canary if there is one, else go back to the previous live model.

        Returns the name of the variant that serves then. One whose workers have ended is loaded
        first, while the present one goes on serving. Raises VariantError where there is nothing
        to go back to.
        """
        async with self._lock:
            plan = self._plan
            if plan.split.canary:
                name = plan.split.canary.name
                await self._apply(plan, plan.split.without(name), plan.previous)
                self._remember(name, "canary ended")
                self._spawn(self._retire(name))
                return plan.split.live
            if plan.previous is None:
                raise VariantError("nothing_before", "no model was live before this one")
            if not await self._go_back():
                source = plan.placed[plan.previous]
                await self._begin(
                    plan.previous, source.folder, source.manifest_sha256, then=self._rolled_back
                )
            return plan.previous

    async def unload(self, name: str) -> None:
        """Take a variant's traffic away and end its workers once they have finished.

        Raises VariantError for the live one and for one that loads.
        """
        async with self._lock:
            variant = self._find(name)
            if name == self._plan.split.live:
                raise VariantError("is_live", f"{name} is live: promote another one first")
            if variant.state == "loading":
                raise VariantError("loading", f"{name} still loads: wait until it has")
            if variant.state != "draining":
                previous = None if self._plan.previous == name else self._plan.previous
                await self._apply(self._plan, self._plan.split.without(name), previous)
                self._spawn(self._retire(name))

    # Loading

    def _open_first(self) -> Variant:
        """The promoted model, else the one before it, else the configured one."""
        plan = self._wanted
        for name in (plan.split.live, plan.previous):
            if name is None:
                continue
            source = plan.placed[name]
            try:
                variant, _, _ = self._make(name, source.folder, source.manifest_sha256)
            except (ArtifactError, RequestError, OSError) as error:
                logger.error("the promoted variant %s can't be loaded: %s", name, error)
                continue
            if name != plan.split.live:
                self._wanted = plan.model_copy(update={"split": Split(live=name), "previous": None})
            return variant
        self._wanted = ServingPlan.first(self._configured)
        return self._make(CONFIGURED, None, None)[0]

    def _make(
        self, name: str, folder: str | None, manifest_sha256: str | None
    ) -> tuple[Variant, Metrics, Source]:
        """A variant over a verified folder, its pool not started; where it counts while it loads.

        `folder` is below the models folder, None for the configured one. Raises VariantError,
        ArtifactError, OSError.
        """
        made: list[Variant] = []

        def is_quiet() -> bool:
            if not made or made[0].state == "loading":
                return True
            shadow = self.router.split.shadow
            return shadow is not None and shadow.name == name

        path = self._configured if folder is None else find_folder(self._models, folder)
        if folder is not None and self._models is not None:  # a link may lead elsewhere one day
            folder = path.relative_to(self._models.resolve()).as_posix()
        manifest, digest = verify(path, manifest_sha256, self._formats)
        given, aside = self._metrics.for_pool(name, is_quiet)
        pool = self._make_pool(path, manifest, given)
        made.append(Variant(name, path, Identity.of(path, manifest), pool))
        return made[0], aside, Source(folder=folder, manifest_sha256=digest)

    async def _begin(
        self,
        name: str,
        folder: str | None,
        manifest_sha256: str | None,
        then: Callable[[], Work] | None = None,
    ) -> Variant:
        """Begin to load a model; `then` follows when it is ready."""
        if self._loading is not None:
            raise VariantError("loading", f"{self._loading} still loads: one at a time")
        old = self.router.variants.get(name)
        if old is not None and old.state != "failed":
            raise VariantError("name_taken", f"there is a variant {name}: unload it first")
        if len(self.router.variants) - (old is not None) >= MAX_LOADED:
            raise VariantError("too_many", f"{MAX_LOADED} are loaded: unload one first")
        self._loading = name
        try:
            variant, aside, source = await asyncio.to_thread(
                self._make, name, folder, manifest_sha256
            )
        except BaseException as error:
            self._loading = None
            if not isinstance(error, ValueError | OSError):  # an ArtifactError is a ValueError
                raise
            logger.error("variant %s can't be loaded: %s", name, error)
            raise VariantError("not_loadable", f"{name} is no model this server takes") from None
        if old is not None:
            self.router.remove(name)
        self.router.add(variant)
        self._plan = self._plan.model_copy(update={"placed": {**self._plan.placed, name: source}})
        self._spawn(self._bring_up(variant, aside, then))
        return variant

    async def _bring_up(
        self, variant: Variant, aside: Metrics, then: Callable[[], Work] | None
    ) -> None:
        """Start a variant's pool and let it answer one request; `aside` counts its deaths."""
        began_s, failure = time.monotonic(), ""
        try:
            await variant.pool.start()
            while not variant.pool.ready:
                deaths = aside.registry.get_sample_value("curt_worker_deaths_total") or 0
                if deaths >= MAX_LOAD_DEATHS:
                    raise VariantError("died", f"{deaths:.0f} workers ended; see the log")
                if time.monotonic() - began_s >= LOAD_TIMEOUT_S:
                    raise VariantError("slow", f"not ready after {LOAD_TIMEOUT_S:.0f} s")
                await asyncio.sleep(POLL_S)
            now_s = time.monotonic()
            job = Job(CALIBRATION_TEXT, now_s, now_s + WARM_UP_S)
            if (await variant.pool.submit(job)).model_verdict is None:
                variant.note = "its warm-up answer was no verdict"
        except RequestError as error:
            failure = str(error)
        except Exception as error:  # a bug in a pool must not look like a load that goes on
            logger.exception("loading %s failed", variant.name)
            failure = type(error).__name__
        finally:
            self._loading = None
        if failure:
            variant.state, variant.note = "failed", failure
            logger.error("variant %s was not loaded: %s", variant.name, failure)
            self._remember(variant.name, f"not loaded: {failure}")
            await variant.pool.stop()
            return
        variant.state = "ready"
        seconds = time.monotonic() - began_s
        logger.info("variant %s loaded in %.1f s", variant.name, seconds)
        self._remember(variant.name, f"loaded in {seconds:.1f} s")
        if then is not None:
            await then()

    async def _resume(self) -> None:
        """Load what else had traffic before the restart, one after the other."""
        wanted = self._wanted
        split = wanted.split
        while not self.router.ready:
            await asyncio.sleep(POLL_S)
        for name in sorted(split.names - {split.live}):
            source = wanted.placed[name]
            try:
                async with self._lock:
                    loading = await self._begin(name, source.folder, source.manifest_sha256)
            except RequestError as error:
                logger.error("variant %s is not back: %s", name, error)
                continue
            while loading.state == "loading":
                await asyncio.sleep(POLL_S)
        for name in split.names - {split.live}:
            back = self.router.variants.get(name)
            if back is None or back.state != "ready":
                split = split.without(name)
        async with self._lock:
            nobody_decided_otherwise = self._plan.split == Split(live=split.live)
            if nobody_decided_otherwise and split != self._plan.split:
                await self._apply(self._plan, split, self._plan.previous)

    # Changes of what serves

    async def _apply(self, base: ServingPlan, split: Split, previous: str | None) -> None:
        """Write the new plan to disk, then serve by it."""
        keep = split.names | {previous} | self.router.variants.keys()
        placed = {name: source for name, source in self._plan.placed.items() if name in keep}
        plan = ServingPlan(
            configured=base.configured, split=split, placed=placed, previous=previous
        )
        await asyncio.to_thread(plan.write, self._state)
        if self._plan.split != base.split:
            # A canary fell while the disk was written to; its task writes the file again.
            raise VariantError("changed", "a canary was rolled back just now: look again")
        self.router.set_split(split)
        self._plan = plan

    async def _go_back(self) -> bool:
        """Make the previous model live again; False where it is not loaded."""
        plan = self._plan
        back = self.router.variants.get(plan.previous) if plan.previous else None
        if back is None or back.state != "ready":
            return False
        await self._apply(plan, Split(live=back.name), None)
        self._remember(back.name, f"live again, after {plan.split.live}")
        self._end_others(plan.split)
        return True

    async def _rolled_back(self) -> None:
        """The previous model is loaded again: go back to it, unless that is no longer wanted."""
        async with self._lock:
            await self._go_back()

    def _end_others(self, before: Split) -> None:
        """End what had a part while another was live: trials were trials against that one."""
        for name in sorted(before.names - {self._plan.split.live}):
            if name != before.live or not self._keep_previous:
                self._spawn(self._retire(name))

    async def _retire(self, name: str) -> None:
        """End a variant that has no traffic any more, once it has finished what it took."""
        variant = self.router.variants.get(name)
        if variant is None or variant.state == "draining":
            return
        variant.state = "draining"
        await asyncio.sleep(GRACE_S)  # requests that chose it a moment ago still arrive
        await self.router.shadow.close()
        await variant.pool.stop()
        self.router.remove(name)
        logger.info("variant %s unloaded", name)
        self._remember(name, "unloaded")

    def _on_rollback(self, name: str, why: Comparison) -> None:
        """A canary has lost its traffic already: write that to disk, and end its workers."""
        self._plan = self._plan.model_copy(update={"split": self.router.split})
        self._remember(name, f"rolled back for its {why}")

        async def settle() -> None:
            async with self._lock:
                await asyncio.to_thread(self._plan.write, self._state)
            await self._retire(name)

        self._spawn(settle())

    def _find(self, name: str) -> Variant:
        variant = self.router.variants.get(name)
        if variant is None:
            known = ", ".join(self.router.variants)
            raise VariantError("unknown_variant", f"no such variant: there are {known}", 404)
        return variant

    def _remember(self, name: str, event: str) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._events.append({"at": at, "variant": name, "event": event})

    def _spawn(self, work: Work) -> None:
        """Do some work beside requests; it is held until it ends, and its error logged."""
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error("a change of variants failed", exc_info=error)
