"""Copies of requests for a shadow; the pools are stand-ins."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field, replace

import pytest

from serve.errors import OverloadedError
from serve.metrics import Metrics
from serve.pool.job import Job
from serve.served import Served
from serve.variants.router import Router
from serve.variants.shadow import compare
from serve.variants.split import Split, TrafficShare
from tests.serve.fake_engine import VERDICT
from tests.serve.fake_pool import FakePool
from tests.serve.variants.test_router import (
    FULL,
    OTHER,
    UNREADABLE,
    job,
    make_router,
    run,
    submit,
    value,
)


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


def shadowed(live: FakePool, shadow: FakePool) -> tuple[Router, Metrics]:
    return make_router(Split(live="a", shadow=TrafficShare(name="b", share=1.0)), live, shadow)


def test_a_shadow_is_compared_and_never_returned(caplog: pytest.LogCaptureFixture) -> None:
    live, shadow = FakePool(FULL), FakePool(OTHER)
    router, metrics = shadowed(live, shadow)

    async def scenario() -> None:
        served = await router.choose("窃取手机", request_id="r1").submit(job("窃取手机", 300))
        assert served.generation is FULL
        assert shadow.jobs == []  # not before the answer is given
        await asyncio.sleep(0.05)

    with caplog.at_level(logging.INFO, "serve.variants.shadow"):
        run(scenario())
    assert [each.fact for each in shadow.jobs] == ["窃取手机"]
    assert shadow.jobs[0].deadline_s - shadow.jobs[0].arrived_s == pytest.approx(0.3, abs=0.001)
    assert value(metrics, "shadow_total", variant="b", outcome="differed") == 1
    assert value(metrics, "requests_total", variant="b", outcome="full") == 0
    (record,) = caplog.records
    fields = vars(record)
    assert fields["request_id"] == "r1"
    assert (fields["variant"], fields["shadow"]) == ("a", "b")
    assert fields["same_charges"] is True
    assert fields["same_term"] is fields["same_verdict"] is False
    assert fields["months_apart"] == 20 - VERDICT.term.months
    assert "窃取" not in str(fields)


def test_a_shadow_never_delays_an_answer_and_makes_way() -> None:
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
    assert value(metrics, "shadow_total", variant="b", outcome="preempted") == 1


def test_shadows_are_dropped_first_under_load() -> None:
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
    assert value(metrics, "shadow_total", variant="b", outcome="dropped") == 31
    assert len(shadow.started) == 1  # after the last answer


def test_a_shadow_that_fails_is_nobodys_trouble() -> None:
    router, metrics = shadowed(FakePool(FULL), FakePool(OverloadedError("overloaded", "no")))

    async def scenario() -> None:
        await submit(router)
        await asyncio.sleep(0.05)

    run(scenario())
    assert value(metrics, "shadow_total", variant="b", outcome="failed") == 1


def test_only_full_verdicts_of_models_are_compared() -> None:
    full = Served(FULL, 48, 48, False, 1.0)
    unreadable = Served(UNREADABLE, 48, 48, False, 1.0)
    assert compare(full, full)["same_verdict"] is True
    assert compare(full, unreadable)["same_verdict"] is None
    assert compare(full, unreadable)["shadow_degraded"]
    assert compare(replace(full, unserved="overloaded"), full)["live_degraded"]
