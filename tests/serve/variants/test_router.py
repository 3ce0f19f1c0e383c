"""Who answers, who is tried and who is only watched; the pools are stand-ins."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from curt.dialogue import THINK_END, render_answer
from curt.engines.protocol import Generation
from curt.law.verdict import Term, Verdict
from serve.errors import ClientGoneError, EngineFailedError, OverloadedError, RequestError
from serve.metrics import Metrics
from serve.pool.job import Job, ServedStream
from serve.served import Identity, Model, Served
from serve.variants.canary import MIN_REQUESTS
from serve.variants.metrics import VariantMetrics
from serve.variants.router import Router, Variant, differing_parts
from serve.variants.split import Role, Split
from tests.micro import FACTS
from tests.serve.fake_engine import MANIFEST, VERDICT, open_streaming_engine
from tests.serve.fake_pool import FakePool, generation
from tests.serve.pool.test_pool import running_pool

FULL = generation(f"窃取{THINK_END}{render_answer(VERDICT)}")
OTHER = generation(
    f"窃取{THINK_END}{render_answer(Verdict(('盗窃',), ('264',), Term('fixed', 20), 2000))}"
)
UNREADABLE = generation(f"窃取{THINK_END}不知道")


@dataclass
class SlowPool(FakePool):
    """A stand-in that takes its time and notes who was called off."""

    seconds: float = 0.0
    cancelled: int = 0
    started: list[str] = field(default_factory=list)

    async def submit(self, job: Job) -> Served:
        self.started.append(job.fact)
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await super().submit(job)


@pytest.fixture(autouse=True)
def _the_same_draws() -> None:
    random.seed(0)


def variant(name: str, pool: FakePool) -> Variant:
    identity = Identity(Model(name=f"model-{name}", manifest="0" * 12, precision="int4"), MANIFEST)
    return Variant(name, name, identity, pool, state="ready")


def job(fact: str = "窃取", deadline_ms: float = 400) -> Job:
    now_s = time.monotonic()
    return Job(fact, now_s, now_s + deadline_ms / 1e3)


async def submit(router: Router, fact: str = "窃取", deadline_ms: float = 400) -> Served:
    return await router.choose().submit(job(fact, deadline_ms))


def make_router(pools: dict[str, FakePool], role: Role, share: float) -> tuple[Router, Metrics]:
    """The first of the pools is live, the second is in a role."""
    metrics = Metrics()
    first, *others = (variant(name, pool) for name, pool in pools.items())
    router = Router(first, VariantMetrics(metrics))
    for other in others:
        router.add(other)
        router.set_split(router.split.with_role(other.name, role, share))
    return router, metrics


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"curt_variant_{name}", labels) or 0.0


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_requests_are_counted_by_variant_and_the_way_says_which() -> None:
    pools = {"a": FakePool(FULL), "b": FakePool(UNREADABLE)}
    router, metrics = make_router(pools, "weight", 0.5)

    async def scenario() -> None:
        for _ in range(100):
            way = router.choose()
            assert way.identity.model.name == f"model-{way.name}"
            await way.submit(job())

    run(scenario())
    counts = {name: len(pool.jobs) for name, pool in pools.items()}
    assert sum(counts.values()) == 100
    assert min(counts.values()) > 25
    assert value(metrics, "requests_total", variant="a", outcome="full") == counts["a"]
    assert value(metrics, "requests_total", variant="b", outcome="degraded") == counts["b"]
    assert value(metrics, "latency_seconds_count", variant="b") == counts["b"]
    assert value(metrics, "share", variant="b") == 0.5


def test_a_canary_that_fails_loses_its_traffic_and_the_live_one_keeps_serving() -> None:
    failing = FakePool(EngineFailedError("engine_error", "no"))
    router, metrics = make_router({"a": FakePool(FULL), "b": failing}, "canary", 0.3)

    async def scenario() -> int:
        failed = 0
        for _ in range(1000):
            try:
                await submit(router)
            except EngineFailedError:
                failed += 1
        return failed

    assert asyncio.run(scenario()) == MIN_REQUESTS
    assert router.split == Split("a")
    assert value(metrics, "rollbacks_total", rate="errors") == 1
    note = router.variants["b"].note
    assert note.startswith("rolled back for its errors: 100.0% of 50 against 0.0% of")


@pytest.mark.parametrize(("answer", "is_kept"), [(UNREADABLE, False), (FULL, True)])
def test_a_degrading_canary_is_rolled_back_and_a_like_one_is_not(
    answer: Generation, is_kept: bool
) -> None:
    pools = {"a": FakePool(FULL), "b": FakePool(answer)}
    router, _ = make_router(pools, "canary", 0.3)

    async def scenario() -> None:
        for _ in range(1000):
            await submit(router)

    run(scenario())
    assert (router.split.named("canary") == "b") is is_kept


def test_a_late_canary_is_rolled_back() -> None:
    late = SlowPool(FULL, seconds=0.002)
    router, metrics = make_router({"a": SlowPool(FULL), "b": late}, "canary", 0.5)

    async def scenario() -> None:
        for _ in range(300):
            await submit(router, deadline_ms=1.9)

    run(scenario())
    assert router.split == Split("a")
    assert value(metrics, "rollbacks_total", rate="late") == 1
    assert value(metrics, "requests_total", variant="b", outcome="late") >= MIN_REQUESTS


def test_identical_models_are_rarely_told_apart_whoever_asks() -> None:
    """Some users' cases fail on every model, and each of them asks many times in a row."""

    @dataclass
    class HardForSome(FakePool):
        async def submit(self, job: Job) -> Served:
            hard = int(job.fact) // 25 % 4 == 0
            self.answer = UNREADABLE if random.random() < (0.7 if hard else 0.02) else FULL
            return await super().submit(job)

    async def is_rolled_back(seed: int) -> bool:
        random.seed(seed)
        pools = {"a": HardForSome(FULL), "b": HardForSome(FULL)}
        router, _ = make_router(pools, "canary", 0.2)
        for number in range(500):
            await submit(router, str(number), deadline_ms=60_000)
        return router.split.named("canary") is None

    async def scenario() -> int:
        return sum([await is_rolled_back(seed) for seed in range(100)])

    assert asyncio.run(scenario()) <= 4  # 1 promised of 100


