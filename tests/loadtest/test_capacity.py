from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest._reply import Outcome
from loadtest.capacity._page import draw_capacity, render_page
from loadtest.capacity._rates import SearchPlan, find_highest, next_rate
from loadtest.capacity._search import Capacity, search
from loadtest.capacity._step import AskResult, RateStep, StepPlan, run_step

# Wide enough that a busy machine changes nothing of what is tested.
QUICK = StepPlan(
    slo_ms=1000,
    start_per_s=50,
    min_requests=30,
    min_s=0.1,
    warmup_requests=5,
    settle_s=0.0,
    patience_s=3.0,
    max_per_s=200,
    precision=0.5,
)


def step_at(rate: float, *, kept: bool, number: int = 0, p99_ms: float = 100.0) -> RateStep:
    row = Outcome(p99_ms, None if kept else "over the SLO", answered=True, lag_ms=0.1, at_s=1.0)
    rows = tuple(replace(row, at_s=float(at)) for at in range(10))
    return RateStep(number, rate, QUICK.slo, rows, asked=12, figures={"tokens": 3.0})


def search_without_load(plan: StepPlan, limit_per_s: float) -> list[RateStep]:
    steps: list[RateStep] = []
    while (rate := next_rate(plan, steps)) is not None:
        steps.append(step_at(rate, kept=rate <= limit_per_s, number=len(steps)))
    return steps


@given(st.floats(0.06, 9000), st.floats(0.1, 5000))
def test_the_bracket_closes_around_the_limit(limit: float, start: float) -> None:
    plan = StepPlan(start_per_s=start, precision=0.05)
    found = Capacity(tuple(search_without_load(plan, limit)), finished=True)
    assert found.broken_at_per_s is not None
    assert found.rate_per_s <= limit < found.broken_at_per_s
    assert found.broken_at_per_s <= found.rate_per_s * 1.05 * (1 + 1e-9)
    assert len(found.steps) < 30


def test_a_search_ends_at_its_bounds() -> None:
    plan = StepPlan(start_per_s=2, min_per_s=0.5, max_per_s=10)
    endless = Capacity(tuple(search_without_load(plan, 1e9)), finished=True)
    assert (endless.rate_per_s, endless.broken_at_per_s) == (10, None)
    assert "none higher was tried" in endless.note
    hopeless = Capacity(tuple(search_without_load(plan, 0.0)), finished=True)
    assert (hopeless.rate_per_s, hopeless.broken_at_per_s) == (0, 0.5)
    assert hopeless.goodput_per_s == 0
    assert "no rate kept the promise" in hopeless.note
    assert Capacity((), finished=False).note == "nothing was measured"


def test_a_rate_that_broke_once_gets_its_other_attempts() -> None:
    plan = StepPlan(start_per_s=2, attempts=2)
    steps = [step_at(2, kept=True), step_at(4, kept=False)]
    assert next_rate(plan, steps) == 4
    assert next_rate(plan, [*steps, step_at(4, kept=True)]) == 8
    assert next_rate(plan, [*steps, step_at(4, kept=False)]) == pytest.approx(8**0.5)
    assert Capacity((*steps, step_at(4, kept=True)), finished=True).broken_at_per_s is None


def test_a_going_on_search_asks_what_an_unbroken_one_would_have() -> None:
    plan = StepPlan(start_per_s=3)
    steps = search_without_load(plan, 77.0)
    for known in range(1, len(steps)):
        assert next_rate(plan, steps[:known]) == steps[known].rate_per_s


def test_the_knee_is_where_p99_doubles() -> None:
    p99s = {2.0: 100.0, 4.0: 110.0, 8.0: 199.0, 16.0: 201.0, 32.0: 150.0}
    steps = tuple(step_at(rate, kept=True, p99_ms=p99) for rate, p99 in p99s.items())
    assert Capacity(steps[::-1], finished=True).knee_per_s == 8


@pytest.mark.parametrize(
    ("requests", "max_miss_rate", "allowed"), [(1000, 0.01, 10), (1000, 0.001, 1), (50, 0.5, 0)]
)
def test_the_misses_allowed_are_those_a_kept_step_may_have(
    requests: int, max_miss_rate: float, allowed: int
) -> None:
    plan = StepPlan(max_miss_rate=max_miss_rate)
    assert plan.misses_allowed(requests) == allowed
    good, bad = Outcome(10.0, None, answered=True), Outcome(10.0, "status 500")
    for misses, kept in ((allowed, True), (allowed + 1, False)):
        rows = (good,) * (requests - misses) + (bad,) * misses
        assert RateStep(0, 5.0, plan.slo, rows).kept is kept


def test_the_length_of_a_step() -> None:
    plan = StepPlan(min_requests=1000, min_s=10)
    assert [plan.requests_at(rate) for rate in (1, 100, 500)] == [1000, 1000, 5000]
    assert replace(plan, max_s=20).requests_at(5) == 100


@pytest.mark.parametrize(
    "changes", [{"slo_ms": 0}, {"factor": 1}, {"start_per_s": 0}, {"patience_s": 0.1}]
)
def test_a_plan_that_means_nothing_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="use "):
        replace(StepPlan(), **changes)


async def quick(_: int) -> AskResult:
    return AskResult(figures={"tokens": 7.0})


