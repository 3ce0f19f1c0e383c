"""The life of variants: load beside what serves, promote, roll back, unload.

Memory: the workers of both models exist while a new one loads and while a canary, shadow or second
arm runs, three models at most (`MAX_LOADED`). After a promotion the old ones finish and end, unless
`keep_previous`. What is to be served is on the disk first. A load that fails changes nothing.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from typing import Any

from curt.artifact import ArtifactError, Format, Manifest
from serve.answering.answering import Pool
from serve.errors import RequestError
from serve.metrics import Metrics
from serve.served import Identity
from serve.variants.background import Background, History
from serve.variants.canary import Alarm, CanaryLimits
from serve.variants.loading import POLL_S, LoadError, bring_up
from serve.variants.metrics import VariantMetrics
from serve.variants.plan import (
    CONFIGURED,
    OWN_FORMATS,
    ConflictError,
    Placed,
    Plan,
    UnknownVariantError,
    find_folder,
    first_plan,
    read_plan,
    relative_name,
    verify,
    write_plan,
)
from serve.variants.router import Router, Variant
from serve.variants.split import Role, Split, with_role
from serve.variants.view import describe

logger = logging.getLogger(__name__)

MAX_LOADED = 3
LOAD_TIMEOUT_S = 300.0
GRACE_S = 0.25  # between the last request that was sent to a variant and its end

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
        limits: CanaryLimits | None = None,
        keep_previous: bool = False,
        max_live_beside_shadow: int = 0,
        load_timeout_s: float = LOAD_TIMEOUT_S,
        formats: Collection[Format] = OWN_FORMATS,
    ) -> None:
        """`make_pool` makes a pool over a verified folder; `state` is where the plan is kept.

        Raises ArtifactError where the configured model is not valid, ValueError where `state` can't
        be read. A promoted model that is gone or altered gives way to the configured one.
        """
        self._make_pool, self._models, self._state = make_pool, models, state
        self._verify = functools.partial(verify, formats=formats)
        self._keep_previous, self._load_timeout_s = keep_previous, load_timeout_s
        self._configured = configured
        self._metrics = VariantMetrics(metrics)
        self._lock = asyncio.Lock()
        self._background = Background()
        self._loading: str | None = None
        self._history = History()
        self._wanted = read_plan(state, configured)
        first = self._open_first()
        first.state = "ready"  # as far as it depends on us: its pool says when
        self._plan = self._wanted.model_copy(update={"split": Split(live=first.name)})
        self.router = Router(
            first,
            self._metrics,
            limits=limits,
            max_live_beside_shadow=max_live_beside_shadow,
            on_rollback=self._on_rollback,
        )

    async def start(self) -> None:
        """Start the live model, and load what else had traffic when the server ended."""
        await self.router.start()
        self._background.spawn(self._resume())

    async def stop(self) -> None:
        """End what goes on here and every pool."""
        self.router.drain()
        await self._background.stop()
        await self.router.stop()

    async def load(self, name: str, folder: str, manifest_sha256: str | None = None) -> Variant:
        """Begin to load a folder below the models folder; returns while it loads.

        Raises BadFolderError, and ConflictError where another model loads, the name is taken or
        too many are loaded.
        """
        async with self._lock:
            found = await asyncio.to_thread(find_folder, self._models, folder)
            return await self._begin(name, found, manifest_sha256)

    async def promote(
        self, name: str, role: Role = "live", share: float | None = None, *, force: bool = False
    ) -> None:
        """Give a loaded variant traffic: all of it, a share as canary or shadow, or a weight.

        `share` is from 0 to 1; as a weight it is what the variant gets beside the other arms. One
        whose warm-up answer was no verdict is promoted with `force` only. Raises
        UnknownVariantError and ConflictError; OSError where the plan can't be written.
        """
        async with self._lock:
            variant = self._find(name)
            if variant.state != "ready":
                raise ConflictError("not_ready", f"{name} is {variant.state}: {variant.note}")
            if variant.note and not force:
                raise ConflictError("doubtful", f"{name}: {variant.note}; promote it with force")
            plan = self._plan
            try:
                split = with_role(plan.split, name, role, share)
            except ValueError as error:
                raise ConflictError("bad_role", str(error)) from None
            replaced = split.live != plan.split.live
            await self._apply(plan, split, plan.split.live if replaced else plan.previous)
            variant.note = ""
            self._history.remember(name, f"promoted to {role}")
            if role == "live":
                self._end_others(plan.split)

    async def rollback(self) -> str:
        """End the canary if there is one, else go back to the previous live model.

        Returns the name of the variant that serves then. One whose workers have ended is loaded
        first, while the present one goes on serving. Raises ConflictError where there is nothing
        to go back to.
        """
        async with self._lock:
            plan = self._plan
            if plan.split.canary:
                name = plan.split.canary.name
                await self._apply(plan, plan.split.without(name), plan.previous)
                self._history.remember(name, "canary ended")
                self._background.spawn(self._retire(name))
                return plan.split.live
            if plan.previous is None:
                raise ConflictError("nothing_before", "no model was live before this one")
            back = self.router.variants.get(plan.previous)
            if back is not None and back.state == "ready":
                await self._go_back(plan)
            else:
                placed = plan.placed[plan.previous]
                folder = await asyncio.to_thread(self._folder_of, placed)
                await self._begin(
                    plan.previous, folder, placed.manifest_sha256, then=self._rolled_back
                )
            return plan.previous

    async def unload(self, name: str) -> None:
        """Take a variant's traffic away and end its workers once they have finished.

        Raises UnknownVariantError, and ConflictError for the live one.
        """
        async with self._lock:
            variant = self._find(name)
            if name == self._plan.split.live:
                raise ConflictError("is_live", f"{name} is live: promote another one first")
            if variant.state == "loading":
                raise ConflictError("loading", f"{name} still loads: wait until it has")
            if variant.state == "draining":
                return
            previous = None if self._plan.previous == name else self._plan.previous
            await self._apply(self._plan, self._plan.split.without(name), previous)
            self._background.spawn(self._retire(name))

    def describe(self) -> dict[str, Any]:
        """How things stand, without a path of this machine."""
        return {
            "previous": self._plan.previous,
            "loading": self._loading,
            "history": self._history.to_list(),
            **describe(self.router),
        }

    async def settled(self) -> None:
        """Wait until no load and no end of a variant is under way."""
        await self._background.settled()

    def _open_first(self) -> Variant:
        """The promoted model, else the one before it, else the configured one."""
        plan = self._wanted
        for name in (plan.split.live, plan.previous):
            if name is None:
                continue
            placed = plan.placed[name]
            try:
                folder = self._folder_of(placed)
                manifest, _ = self._verify(folder, placed.manifest_sha256)
            except (ArtifactError, RequestError, OSError) as error:
                logger.error("the promoted variant %s can't be loaded: %s", name, error)
                continue
            if name != plan.split.live:
                self._wanted = plan.model_copy(update={"split": Split(live=name), "previous": None})
            return self._make(name, folder, manifest)[0]
        self._wanted = first_plan(self._configured)
        return self._make(CONFIGURED, self._configured, self._verify(self._configured, None)[0])[0]

    def _make(self, name: str, folder: Path, manifest: Manifest) -> tuple[Variant, Metrics]:
        """A variant whose pool is not started, and where it counts in silence."""

        made: list[Variant] = []

        def is_quiet() -> bool:
            return not made or made[0].state == "loading" or self._is_shadow(name)

        given, aside = self._metrics.for_pool(name, is_quiet)
        pool = self._make_pool(folder, manifest, given)
        made.append(Variant(name, folder, Identity.of(folder, manifest), pool))
        return made[0], aside

    def _is_shadow(self, name: str) -> bool:
        shadow = self.router.split.shadow
        return shadow is not None and shadow.name == name

    def _folder_of(self, placed: Placed) -> Path:
        if placed.folder is None:
            return self._configured
        return find_folder(self._models, placed.folder)

    def _find(self, name: str) -> Variant:
        variant = self.router.variants.get(name)
        if variant is None:
            known = ", ".join(self.router.variants)
            raise UnknownVariantError("unknown_variant", f"no such variant: there are {known}")
        return variant

    async def _begin(
        self,
        name: str,
        folder: Path,
        manifest_sha256: str | None,
        then: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> Variant:
        if self._loading is not None:
            raise ConflictError("loading", f"{self._loading} still loads: one at a time")
        old = self.router.variants.get(name)
        if old is not None and old.state != "failed":
            raise ConflictError("name_taken", f"there is a variant {name}: unload it first")
        if len(self.router.variants) - (old is not None) >= MAX_LOADED:
            raise ConflictError("too_many", f"{MAX_LOADED} are loaded: unload one first")
        self._loading = name
        try:
            manifest, digest = await asyncio.to_thread(self._verify, folder, manifest_sha256)
            variant, aside = await asyncio.to_thread(self._make, name, folder, manifest)
        except (ArtifactError, ValueError, OSError) as error:
            self._loading = None
            logger.error("variant %s can't be loaded: %s", name, error)
            raise ConflictError("not_loadable", f"{name} is no model this server takes") from None
        except BaseException:
            self._loading = None
            raise
        if old is not None:
            self.router.remove(name)
        self.router.add(variant)
        configured = folder == self._configured
        placed = Placed(
            folder=None if configured or self._models is None
            else relative_name(self._models, folder),
            manifest_sha256=digest,
        )  # fmt: skip
        self._plan = self._plan.model_copy(update={"placed": {**self._plan.placed, name: placed}})
        self._background.spawn(self._bring_up(variant, aside, then))
        return variant

    async def _bring_up(
        self,
        variant: Variant,
        aside: Metrics,
        then: Callable[[], Coroutine[Any, Any, None]] | None,
    ) -> None:
        began_s = time.monotonic()
        try:
            variant.note = await bring_up(variant, aside, self._load_timeout_s)
        except (LoadError, RequestError) as error:
            await self._fail(variant, str(error))
            return
        except Exception as error:  # a bug in a pool must not look like a load that goes on
            logger.exception("loading %s failed", variant.name)
            await self._fail(variant, type(error).__name__)
            return
        finally:
            self._loading = None
        variant.state = "ready"
        seconds = time.monotonic() - began_s
        logger.info("variant %s loaded in %.1f s", variant.name, seconds)
        self._history.remember(variant.name, f"loaded in {seconds:.1f} s")
        if then is not None:
            await then()

    async def _fail(self, variant: Variant, why: str) -> None:
        variant.state, variant.note = "failed", why
        logger.error("variant %s was not loaded: %s", variant.name, why)
        self._history.remember(variant.name, f"not loaded: {why}")
        await variant.pool.stop()

    async def _apply(self, base: Plan, split: Split, previous: str | None) -> None:
        """Write the new plan down, then serve by it."""
        keep = split.names | ({previous} if previous else set())
        placed = {
            name: where
            for name, where in self._plan.placed.items()
            if name in keep or name in self.router.variants
        }
        plan = Plan(configured=base.configured, split=split, placed=placed, previous=previous)
        await asyncio.to_thread(write_plan, self._state, plan)
        if self._plan.split != base.split:
            # A canary fell while the disk was written to; its task writes the file again.
            raise ConflictError("changed", "a canary was rolled back just now: look again")
        self.router.set_split(split)
        self._plan = plan

    async def _go_back(self, plan: Plan) -> None:
        assert plan.previous is not None
        await self._apply(plan, Split(live=plan.previous), None)
        self._history.remember(plan.previous, f"live again, after {plan.split.live}")
        self._end_others(plan.split)

    def _end_others(self, before: Split) -> None:
        """What had a part while another was live ends: trials were trials against that one."""
        for name in sorted(before.names - {self._plan.split.live}):
            if name != before.live or not self._keep_previous:
                self._background.spawn(self._retire(name))

    async def _rolled_back(self) -> None:
        """The previous model is loaded again: go back to it, unless that is no longer wanted."""
        async with self._lock:
            plan = self._plan
            back = self.router.variants.get(plan.previous) if plan.previous else None
            if back is not None and back.state == "ready":
                await self._go_back(plan)

    async def _retire(self, name: str) -> None:
        variant = self.router.variants.get(name)
        if variant is None or variant.state == "draining":
            return
        variant.state = "draining"
        await asyncio.sleep(GRACE_S)  # requests that chose it a moment ago still arrive
        await self.router.stop_shadow()
        await variant.pool.stop()
        self.router.remove(name)
        logger.info("variant %s unloaded", name)
        self._history.remember(name, "unloaded")

    def _on_rollback(self, name: str, alarm: Alarm) -> None:
        """A canary has lost its traffic already: write it down, and end its workers."""
        self._plan = self._plan.model_copy(update={"split": self.router.split})
        self._history.remember(name, f"rolled back for its {alarm}")
        self._background.spawn(self._settle_rollback(name))

    async def _settle_rollback(self, name: str) -> None:
        async with self._lock:
            await asyncio.to_thread(write_plan, self._state, self._plan)
        await self._retire(name)

    async def _resume(self) -> None:
        """Load what else had traffic before the restart, one after the other."""
        wanted = self._wanted
        while not self.router.ready:
            await asyncio.sleep(POLL_S)
        for name in sorted(wanted.split.names - {wanted.split.live}):
            placed = wanted.placed[name]
            try:
                async with self._lock:
                    folder = await asyncio.to_thread(self._folder_of, placed)
                    variant = await self._begin(name, folder, placed.manifest_sha256)
            except RequestError as error:
                logger.error("variant %s is not back: %s", name, error)
                continue
            while variant.state == "loading":
                await asyncio.sleep(POLL_S)
        split = wanted.split
        for name in wanted.split.names - {wanted.split.live}:
            back = self.router.variants.get(name)
            if back is None or back.state != "ready":
                split = split.without(name)
        async with self._lock:
            nobody_decided_otherwise = self._plan.split == Split(live=wanted.split.live)
            if nobody_decided_otherwise and split != self._plan.split:
                await self._apply(self._plan, split, self._plan.previous)