def test_what_arrived_under_an_earlier_split_is_not_held_against_a_canary() -> None:
    failing = FakePool(EngineFailedError("engine_error", "no"))
    router, _ = make_router({"a": FakePool(FULL), "b": failing}, "canary", 0.9)

    async def scenario() -> None:
        earlier = job()
        router.set_split(router.split.with_role("b", "canary", 0.05))
        for _ in range(100):
            with pytest.raises(EngineFailedError):
                await router.variants["b"].submit(earlier)

    run(scenario())
    assert router.canary is not None
    assert router.canary.figures()["errors"]["canary_requests"] == 0


@pytest.mark.parametrize(
    "answer",
    [ClientGoneError("client_closed", "gone"), OverloadedError("draining", "going")],
)
def test_what_is_not_its_fault_is_not_held_against_a_canary(answer: RequestError) -> None:
    router, _ = make_router({"a": FakePool(FULL), "b": FakePool(answer)}, "canary", 0.9)

    async def scenario() -> None:
        for _ in range(300):
            try:
                await submit(router)
            except RequestError:
                continue

    run(scenario())
    assert router.split.named("canary") == "b"


def test_a_dead_canary_costs_nobody_an_answer_and_is_rolled_back() -> None:
    dead = FakePool(FULL, ready=False)
    router, metrics = make_router({"a": FakePool(FULL), "b": dead}, "canary", 0.5)

    async def scenario() -> None:
        for _ in range(300):
            await submit(router)

    run(scenario())
    assert dead.jobs == []
    assert router.split == Split("a")
    assert value(metrics, "requests_total", variant="b", outcome="rerouted") == MIN_REQUESTS
    assert value(metrics, "requests_total", variant="a", outcome="full") == 300


def test_the_router_is_ready_with_its_live_variant_and_drains_all() -> None:
    live, other = FakePool(FULL), FakePool(FULL, ready=False)
    router, _ = make_router({"a": live, "b": other}, "weight", 0.5)
    assert router.ready
    router.drain()
    assert not router.ready
    assert not live.ready
    run(router.stop())


def test_pools_count_together_and_only_those_that_answer_show_their_workers() -> None:
    router, metrics = make_router({"a": FakePool(FULL), "b": FakePool(FULL)}, "shadow", 0.5)
    sample = metrics.registry.get_sample_value
    for name in router.variants:
        counted = router.metrics.for_pool(name)
        counted.shed.labels("overloaded").inc()
        counted.workers_ready.set(2)
    assert sample("curt_shed_total", {"reason": "overloaded"}) == 2
    assert sample("curt_workers_ready") == 2
    router.set_split(router.split.with_role("b", "canary", 0.5))
    assert sample("curt_workers_ready") == 4
    router.set_split(Split("a"))
    router.remove("b")
    assert sample("curt_workers_ready") == 2
    assert 'variant="b"' not in metrics.render().decode()


