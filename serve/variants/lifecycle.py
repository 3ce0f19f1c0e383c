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
        self._previous: tuple[str, Source] | None = None
        self._wanted = ServingPlan.read(state, configured)
        first = self._open_first()
        first.state = "ready"  # as far as it depends on us: its pool says when
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
            "previous": self._previous and self._previous[0],
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

    async def load(self, name: str, folder: str, manifest_sha256: str | None = None) -> None:
        """Begin to load a folder below the models folder; returns while it loads.

        Raises VariantError for a bad folder, and where another model loads, the name is taken or
        too many are loaded.
        """
        async with self._lock:
            await self._begin(name, Source(folder=folder, manifest_sha256=manifest_sha256))

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
            before, previous = self.router.split, self._previous
            try:
                split = before.with_role(name, role, share)
            except ValueError as error:
                raise VariantError("bad_role", str(error)) from None
            if split.live != before.live:
                previous = (before.live, self.router.live.source)
            await self._apply(split, previous)
            variant.note = ""
            self._remember(name, f"promoted to {role}")
            if role == "live":
                self._end_others(before)

    async def rollback(self) -> str:
        """End the canary if there is one, else go back to the previous live model.

        Returns the name of the variant that serves then. One whose workers have ended is loaded
        first, while the present one goes on serving. Raises VariantError where there is nothing
        to go back to.
        """
        async with self._lock:
            split = self.router.split
            if split.canary:
                name = split.canary.name
                await self._apply(split.without(name), self._previous)
                self._remember(name, "canary ended")
                self._spawn(self._retire(name))
                return split.live
            if self._previous is None:
                raise VariantError("nothing_before", "no model was live before this one")
            name, source = self._previous
            if not await self._go_back():
                await self._begin(name, source, go_back=True)
            return name

    async def unload(self, name: str) -> None:
        """Take a variant's traffic away and end its workers once they have finished.

        Raises VariantError for the live one and for one that loads.
        """
        async with self._lock:
            variant = self._find(name)
            if name == self.router.split.live:
                raise VariantError("is_live", f"{name} is live: promote another one first")
            if variant.state == "loading":
                raise VariantError("loading", f"{name} still loads: wait until it has")
            if variant.state != "draining":
                kept = self._previous if self._previous and self._previous[0] != name else None
                await self._apply(self.router.split.without(name), kept)
                self._spawn(self._retire(name))

    # Loading

    def _open_first(self) -> Variant:
        """The promoted model, else the one before it, else the configured one."""
        plan = self._wanted
        for name in filter(None, (plan.split.live, plan.previous)):
            try:
                variant = self._make(name, plan.placed[name])
            except (ArtifactError, RequestError, OSError) as error:
                logger.error("the promoted variant %s can't be loaded: %s", name, error)
                continue
            if name != plan.split.live:
                self._wanted = plan.model_copy(update={"split": Split(live=name)})
            elif plan.previous:
                self._previous = (plan.previous, plan.placed[plan.previous])
            return variant
        self._wanted = ServingPlan.first(self._configured)
        return self._make(CONFIGURED, self._wanted.placed[CONFIGURED])

    def _make(self, name: str, source: Source) -> Variant:
        """A variant over a verified folder, its pool not started.

        Raises VariantError, ArtifactError, OSError.
        """
        path, folder = self._configured, source.folder
        if folder is not None:
            path = find_folder(self._models, folder)
            if self._models is not None:  # a link may lead elsewhere one day
                folder = path.relative_to(self._models.resolve()).as_posix()
        manifest, digest = verify(path, source.manifest_sha256, self._formats)
        pool = self._make_pool(path, manifest, self._metrics.for_pool(name))
        verified = Source(folder=folder, manifest_sha256=digest)
        return Variant(name, verified, Identity.of(path, manifest), pool)

    async def _begin(
        self, name: str, source: Source, *, go_back: bool = False
    ) -> asyncio.Task[None]:
        """Begin to load a model, to serve as the previous one again if `go_back`.

        The task ends when the model is ready or has failed.
        """
        if self._loading is not None:
            raise VariantError("loading", f"{self._loading} still loads: one at a time")
        old = self.router.variants.get(name)
        if old is not None and old.state != "failed":
            raise VariantError("name_taken", f"there is a variant {name}: unload it first")
        if len(self.router.variants) - (old is not None) >= MAX_LOADED:
            raise VariantError("too_many", f"{MAX_LOADED} are loaded: unload one first")
        if old is not None:
            self.router.remove(name)
        try:
            variant = await asyncio.to_thread(self._make, name, source)
        except (ArtifactError, OSError) as error:
            logger.error("variant %s can't be loaded: %s", name, error)
            raise VariantError("not_loadable", f"{name} is no model this server takes") from None
        self._loading = name
        self.router.add(variant)
        return self._spawn(self._bring_up(variant, go_back))

    async def _bring_up(self, variant: Variant, go_back: bool) -> None:
        """Load a variant and note how that ended."""
        began_s, failure = time.monotonic(), ""
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                await self._warm_up(variant)
        except TimeoutError:
            failure = f"not ready after {LOAD_TIMEOUT_S:.0f} s"
        except RequestError as error:
            failure = str(error)
        except Exception as error:  # a bug in a pool must not look like a load that goes on
            logger.exception("loading %s failed", variant.name)
            failure = type(error).__name__
        self._loading = None
        if failure:
            variant.state, variant.note = "failed", failure
            logger.error("variant %s was not loaded: %s", variant.name, failure)
            self._remember(variant.name, f"not loaded: {failure}")
            await variant.pool.stop()
            return
        variant.state = "ready"
        self._remember(variant.name, f"loaded in {time.monotonic() - began_s:.1f} s")
        if go_back:
            async with self._lock:
                await self._go_back()

    async def _warm_up(self, variant: Variant) -> None:
        """Start a variant's pool and let it answer one request. Raises RequestError."""
        await variant.pool.start()
        while not variant.pool.ready:
            deaths = self._metrics.deaths_aside(variant.name)
            if deaths >= MAX_LOAD_DEATHS:
                raise VariantError("died", f"{deaths:.0f} workers ended; see the log")
            await asyncio.sleep(POLL_S)
        now_s = time.monotonic()
        job = Job(CALIBRATION_TEXT, now_s, now_s + WARM_UP_S)
        if (await variant.pool.submit(job)).model_verdict is None:
            variant.note = "its warm-up answer was no verdict"

    async def _resume(self) -> None:
        """Load what else had traffic before the restart, one after the other."""
        split = self._wanted.split
        while not self.router.ready:
            await asyncio.sleep(POLL_S)
        for name in sorted(split.names - {split.live}):
            try:
                async with self._lock:
                    loading = await self._begin(name, self._wanted.placed[name])
                await loading
            except RequestError as error:
                logger.error("variant %s is not back: %s", name, error)
            back = self.router.variants.get(name)
            if back is None or back.state != "ready":
                split = split.without(name)
        async with self._lock:
            nobody_decided_otherwise = self.router.split == Split(live=split.live)
            if nobody_decided_otherwise and split != self.router.split:
                await self._apply(split, self._previous)

    # Changes of what serves

    def _plan(self, split: Split, previous: tuple[str, Source] | None) -> ServingPlan:
        """What a restart is to come back with."""
        placed = dict([previous] if previous else [])
        placed |= {variant.name: variant.source for variant in self.router.variants.values()}
        return ServingPlan(
            configured=self._wanted.configured,
            split=split,
            placed=placed,
            previous=previous and previous[0],
        )

    async def _apply(self, split: Split, previous: tuple[str, Source] | None) -> None:
        """Write the new plan to disk, then serve by it."""
        before = self.router.split
        await asyncio.to_thread(self._plan(split, previous).write, self._state)
        if self.router.split != before:
            # A canary fell while the disk was written to; its task writes the file again.
            raise VariantError("changed", "a canary was rolled back just now: look again")
        self.router.set_split(split)
        self._previous = previous

    async def _go_back(self) -> bool:
        """Make the previous model live again; False where it is not loaded."""
        before = self.router.split
        back = self.router.variants.get(self._previous[0]) if self._previous else None
        if back is None or back.state != "ready":
            return False
        await self._apply(Split(live=back.name), None)
        self._remember(back.name, f"live again, after {before.live}")
        self._end_others(before)
        return True

    def _end_others(self, before: Split) -> None:
        """End what had a part while another was live: trials were trials against that one."""
        for name in sorted(before.names - {self.router.split.live}):
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
        self._remember(name, "unloaded")

    def _on_rollback(self, name: str, why: Comparison) -> None:
        """A canary has lost its traffic already: write that to disk, and end its workers."""
        self._remember(name, f"rolled back for its {why}")

        async def settle() -> None:
            async with self._lock:
                plan = self._plan(self.router.split, self._previous)
                await asyncio.to_thread(plan.write, self._state)
            await self._retire(name)

        self._spawn(settle())

    def _find(self, name: str) -> Variant:
        variant = self.router.variants.get(name)
        if variant is None:
            known = ", ".join(self.router.variants)
            raise VariantError("unknown_variant", f"no such variant: there are {known}", 404)
        return variant

    def _remember(self, name: str, event: str) -> None:
        logger.info("variant %s %s", name, event)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._events.append({"at": at, "variant": name, "event": event})

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do some work beside requests; it is held until it ends, and its error logged."""
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error("a change of variants failed", exc_info=error)
