"""The life of variants, over stand-ins for pools and, once, over real workers."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from curt.artifact import ArtifactError, load_manifest, write_artifact
from curt.files import sha256, write_json
from serve.app import create_app
from serve.errors import EngineFailedError, OverloadedError
from serve.metrics import Metrics
from serve.pool.pool import WorkerPool
from serve.pool.worker import open_worker_engine
from serve.served import Identity
from serve.settings import Settings
from serve.variants import lifecycle
from serve.variants.folders import Promoted, VariantError, find_folder, verify
from serve.variants.lifecycle import Variants
from serve.variants.split import Split
from tests.micro import FACTS
from tests.serve.fake_engine import MANIFEST
from tests.serve.fake_pool import FakePool
from tests.serve.pool.test_pool import is_alive, until
from tests.serve.variants.test_router import FULL, UNREADABLE, job, submit


@dataclass
class StandIn(FakePool):
    """A pool that notes its life."""

    folder: str = ""
    metrics: Metrics = field(default_factory=Metrics)
    ready: bool = False
    life: list[str] = field(default_factory=list)

    async def start(self) -> None:
        self.life.append("start")
        self.ready = self.folder not in ("slow", "dying")
        if self.folder == "dying":
            self.metrics.worker_deaths.inc(2)

    async def stop(self) -> None:
        self.life.append("stop")
        self.ready = False


class Works:
    """Makes stand-ins by what is written in the folder's name."""

    def __init__(self) -> None:
        self.made: list[StandIn] = []
        self.answers: dict[str, Any] = {}

    def __call__(self, folder: Path, identity: Identity, metrics: Metrics) -> StandIn:
        answer = self.answers.get(folder.name, FULL)
        pool = StandIn(answer, folder=folder.name, metrics=metrics)
        self.made.append(pool)
        return pool

    def of(self, folder: str) -> StandIn:
        return [pool for pool in self.made if pool.folder == folder][-1]


def make_folder(folder: Path, note: int = 0) -> Path:
    describe = MANIFEST.model_dump(exclude={"tools", "created", "files"})
    with write_artifact(folder, describe) as temporary:
        write_json(temporary / "note.json", {"note": note})
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for number, name in enumerate(("one", "two", "three", "slow", "dying")):
        make_folder(tmp_path / "models" / name, number)
    return tmp_path / "models"


FORMATS = ("ort-genai",)


def make_variants(models: Path, works: Works, **options: Any) -> Variants:
    options = {
        "models": models, "state": models.parent / "state.json", "formats": FORMATS, **options,
    }  # fmt: skip
    return Variants(models / "one", works, options.pop("metrics", Metrics()), **options)


async def settled(variants: Variants) -> None:
    """Wait until no load and no end of a variant is under way."""
    while variants.tasks:
        await asyncio.wait(set(variants.tasks))


@asynccontextmanager
async def running(models: Path, works: Works, **options: Any) -> AsyncIterator[Variants]:
    variants = make_variants(models, works, **options)
    await variants.start()
    await settled(variants)
    try:
        yield variants
    finally:
        await variants.stop()


async def load(variants: Variants, name: str, folder: str) -> None:
    await variants.load(name, folder)
    await settled(variants)


def states(variants: Variants) -> dict[str, str]:
    return {each["name"]: each["state"] for each in variants.describe()["variants"]}


async def refused(reason: str, doing: Any) -> None:
    with pytest.raises(VariantError) as caught:
        await doing
    assert (caught.value.reason, caught.value.status) == (reason, 409)


# Loading


def test_a_model_is_loaded_beside_the_old_one_and_has_no_traffic_before_promotion(
    models: Path,
) -> None:
    works = Works()

    async def scenario() -> None:
        async with running(models, works) as variants:
            await load(variants, "new", "two")
            assert states(variants) == {"default": "ready", "new": "ready"}
            new = works.of("two")
            assert len(new.jobs) == 1  # the warm-up
            for _ in range(20):
                await submit(variants)
            assert len(new.jobs) == 1
            await variants.promote("new")
            await submit(variants)
            assert len(new.jobs) == 2
            await settled(variants)
            await variants.unload("default")
            await settled(variants)
            assert works.of("one").life == ["start", "stop"]  # memory of one model again
            assert states(variants) == {"new": "ready"}

    asyncio.run(scenario())