def test_a_stream_is_counted_when_it_ends_however_it_ends() -> None:
    async def scenario() -> Metrics:
        async with running_pool(open_engine=open_streaming_engine) as pool:
            metrics = Metrics()
            router = Router(variant("a", pool), VariantMetrics(metrics))  # type: ignore[arg-type]

            def stream(deadline_ms: float) -> ServedStream:
                return router.choose().stream(job(FACTS[0], deadline_ms))

            whole = [event async for event in stream(2000)]
            assert isinstance(whole[-1], Served)
            assert len(whole) > 1
            left = stream(2000)
            await anext(left)
            assert router.live.in_flight == 1
            left.close()
            left.close()
            await asyncio.sleep(0)
            assert router.live.in_flight == 0
            with pytest.raises(RequestError):
                stream(10)
            return metrics

    metrics = asyncio.run(scenario())
    for outcome in ("full", "cancelled", "refused"):
        assert value(metrics, "requests_total", variant="a", outcome=outcome) == 1


def shadowed(live: FakePool, shadow: FakePool) -> tuple[Router, Metrics]:
    return make_router({"a": live, "b": shadow}, "shadow", 0.999999)


def copies(metrics: Metrics, outcome: str) -> float:
    return value(metrics, "shadow_total", variant="b", outcome=outcome)


def test_a_copy_is_compared_and_never_returned() -> None:
    live, shadow = FakePool(FULL), FakePool(OTHER)
    router, metrics = shadowed(live, shadow)

    async def scenario() -> None:
        served = await submit(router, "窃取手机", 300)
        assert served.generation is FULL
        assert shadow.jobs == []  # not before the answer is given
        await asyncio.sleep(0.05)

    run(scenario())
    assert [each.fact for each in shadow.jobs] == ["窃取手机"]
    assert shadow.jobs[0].deadline_s - shadow.jobs[0].arrived_s == pytest.approx(0.3, abs=0.001)
    assert copies(metrics, "differed") == 1
    assert value(metrics, "shadow_differences_total", variant="b", part="term") == 1
    assert value(metrics, "shadow_differences_total", variant="b", part="charges") == 0
    assert value(metrics, "requests_total", variant="b", outcome="full") == 0


def test_a_copy_never_delays_an_answer_and_makes_way() -> None:
    live, shadow = SlowPool(FULL, seconds=0.02), SlowPool(FULL, seconds=0.5)
    router, metrics = shadowed(live, shadow)

    async def scenario() -> None:
        started_s = time.monotonic()
        await submit(router, "一")
        assert time.monotonic() - started_s < 0.2
        await asyncio.sleep(0.05)
        assert shadow.started == ["一"]
        started_s = time.monotonic()
        await submit(router, "二")
        assert time.monotonic() - started_s < 0.2
        assert shadow.cancelled == 1
        await router.stop()

    run(scenario())
    assert copies(metrics, "preempted") == 1


def test_copies_are_dropped_first_under_load() -> None:
    live, shadow = SlowPool(FULL, seconds=0.03), SlowPool(FULL, seconds=0.01)
    router, metrics = shadowed(live, shadow)

    async def client(number: int) -> None:
        for step in range(8):
            await submit(router, f"{number} {step}")

    async def scenario() -> None:
        await asyncio.gather(*(client(number) for number in range(4)))
        await asyncio.sleep(0.1)

    run(scenario())
    assert len(live.jobs) == 32
    assert copies(metrics, "dropped") == 31
    assert len(shadow.started) == 1  # after the last answer


@pytest.mark.parametrize(
    ("live", "shadow", "outcome"),
    [
        (FULL, FULL, "agreed"),
        (FULL, UNREADABLE, "degraded"),
        (UNREADABLE, FULL, "degraded"),
        (FULL, OverloadedError("overloaded", "no"), "failed"),
    ],
)
def test_only_full_verdicts_are_compared_and_a_failure_is_nobodys_trouble(
    live: Generation, shadow: Generation | Exception, outcome: str
) -> None:
    router, metrics = shadowed(FakePool(live), FakePool(shadow))

    async def scenario() -> None:
        await submit(router)
        await asyncio.sleep(0.05)

    run(scenario())
    assert copies(metrics, outcome) == 1


def test_parts_differ_whatever_their_order() -> None:
    one = Verdict(("盗窃", "诈骗"), ("264", "266"), Term("fixed", 8))
    assert differing_parts(one, Verdict(("诈骗", "盗窃"), ("266", "264"), Term("fixed", 8))) == []
    other = Verdict(("盗窃",), ("264", "266"), Term("fixed", 9))
    assert differing_parts(one, other) == ["charges", "term"]
