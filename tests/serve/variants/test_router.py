"""Who answers, who is tried and who is only watched; the pools are stand-ins."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from curt.dialogue import THINK_END, render_answer
from curt.law.verdict import Term, Verdict
from serve.errors import ClientGoneError, EngineFailedError, OverloadedError
from serve.metrics import Metrics
from serve.pool.job import Job, ServedStream
from serve.served import Identity, Model, Served
from serve.variants.canary import (
    MIN_REQUESTS,
)
from serve.variants.metrics import VariantMetrics
from serve.variants.plan import Source
from serve.variants.router import Router, Variant
from serve.variants.split import Split, TrafficShare
from tests.micro import FACTS
from tests.serve.fake_engine import MANIFEST, VERDICT, open_streaming_engine
from tests.serve.fake_pool import FakePool, generation
from tests.serve.pool.test_pool import running_pool

FULL = generation(f"窃取{THINK_END}{render_answer(VERDICT)}")
OTHER = generation(
    f"窃取{THINK_END}{render_answer(Verdict(('盗窃',), ('264',), Term('fixed', 20), 2000))}"
)
UNREADABLE = generation(f"窃取{THINK_END}不知道")


def variant(name: str, pool: FakePool) -> Variant:
    identity = Identity(Model(name=f"model-{name}", manifest="0" * 12, precision="int4"), MANIFEST)
    return Variant(name, Source(folder=name), identity, pool, state="ready")


def job(fact: str = "窃取", deadline_ms: float = 400) -> Job:
    now_s = time.monotonic()
    return Job(fact, now_s, now_s + deadline_ms / 1e3)


async def submit(router: Router, fact: str = "窃取") -> Served:
    return await router.choose(fact).submit(job(fact))


def make_router(split: Split, *pools: FakePool, **options: Any) -> tuple[Router, Metrics]:
    metrics = Metrics()
    names = ("a", "b", "c")
    variants = [variant(name, pool) for name, pool in zip(names, pools, strict=False)]
    router = Router(variants[0], VariantMetrics(metrics), **options)
    for other in variants[1:]:
        router.add(other)
    router.set_split(split)
    return router, metrics


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"curt_variant_{name}", labels) or 0.0


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_requests_are_counted_by_variant_and_the_route_says_which() -> None:
    split = Split(live="a", weights={"a": 0.5, "b": 0.5})
    pools = FakePool(FULL), FakePool(UNREADABLE)
    router, metrics = make_router(split, *pools)

    async def scenario() -> None:
        for number in range(100):
            fact = f"案{number}"
            route = router.choose(fact)
            assert route.variant == router.choose(fact).variant
            assert route.identity.model.name == f"model-{route.variant}"
            await route.submit(job(fact))

    run(scenario())
    counts = [len(pool.jobs) for pool in pools]
    assert sum(counts) == 100
    assert min(counts) > 25
    assert value(metrics, "requests_total", variant="a", outcome="full") == counts[0]
    assert value(metrics, "requests_total", variant="b", outcome="degraded") == counts[1]
    assert value(metrics, "latency_seconds_count", variant="b") == counts[1]
    assert value(metrics, "share", variant="b") == 0.5


def test_a_canary_that_fails_loses_its_traffic_and_the_live_one_keeps_serving() -> None:
    told: list[str] = []
    router, metrics = make_router(
        Split(live="a", canary=TrafficShare(name="b", share=0.3)),
        FakePool(FULL),
        FakePool(EngineFailedError("engine_error", "no")),
        on_rollback=lambda name, why: told.append(f"{name} {why.rate}"),
    )

    async def scenario() -> int:
        failed = 0
        for number in range(1000):
            try:
                await submit(router, f"案{number}")
            except EngineFailedError:
                failed += 1
        return failed

    failed = asyncio.run(scenario())
    assert failed == MIN_REQUESTS
    assert told == ["b errors"]
    assert router.split == Split(live="a")
    assert value(metrics, "rollbacks_total", rate="errors") == 1
    assert "rolled back" in router.variants["b"].note


def test_a_degrading_canary_is_rolled_back_and_a_like_one_is_not() -> None:
    async def scenario(answer: object) -> Split:
        router, _ = make_router(
            Split(live="a", canary=TrafficShare(name="b", share=0.3)),
            FakePool(FULL),
            FakePool(answer),  # type: ignore[arg-type]
        )
        for number in range(1000):
            await submit(router, f"案{number}")
        return router.split

    assert asyncio.run(scenario(UNREADABLE)).canary is None
    assert asyncio.run(scenario(FULL)).canary is not None


def test_what_clients_do_is_not_held_against_a_canary() -> None:
    router, _ = make_router(
        Split(live="a", canary=TrafficShare(name="b", share=0.9)),
        FakePool(FULL),
        FakePool(ClientGoneError("client_closed", "gone")),
    )

    async def scenario() -> None:
        for number in range(300):
            try:
                await submit(router, f"案{number}")
            except ClientGoneError:
                continue

    run(scenario())
    assert router.split.canary is not None


def test_a_dead_canary_costs_nobody_an_answer_and_is_rolled_back() -> None:
    dead = FakePool(FULL, ready=False)
    router, metrics = make_router(
        Split(live="a", canary=TrafficShare(name="b", share=0.5)), FakePool(FULL), dead
    )

    async def scenario() -> None:
        for number in range(300):
            await submit(router, f"案{number}")

    run(scenario())
    assert dead.jobs == []
    assert router.split.canary is None
    assert value(metrics, "rerouted_total", variant="b") == MIN_REQUESTS


def test_the_router_is_ready_with_its_live_variant_and_drains_all() -> None:
    live, other = FakePool(FULL), FakePool(FULL, ready=False)
    router, _ = make_router(Split(live="a"), live, other)
    assert router.ready
    router.drain()
    assert not router.ready
    assert not live.ready
    run(router.stop())


def test_a_variant_that_is_not_ready_gets_no_traffic() -> None:
    router, _ = make_router(Split(live="a"), FakePool(FULL), FakePool(FULL))
    router.variants["b"].state = "loading"
    with pytest.raises(ValueError, match="b is not ready"):
        router.set_split(Split(live="b"))
    with pytest.raises(ValueError, match="x is not ready"):
        router.set_split(Split(live="a", shadow=TrafficShare(name="x", share=0.5)))
    with pytest.raises(ValueError, match="traffic"):
        router.remove("a")
    router.remove("b")
    assert list(router.variants) == ["a"]


def test_two_pools_share_the_counters_of_the_server_but_a_shadow_counts_aside() -> None:
    metrics, quiet = Metrics(), {"b"}
    by_variant = VariantMetrics(metrics)
    by_variant.is_quiet = lambda name: name in quiet
    one, other = by_variant.for_pool("a"), by_variant.for_pool("b")
    sample = metrics.registry.get_sample_value
    for counted in (one, other):
        counted.shed.labels("overloaded").inc()
        counted.worker_deaths.inc()
        counted.workers_ready.set(2)
    assert sample("curt_shed_total", {"reason": "overloaded"}) == 1
    assert sample("curt_worker_deaths_total") == 1
    assert by_variant.deaths_aside("b") == 1
    assert sample("curt_workers_ready") == 2
    quiet.clear()
    other.worker_deaths.inc()
    assert sample("curt_worker_deaths_total") == 2
    assert sample("curt_workers_ready") == 4
    by_variant.forget("b")
    assert sample("curt_workers_ready") == 2
    assert sample("curt_variant_workers_ready", {"variant": "b"}) is None


def test_a_stream_is_counted_when_it_ends_however_it_ends() -> None:
    async def scenario() -> Metrics:
        async with running_pool(open_engine=open_streaming_engine) as pool:
            metrics = Metrics()
            router = Router(variant("a", pool), VariantMetrics(metrics))  # type: ignore[arg-type]

            def stream(deadline_ms: float) -> ServedStream:
                return router.choose(FACTS[0]).stream(job(FACTS[0], deadline_ms))

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
            with pytest.raises(OverloadedError):
                stream(10)
            return metrics

    metrics = asyncio.run(scenario())
    for outcome in ("full", "cancelled", "refused"):
        assert value(metrics, "requests_total", variant="a", outcome=outcome) == 1