@pytest.mark.parametrize("folder", ["slow", "dying", "three"])
def test_a_failed_load_keeps_the_old_one_serving(
    models: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "LOAD_TIMEOUT_S", 0.2)
    works = Works()
    works.answers["three"] = EngineFailedError("engine_error", "no")

    async def scenario() -> None:
        async with running(models, works) as variants:
            await load(variants, "new", folder)
            assert states(variants) == {"default": "ready", "new": "failed"}
            assert works.of(folder).life == ["start", "stop"]
            await refused("not_ready", variants.promote("new"))
            await submit(variants)
            await variants.unload("new")
            await settled(variants)
            await load(variants, "new", "two")
            assert states(variants)["new"] == "ready"

    asyncio.run(scenario())


def test_an_altered_or_unlisted_file_is_refused(models: Path) -> None:
    works = Works()
    (models / "two" / "note.json").write_text("{}")
    (models / "three" / "more.so").write_bytes(b"x")

    async def scenario() -> None:
        async with running(models, works) as variants:
            await refused("not_loadable", variants.load("new", "two"))
            await refused("not_loadable", variants.load("new", "three"))
            await refused("not_loadable", variants.load("new", "one", "0" * 64))
            assert states(variants) == {"default": "ready"}
            good = sha256(models / "one" / "manifest.json")
            await variants.load("new", "one", good)

    asyncio.run(scenario())


def test_a_name_is_taken_once_and_three_are_loaded_at_most(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "LOAD_TIMEOUT_S", 0.3)
    works = Works()

    async def scenario() -> None:
        async with running(models, works) as variants:
            await variants.load("new", "slow")
            await refused("name_taken", variants.load("new", "two"))
            await refused("loading", variants.unload("new"))
            await refused("not_ready", variants.promote("new"))
            await load(variants, "other", "three")
            await refused("too_many", variants.load("fourth", "two"))

    asyncio.run(scenario())


def test_a_model_that_says_nothing_readable_is_promoted_by_force_only(models: Path) -> None:
    works = Works()
    works.answers["two"] = UNREADABLE

    async def scenario() -> None:
        async with running(models, works) as variants:
            await load(variants, "new", "two")
            await refused("doubtful", variants.promote("new"))
            await variants.promote("new", force=True)
            assert variants.split.live == "new"

    asyncio.run(scenario())


