"""The life of variants: load beside what serves, promote, roll back, unload.

Loading and unloading move memory, promoting and rolling back move traffic: what has lost its
traffic stays loaded until it is unloaded, MAX_LOADED models at most. A restart comes back with the
live model alone. A load that fails changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

from curt.artifact import MANIFEST, ArtifactError, Format, refusal_of
from curt.files import sha256, write_json
from serve.answering.answering import DEFAULT_VARIANT, Pool
from serve.errors import RequestError
from serve.metrics import Metrics
from serve.pool.job import Job
from serve.pool.worker import CALIBRATION_TEXT
from serve.served import Identity
from serve.variants.folders import Promoted, VariantError, find_folder, verify
from serve.variants.metrics import VariantMetrics
from serve.variants.router import Router, Variant
from serve.variants.split import Role, Split

logger = logging.getLogger(__name__)

MAX_LOADED = 3
MAX_LOAD_DEATHS = 2  # of workers, before a load is given up; one may be bad luck
LOAD_TIMEOUT_S = 300.0
WARM_UP_S = 30.0  # for the one request a model answers before it may have traffic
GRACE_S = 0.25  # between the last request that was sent to a variant and its end
POLL_S = 0.05


class Variants(Router):
    """A router whose variants come and go while it runs."""

    def __init__(
        self,
        configured: Path,
        make_pool: Callable[[Path, Identity, Metrics], Pool],
        metrics: Metrics,
        *,
        models: Path | None = None,
        state: Path | None = None,
        formats: Collection[Format],
    ) -> None:
        """`make_pool` makes a pool over a verified folder; `state` keeps what was promoted.

        A promoted model that is gone or altered gives way to the configured one. Raises
        ArtifactError where that is not valid, ValueError where `state` can't be read.
        """
        self._configured, self._models, self._state = configured, models, state
        self._make_pool, self._formats = make_pool, formats
        self.metrics = VariantMetrics(metrics)
        self.tasks: set[asyncio.Task[None]] = set()
        """Loads and ends of variants that are under way."""
        self._lock = asyncio.Lock()
        self._previous: str | None = None
        self._configured_sha256 = sha256(configured / MANIFEST)
        first: Variant | None = None
        if promoted := Promoted.read(state, self._configured_sha256):
            try:
                first = self._make(promoted.name, promoted.folder, promoted.manifest_sha256)
            except (ArtifactError, RequestError, OSError) as error:
                logger.error("the promoted %s can't be loaded: %s", promoted.name, error)
        first = first or self._make(DEFAULT_VARIANT, None, None)
        first.state = "ready"  # as far as it depends on us: its pool says when
        super().__init__(first, self.metrics)

    async def start(self) -> None:
        """Start the live model."""
        await self.live.pool.start()

    async def stop(self) -> None:
        """End what goes on here and every pool."""
        self.drain()
        for task in tuple(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await super().stop()

    def describe(self) -> dict[str, Any]:
        """The state of everything, without a path of this machine."""
        return {
            "live": self.split.live,
            "previous": self._previous,
            "split": asdict(self.split),
            "canary": self.canary.figures() if self.canary else None,
            "variants": [
                {
                    "name": variant.name,
                    "state": variant.state,
                    "ready": variant.pool.ready,
                    "share": round(self.split.share_of(variant.name), 6),
                    "in_flight": variant.in_flight,
                    "model": variant.identity.model.model_dump(),
                    "note": variant.note,
                }
                for variant in self.variants.values()
            ],
        }

    async def load(self, name: str, folder: str, manifest_sha256: str | None = None) -> None:
        """Begin to load a folder below the models folder; returns while it loads.

        Raises VariantError for a bad folder, and where the name is taken or too many are loaded.
        """
        async with self._lock:
            if name in self.variants:
                raise VariantError("name_taken", f"there is a variant {name}: unload it first")
            if len(self.variants) >= MAX_LOADED:
                raise VariantError("too_many", f"{MAX_LOADED} are loaded: unload one first")
            try:
                variant = await asyncio.to_thread(self._make, name, folder, manifest_sha256)
            except (ArtifactError, OSError) as error:
                logger.error("variant %s can't be loaded: %s", name, error)
                raise VariantError("not_loadable", f"{name} is no model for this server") from None
            self.add(variant)
            self._spawn(self._bring_up(variant))

    async def promote(
        self, name: str, role: Role = "live", share: float | None = None, *, force: bool = False
    ) -> None:
        """Give a loaded variant traffic: all of it, or a share as canary, shadow or weight.

        One that its gate refused, whose warm-up answer was no verdict, or that was rolled back, is
        promoted with `force` only. Raises VariantError; OSError where a new live model can't be
        written down.
        """
        async with self._lock:
            variant = self._find_ready(name)
            if variant.note and not force:
                raise VariantError("doubtful", f"{name}: {variant.note}; promote it with force")
            try:
                split = self.split.with_role(name, role, share)
            except ValueError as error:
                raise VariantError("bad_role", str(error)) from None
            if role == "live":
                await self._make_live(variant, previous=self.split.live)
            else:
                self.set_split(split)
            variant.note = ""

    async def rollback(self) -> str:
        """End the canary if there is one, else go back to the previous live model.

        Returns the name of the variant that is live then. Raises VariantError where there is
        nothing to go back to, OSError where it can't be written down.
        """
        async with self._lock:
            if canary := self.split.named("canary"):
                self.set_split(self.split.without(canary))
            elif self._previous is None:
                raise VariantError("nothing_before", "no model that is loaded was live before")
            else:
                await self._make_live(self._find_ready(self._previous), previous=None)
            return self.split.live

    async def unload(self, name: str) -> None:
        """Take a variant's traffic away and end its workers once they have finished.

        Raises VariantError for the live one and for one that loads.
        """
        async with self._lock:
            variant = self._find(name)
            if name == self.split.live:
                raise VariantError("is_live", f"{name} is live: promote another one first")
            if variant.state == "loading":
                raise VariantError("loading", f"{name} still loads: wait until it has")
            if variant.state != "draining":
                if name in self.split.trials:
                    self.set_split(self.split.without(name))
                self._previous = None if name == self._previous else self._previous
                variant.state = "draining"
                self._spawn(self._retire(variant))

    def _make(self, name: str, folder: str | None, manifest_sha256: str | None) -> Variant:
        """A variant over a verified folder, its pool not started; no folder is the configured one.

        Raises VariantError, ArtifactError, OSError.
        """
        # Resolved, so that workers go on loading this model when a link is turned to another one.
        path = self._configured.resolve() if folder is None else find_folder(self._models, folder)
        identity = Identity.of(path, verify(path, manifest_sha256, self._formats))
        pool = self._make_pool(path, identity, self.metrics.for_pool(name))
        return Variant(name, folder, identity, pool, note=refusal_of(path))

    async def _bring_up(self, variant: Variant) -> None:
        """Load a variant and note how that ended."""
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                await self._warm_up(variant)
        except Exception as error:  # a bug in a pool too must not look like a load that goes on
            known = isinstance(error, RequestError)
            variant.state, variant.note = "failed", str(error) if known else type(error).__name__
            logger.exception("variant %s was not loaded", variant.name)
            await variant.pool.stop()
            return
        variant.state = "ready"
        logger.info("variant %s loaded in %.1f s", variant.name, time.monotonic() - began_s)

    async def _warm_up(self, variant: Variant) -> None:
        """Start a variant's pool and let it answer one request. Raises RequestError."""
        deaths_before = self.metrics.worker_deaths()
        await variant.pool.start()
        while not variant.pool.ready:
            deaths = self.metrics.worker_deaths() - deaths_before
            if deaths >= MAX_LOAD_DEATHS:
                raise VariantError("died", f"{deaths:.0f} workers ended; see the log")
            await asyncio.sleep(POLL_S)
        now_s = time.monotonic()
        job = Job(CALIBRATION_TEXT, now_s, now_s + WARM_UP_S)
        if (await variant.pool.submit(job)).model_verdict is None:
            variant.note = "its warm-up answer was no verdict"

    async def _make_live(self, variant: Variant, previous: str | None) -> None:
        """Write down what a restart is to serve, then give it all traffic. Raises OSError."""
        if self._state is not None:
            promoted = Promoted(
                configured=self._configured_sha256,
                name=variant.name,
                folder=variant.folder,
                manifest_sha256=variant.identity.manifest_sha256,
            )
            await asyncio.to_thread(write_json, self._state, promoted.model_dump())
        self.set_split(Split(variant.name))
        self._previous = previous

    async def _retire(self, variant: Variant) -> None:
        """End a variant that has no traffic any more, once it has finished what it took."""
        await asyncio.sleep(GRACE_S)  # requests that chose it a moment ago still arrive
        await self.stop_copy()
        await variant.pool.stop()
        self.remove(variant.name)
        logger.info("variant %s unloaded", variant.name)

    def _find(self, name: str) -> Variant:
        variant = self.variants.get(name)
        if variant is None:
            known = ", ".join(self.variants)
            raise VariantError("unknown_variant", f"no such variant: there are {known}", 404)
        return variant

    def _find_ready(self, name: str) -> Variant:
        variant = self._find(name)
        if variant.state != "ready":
            raise VariantError("not_ready", f"{name} is {variant.state}: {variant.note}")
        return variant

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do some work beside requests; the loop logs its error."""
        task = asyncio.create_task(work)
        self.tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self.tasks.discard)