def test_a_step_counts_what_comes_after_the_warm_up() -> None:
    asked: list[int] = []

    async def ask(index: int) -> AskResult:
        asked.append(index)
        return await quick(index)

    step = asyncio.run(run_step(ask, 200, QUICK, first_index=100))
    assert step.kept
    assert len(step.rows) == 30
    assert step.asked == len(asked) == 35
    assert asked == list(range(100, 135)), "no index comes twice"
    assert step.figures == {"tokens": 7.0}


def test_latency_counts_from_the_schedule_and_not_from_the_reply_before() -> None:
    """One at a time, 30 ms each, at 100 a second: the queue shows in every later latency."""

    async def run() -> RateStep:
        lock = asyncio.Lock()

        async def ask(_: int) -> AskResult:
            async with lock:
                await asyncio.sleep(0.03)
            return AskResult()

        return await run_step(ask, 100, replace(QUICK, warmup_requests=0))

    step = asyncio.run(run())
    latencies = [row.latency_ms for row in step.rows]
    assert latencies[-1] > 10 * 30 * 0.5
    assert latencies[-1] > latencies[0]


def test_lateness_failures_and_silence_are_misses_by_name() -> None:
    async def ask(index: int) -> AskResult:
        if index % 4 == 0:
            await asyncio.sleep(0.35)
        if index % 4 == 1:
            raise ConnectionResetError
        if index % 4 == 2:
            await asyncio.sleep(60)
        return AskResult("shed (503)") if index % 4 == 3 else AskResult()

    plan = replace(QUICK, slo_ms=300, patience_s=0.6, stop_early=False)
    step = asyncio.run(run_step(ask, 200, plan))
    told = step.summary()
    assert set(told["misses_by_reason"]) == {
        "over the SLO", "connection: ConnectionResetError", "timeout", "shed (503)",
    }  # fmt: skip
    assert told["misses"] == told["requests"] == 30
    assert told["p50_ms"] is None, "it falls on a request without an answer"


def test_a_hopeless_step_ends_early_even_without_any_reply() -> None:
    async def silent(_: int) -> AskResult:
        await asyncio.sleep(60)
        return AskResult()

    plan = replace(QUICK, slo_ms=200, patience_s=0.5, min_requests=100_000)
    started_s = time.monotonic()
    step = asyncio.run(run_step(silent, 200, plan))
    assert step.stopped_early
    assert not step.kept
    assert time.monotonic() - started_s < 20, "100,000 requests would take eight minutes"


def test_a_bug_in_ask_is_no_miss() -> None:
    async def broken(_: int) -> AskResult:
        raise KeyError("defendants")

    with pytest.raises(KeyError):
        asyncio.run(search(broken, QUICK))


def test_a_search_asks_nothing_twice_and_tells_of_every_step() -> None:
    asked: list[int] = []

    async def ask(index: int) -> AskResult:
        asked.append(index)
        return AskResult() if index < 150 else AskResult("status 500")

    heard: list[RateStep] = []
    found = asyncio.run(search(ask, QUICK, heard.append))
    assert list(found.steps) == heard
    assert len(heard) > 2
    assert sorted(asked) == list(range(len(asked)))
    assert found.finished


def test_a_cancelled_search_keeps_every_finished_step() -> None:
    heard: list[RateStep] = []

    async def run() -> None:
        task = asyncio.create_task(search(quick, QUICK, heard.append))
        while not heard:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing is left under way"

    asyncio.run(run())
    assert heard
    assert heard[0].kept


def test_the_pictures_and_the_page_take_any_search() -> None:
    silent = Outcome(1.0, "timeout")
    broken = RateStep(2, 200.0, QUICK.slo, (silent,), stopped_early=True)
    found = Capacity((step_at(50, kept=True), step_at(100, kept=True), broken), finished=True)
    assert draw_capacity(found, 400).startswith(b"\x89PNG")
    settings = {"host": "http://here", "plan": {"slo_ms": 400.0}}
    page = render_page(settings, found)
    assert "100.0/s" in page
    assert page.count("<svg") == 1
    assert "<script" not in page
    assert "<svg" not in render_page(settings, Capacity((), finished=False))


@given(limit=st.floats(1.0, 200.0), start=st.floats(1.0, 200.0), factor=st.floats(1.05, 2.0))
def test_any_search_ends_just_below_the_limit(limit: float, start: float, factor: float) -> None:
    tried: list[float] = []

    async def keeps(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    plan = SearchPlan(start_per_s=start, factor=factor, precision=0.06, max_steps=14)
    found = asyncio.run(find_highest(keeps, plan))
    assert found == max((rate for rate in tried if rate <= limit), default=0.0)
    if len(tried) < 14 and found:  # it stopped because it knew, not because it was tired
        assert limit < found * 1.0601 * 1.0001


def test_a_search_gives_up_at_its_lowest_rate_and_forgives_a_hiccup() -> None:
    tried: list[float] = []

    async def keeps(rate: float) -> bool:
        tried.append(rate)
        return False

    plan = SearchPlan(start_per_s=8.0, min_per_s=2.0, attempts=2)
    assert asyncio.run(find_highest(keeps, plan)) == 0.0
    assert tried == [8.0, 8.0, 4.0, 4.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="factor of 1"):
        SearchPlan(factor=1.0)