def test_the_application_serves_over_variants_as_over_a_pool(
    models: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        works, metrics = Works(), Metrics()
        async with running(models, works, metrics=metrics) as variants:
            await load(variants, "new", "two")
            await variants.promote("new", "weight", 0.5)
            monkeypatch.setattr("serve.app._make_variants", lambda *_: variants)
            transport = httpx.ASGITransport(app=create_app(settings))
            async with httpx.AsyncClient(transport=transport, base_url="http://curt") as client:
                for number in range(30):
                    body = {"fact": f"{FACTS[0]}编号{number}"}
                    reply = await client.post("/predict", json=body)
                    assert reply.json()["defendants"]
                assert (await client.get("/readyz")).status_code == 200
        counts = [
            metrics.registry.get_sample_value(
                "curt_variant_requests_total", {"variant": name, "outcome": "full"}
            )
            for name in ("default", "new")
        ]
        assert sum(filter(None, counts)) == 30
        assert min(filter(None, counts)) > 3

    asyncio.run(scenario())


# Rolling back and unloading


def test_a_rollback_goes_back_to_the_previous_model_at_once(models: Path) -> None:
    works = Works()

    async def scenario() -> None:
        async with running(models, works) as variants:
            await refused("nothing_before", variants.rollback())
            await load(variants, "new", "two")
            await variants.promote("new")
            assert states(variants) == {"default": "ready", "new": "ready"}
            assert variants.describe()["previous"] == "default"
            assert await variants.rollback() == "default"
            assert variants.split == Split("default")
            await refused("nothing_before", variants.rollback())
            await variants.promote("new")
            await variants.unload("default")
            await refused("nothing_before", variants.rollback())

    asyncio.run(scenario())
    assert [pool.folder for pool in works.made] == ["one", "two"]


def test_a_canary_is_ended_by_hand_or_by_the_test_and_stays_loaded(models: Path) -> None:
    works = Works()

    async def scenario() -> None:
        async with running(models, works) as variants:
            await load(variants, "new", "two")
            await variants.promote("new", "canary", 0.5)
            assert await variants.rollback() == "default"
            assert variants.split == Split("default")

            await variants.promote("new", "canary", 0.5)
            works.of("two").answer = EngineFailedError("engine_error", "no")
            for _ in range(200):
                try:
                    await submit(variants)
                except EngineFailedError:
                    continue
            assert variants.split == Split("default")
            assert states(variants) == {"default": "ready", "new": "ready"}
            assert variants.describe()["variants"][1]["note"].startswith(
                "rolled back for its errors"
            )
            await refused("doubtful", variants.promote("new", "canary", 0.5))

    asyncio.run(scenario())


def test_an_unloaded_variant_still_serves_what_chose_it(models: Path) -> None:
    works = Works()

    async def scenario() -> None:
        async with running(models, works) as variants:
            await load(variants, "new", "two")
            await refused("is_live", variants.unload("default"))
            with pytest.raises(VariantError, match="no such variant"):
                await variants.unload("nobody")
            await variants.promote("new", "weight", 0.9)
            ways = [variants.choose() for _ in range(50)]
            late = next(way for way in ways if way.name == "new")
            await variants.unload("new")
            assert {variants.choose().name for _ in range(50)} == {"default"}
            await late.submit(job())  # chosen a moment before: still served
            await settled(variants)
            assert states(variants) == {"default": "ready"}

    asyncio.run(scenario())


# Restarts


async def promote_new(models: Path) -> None:
    """What a server before did."""
    async with running(models, Works()) as variants:
        await load(variants, "new", "two")
        await variants.promote("new")
        await load(variants, "try", "three")
        await variants.promote("try", "canary", 0.25)


def test_a_restart_comes_back_with_the_promoted_model_alone(models: Path) -> None:
    async def after() -> None:
        works = Works()
        async with running(models, works) as variants:
            assert variants.split == Split("new")
            assert [pool.folder for pool in works.made] == ["two"]

    asyncio.run(promote_new(models))
    asyncio.run(after())


def test_a_restart_after_a_rollback_comes_back_with_the_configured_model(models: Path) -> None:
    async def before() -> None:
        async with running(models, Works()) as variants:
            await load(variants, "new", "two")
            await variants.promote("new")
            await variants.rollback()

    asyncio.run(before())
    works = Works()
    assert make_variants(models, works).split == Split("default")
    assert [pool.folder for pool in works.made] == ["one"]


def test_a_promoted_model_that_was_altered_gives_way_to_the_configured_one(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.run(promote_new(models))
    shutil.rmtree(models / "two")
    make_folder(models / "two", 99)  # valid, but another
    with caplog.at_level(logging.ERROR):
        variants = make_variants(models, Works())
    assert variants.split == Split("default")
    assert "new can't be loaded" in caplog.text


def test_another_configured_model_voids_what_was_promoted(models: Path) -> None:
    asyncio.run(promote_new(models))
    state = models.parent / "state.json"
    configured = [sha256(models / name / "manifest.json") for name in ("one", "three")]
    assert [Promoted.read(state, digest) is not None for digest in configured] == [True, False]
    variants = Variants(
        models / "three", Works(), Metrics(), models=models, state=state, formats=FORMATS
    )
    assert variants.split == Split("default")


def test_a_state_file_that_is_none_is_refused_and_a_folder_outside_not_read(models: Path) -> None:
    state = models.parent / "state.json"
    state.write_text("{")
    with pytest.raises(ValueError, match="delete it"):
        make_variants(models, Works())
    outside = make_folder(models.parent / "outside")
    promoted = Promoted(
        configured=sha256(models / "one" / "manifest.json"),
        name="x",
        folder="../outside",
        manifest_sha256=sha256(outside / "manifest.json"),
    )
    write_json(state, promoted.model_dump())
    assert make_variants(models, Works()).split == Split("default")


def test_a_plan_that_can_not_be_written_changes_nothing(models: Path) -> None:
    works = Works()

    async def scenario() -> None:
        async with running(models, works, state=models.parent / "file" / "state.json") as variants:
            await load(variants, "new", "two")
            (models.parent / "file").write_text("")  # where its folder should be
            with pytest.raises(OSError, match="file"):
                await variants.promote("new")
            assert variants.split.live == "default"

    asyncio.run(scenario())


# Folders


@pytest.mark.parametrize(
    "folder",
    [
        "../outside",
        "/etc",
        "one/../../outside",
        "link",
        "",
        ".",
        "nothing",
        "a\0b",
        "one/note.json",
    ],
)
def test_nothing_outside_the_models_folder_is_found(models: Path, folder: str) -> None:
    make_folder(models.parent / "outside")
    (models / "link").symlink_to(models.parent / "outside")
    with pytest.raises(VariantError) as caught:
        find_folder(models, folder)
    assert str(models.parent) not in str(caught.value)
    assert find_folder(models, "one") == (models / "one").resolve()
    with pytest.raises(VariantError, match="no models folder"):
        find_folder(None, "one")


def test_a_model_that_its_gate_refused_gets_traffic_by_force_only(models: Path) -> None:
    manifest_sha256 = sha256(models / "two" / "manifest.json")
    verdict = {"passed": False, "refused": ["accuracy"], "manifest_sha256": manifest_sha256}
    write_json(models / "two" / "gate.json", verdict)

    async def scenario() -> None:
        async with running(models, Works()) as variants:
            await load(variants, "new", "two")
            assert variants.describe()["variants"][1]["note"] == "refused by its gate for accuracy"
            for role, share in (("canary", 0.1), ("live", None)):
                await refused("doubtful", variants.promote("new", role, share))
            await variants.promote("new", force=True)
            assert variants.split == Split("new")

    asyncio.run(scenario())


def test_verification_names_what_is_wrong(models: Path) -> None:
    digest = sha256(models / "one" / "manifest.json")
    assert verify(models / "one", digest, FORMATS).format == "ort-genai"
    with pytest.raises(ArtifactError, match="another manifest"):
        verify(models / "two", digest, FORMATS)
    with pytest.raises(ArtifactError, match="but hf is needed"):
        verify(models / "one", None, ("hf",))


# Real workers


def memory_mb(pids: list[int]) -> float:
    """Proportional set size: shared pages are counted once."""
    total_kb = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total_kb += int(line.split()[1])
    return total_kb / 1024


@pytest.mark.slow
def test_two_real_models_are_switched_under_load_without_a_lost_request(
    ort_model: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    for name in ("one", "two"):
        shutil.copytree(ort_model, models / name)
    first = load_manifest(models / "one").stage
    manifest = json.loads((models / "two" / "manifest.json").read_text())
    manifest["stage"] = "other"  # another model, as far as its identity goes
    write_json(models / "two" / "manifest.json", manifest)
    assert load_manifest(models / "two").stage == "other"
    shutil.copytree(models / "two", models / "broken")
    graph = next((models / "broken").glob("*.onnx"))
    graph.write_bytes(b"no graph")
    broken = json.loads((models / "broken" / "manifest.json").read_text())
    broken["files"][graph.name] = sha256(graph)
    write_json(models / "broken" / "manifest.json", broken)

    metrics = Metrics()
    pools: list[WorkerPool] = []

    def make_pool(folder: Path, identity: Identity, metrics: Metrics) -> WorkerPool:
        pools.append(
            WorkerPool(
                folder, identity.manifest, metrics, workers=1, queue_size=32, margin_ms=10,
                open_engine=open_worker_engine,
            )
        )  # fmt: skip
        return pools[-1]

    answered: list[str] = []
    lost: list[str] = []
    memory: dict[str, float] = {}

    async def scenario() -> None:
        variants = Variants(
            models / "one",
            make_pool,
            metrics,
            models=models,
            state=tmp_path / "state.json",
            formats=FORMATS,
        )
        await variants.start()
        await until(lambda: variants.ready, 60)
        over = False

        async def ask() -> None:
            number = 0
            while not over:
                number += 1
                fact = f"{FACTS[0]}编号{number}"
                way = variants.choose()
                try:
                    await way.submit(job(fact, 4000))
                    answered.append(way.identity.manifest.stage)
                except OverloadedError as fault:
                    lost.append(fault.reason)
                await asyncio.sleep(0.01)

        asking = asyncio.create_task(ask())
        try:
            memory["one"] = memory_mb(pools[0].worker_pids)
            await load(variants, "bad", "broken")
            assert states(variants)["bad"] == "failed"
            await load(variants, "new", "two")
            assert states(variants)["new"] == "ready"
            old = pools[0].worker_pids
            memory["both"] = memory_mb(old + pools[-1].worker_pids)
            await variants.promote("new", "canary", 0.5, force=True)
            await asyncio.sleep(1.0)
            assert variants.split.named("canary")  # as good: the same weights
            await variants.promote("new", force=True)
            await asyncio.sleep(0.3)
            assert answered[-1] == "other"
            await variants.rollback()
            await asyncio.sleep(0.3)
            assert answered[-1] == first
            await variants.promote("new", force=True)
            await variants.unload("default")
            await settled(variants)
            await until(lambda: not any(is_alive(pid) for pid in old))
            memory["after"] = memory_mb(pools[-1].worker_pids)
            await asyncio.sleep(0.3)
            assert answered[-1] == "other"
        finally:
            over = True
            await asking
            await variants.stop()

    asyncio.run(scenario())
    assert lost == []
    assert set(answered) == {first, "other"}
    assert memory["both"] > 1.3 * memory["after"]
