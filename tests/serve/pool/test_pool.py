"""The pool over real spawned processes; only the engine inside them is a stand-in."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from curt.classifier.model import Prediction
from curt.engines.budget import ENOUGH
from curt.law.verdict import Term, Verdict
from serve.errors import (
    DeadlineTooShortError,
    EngineFailedError,
    OverloadedError,
    RequestError,
)
from serve.metrics import Metrics
from serve.pool.job import Job, Piece
from serve.pool.pool import WorkerPool
from serve.pool.stand_in import VerdictSource
from serve.pool.worker import OpenEngine
from serve.served import Served
from tests.serve.fake_engine import (
    MANIFEST,
    open_broken_engine,
    open_fake_engine,
    open_streaming_engine,
)

FACT = "被告人张某窃取手机一部。"


def job(deadline_ms: float, fact: str = FACT) -> Job:
    now_s = time.monotonic()
    return Job(fact, now_s, now_s + deadline_ms / 1e3)


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def running_pool(
    workers: int = 1,
    queue_size: int = 8,
    open_engine: OpenEngine = open_fake_engine,
    spares: int = 0,
    fallback: VerdictSource | None = None,
    folder: Path = Path("unused"),
    on_refusal: Callable[[], None] | None = None,
) -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(
        folder,
        MANIFEST,
        Metrics(),
        workers=workers,
        spares=spares,
        fallback=fallback,
        queue_size=queue_size,
        margin_ms=10,
        open_engine=open_engine,
        on_refusal=on_refusal,
    )
    await pool.start()
    try:
        if open_engine is not open_broken_engine:
            await until(lambda: pool.ready)
        yield pool
    finally:
        await pool.stop()


async def reason_of(serving: Awaitable[Served]) -> str:
    """The reason of a refusal, which says to ask again where that can help and only there."""
    with pytest.raises(RequestError) as caught:
        await serving
    helps = isinstance(caught.value, OverloadedError)
    assert helps is (caught.value.status == 503)
    assert helps is ("Retry-After" in caught.value.headers)
    return caught.value.reason


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_deadline_becomes_a_budget_and_is_kept() -> None:
    async def scenario() -> None:
        async with running_pool() as pool:
            roomy = await pool.submit(job(2000))
            assert roomy.thinking_allowed == roomy.stated_budget == MANIFEST.max_thinking_tokens
            started_s = time.monotonic()
            tight = await pool.submit(job(100))
            assert time.monotonic() - started_s < 0.25  # loose: a busy machine sleeps late
            assert 0 < tight.thinking_allowed < MANIFEST.max_thinking_tokens
            assert tight.stated_budget <= tight.thinking_allowed
            assert tight.generation.thinking_tokens == tight.thinking_allowed

    asyncio.run(scenario())


def test_a_slow_spell_does_not_refuse_everyone_after_it() -> None:
    async def scenario() -> None:
        async with running_pool() as pool:
            for _ in range(ENOUGH):
                now_s = time.monotonic()
                await pool.submit(Job(FACT + "慢十倍", now_s, now_s + 3, max_thinking_tokens=0))
            assert await reason_of(pool.submit(job(250))) == "overloaded"  # which will pass
            ended_s = time.monotonic()
            while True:
                try:
                    served = await pool.submit(job(250))
                    break
                except OverloadedError:
                    await asyncio.sleep(0.05)
            assert served.generation.finish == "stop"
            assert time.monotonic() - ended_s < 3

    asyncio.run(scenario())


def test_the_hopeless_is_refused_at_once_and_costs_nothing() -> None:
    async def scenario() -> None:
        async with running_pool() as pool:
            started_s = time.monotonic()
            assert await reason_of(pool.submit(job(30))) == "deadline_too_short"
            assert time.monotonic() - started_s < 0.2

    asyncio.run(scenario())


def test_only_a_refusal_beside_other_work_is_a_sign_of_load() -> None:
    async def scenario() -> None:
        told: list[None] = []
        async with running_pool(queue_size=0, on_refusal=lambda: told.append(None)) as pool:
            assert await reason_of(pool.submit(job(30))) == "deadline_too_short"
            assert told == []
        async with running_pool(queue_size=1, on_refusal=lambda: told.append(None)) as pool:
            slow = []
            for _ in range(2):  # one at work, one waiting
                slow.append(asyncio.create_task(pool.submit(job(3000, FACT + "睡300毫秒"))))
                await asyncio.sleep(0.1)
            assert await reason_of(pool.submit(job(30))) == "deadline_too_short"
            assert await reason_of(pool.submit(job(4000))) == "queue_full"
            assert len(told) == 1  # the first can't be met on an idle machine either
            await asyncio.gather(*slow)

    asyncio.run(scenario())


def test_the_earliest_deadline_is_served_first_and_a_full_queue_refuses() -> None:
    async def scenario() -> None:
        async with running_pool(queue_size=2) as pool:
            done: list[str] = []

            async def submit(name: str, deadline_ms: float, fact: str = FACT) -> None:
                await pool.submit(job(deadline_ms, fact))
                done.append(name)

            async with asyncio.TaskGroup() as group:
                group.create_task(submit("first", 3000, FACT + "睡300毫秒"))
                await asyncio.sleep(0.05)
                group.create_task(submit("patient", 5000))
                group.create_task(submit("urgent", 2000))
                await asyncio.sleep(0.05)
                assert await reason_of(pool.submit(job(6000))) == "queue_full"
            assert done == ["first", "urgent", "patient"]

    asyncio.run(scenario())


def test_a_full_queue_lets_go_of_who_can_wait_longest() -> None:
    async def scenario() -> None:
        async with running_pool(queue_size=4) as pool:
            slow = asyncio.create_task(pool.submit(job(3000, FACT + "睡200毫秒")))
            await asyncio.sleep(0.02)
            patient = [asyncio.create_task(pool.submit(job(60_000 + n))) for n in range(4)]
            await asyncio.sleep(0.02)
            urgent = [await pool.submit(job(800)) for _ in range(2)]
            assert all(served.generation.finish == "stop" for served in urgent)
            ends = await asyncio.gather(*patient, return_exceptions=True)
            # the first urgent one took the place of the last; by the second there was room
            assert [isinstance(end, Served) for end in ends] == [True, True, True, False]
            assert isinstance(ends[3], OverloadedError)
            assert ends[3].reason == "queue_full"
            await slow

    asyncio.run(scenario())


def test_what_waits_too_long_is_given_up_before_its_deadline() -> None:
    async def scenario() -> None:
        async with running_pool() as pool:
            slow = asyncio.create_task(pool.submit(job(3000, FACT + "睡800毫秒")))
            await asyncio.sleep(0.2)  # past the end that was predicted for it
            started_s = time.monotonic()
            assert await reason_of(pool.submit(job(300))) == "expired"
            assert time.monotonic() - started_s < 0.3
            assert (await slow).generation.finish == "stop"

    asyncio.run(scenario())


def test_one_who_leaves_frees_the_queue() -> None:
    async def scenario() -> None:
        async with running_pool(queue_size=1) as pool:
            slow = asyncio.create_task(pool.submit(job(3000, FACT + "睡300毫秒")))
            await asyncio.sleep(0.05)
            leaver = asyncio.create_task(pool.submit(job(3000)))
            await asyncio.sleep(0.05)
            leaver.cancel()
            await asyncio.gather(leaver, return_exceptions=True)
            assert (await pool.submit(job(3000))).generation.answer_tokens == 30
            await slow

    asyncio.run(scenario())


def test_a_rush_shortens_reasoning_before_it_refuses_anyone() -> None:
    async def scenario() -> None:
        async with running_pool() as pool:
            alone = await pool.submit(job(600))
            rush = await asyncio.gather(*(pool.submit(job(600)) for _ in range(6)))
            assert all(served.thinking_allowed < alone.thinking_allowed for served in rush[:5])

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["refused", "left"])
def test_those_who_take_no_work_shorten_nobodys_reasoning(kind: str) -> None:
    async def scenario() -> None:
        async with running_pool(workers=2, queue_size=4) as pool:
            for _ in range(ENOUGH):
                await pool.submit(job(2000))
            await asyncio.sleep(0.05)  # for the estimates

            async def flood() -> None:
                while True:
                    if kind == "refused":
                        await reason_of(pool.submit(job(25)))
                    else:
                        leaver = asyncio.create_task(pool.submit(job(60_000)))
                        await asyncio.sleep(0)  # it enters the queue
                        leaver.cancel()
                        await asyncio.gather(leaver, return_exceptions=True)
                    await asyncio.sleep(0.002)

            flooding = asyncio.create_task(flood())
            await asyncio.sleep(1.0)
            served = [await pool.submit(job(600)) for _ in range(8)]
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
            least = min(each.thinking_allowed for each in served)
            assert least == MANIFEST.max_thinking_tokens
            assert not any(each.short_thinking for each in served)

    asyncio.run(scenario())


@pytest.mark.parametrize("flood_ms", [150, 600, 20_000])
def test_one_who_behaves_keeps_its_answers_and_reasoning_beside_one_who_floods(
    flood_ms: float,
) -> None:
    """Neither many requests nor short deadlines nor long ones buy another's part."""

    async def scenario() -> None:
        async with running_pool(workers=2, queue_size=16) as pool:
            for _ in range(ENOUGH):
                await pool.submit(job(2000))
            flooding = True

            async def flood() -> None:
                while flooding:
                    try:
                        await pool.submit(replace(job(flood_ms), client="flood"))
                    except OverloadedError:
                        await asyncio.sleep(0.01)

            floods = [asyncio.create_task(flood()) for _ in range(32)]
            await asyncio.sleep(1.5)
            served, lost = [], []
            for _ in range(20):
                try:
                    served.append(await pool.submit(replace(job(600), client="calm")))
                except OverloadedError as refusal:
                    lost.append(refusal.reason)
                await asyncio.sleep(0.05)
            flooding = False
            await asyncio.gather(*floods)
            assert lost in ([], ["overrun"])  # a machine that stalls may cost one, a flood none
            assert all(each.generation.finish == "stop" for each in served)
            allowed = sorted(each.thinking_allowed for each in served)
            assert allowed[len(allowed) // 2] == MANIFEST.max_thinking_tokens

    asyncio.run(scenario())


def test_an_answer_says_whether_load_or_its_deadline_shortened_its_reasoning() -> None:
    async def scenario() -> None:
        async with running_pool() as pool:
            assert (await pool.submit(job(100))).short_thinking is None  # nothing is known yet
            for _ in range(ENOUGH):
                await pool.submit(job(2000))
            await asyncio.sleep(0.05)  # for the estimates
            usual = MANIFEST.max_thinking_tokens  # which the fake engine uses up
            tight = await pool.submit(job(80))
            assert (tight.usual_thinking, tight.short_thinking) == (usual, "deadline")
            now_s = time.monotonic()
            modest = await pool.submit(Job(FACT, now_s, now_s + 2, max_thinking_tokens=8))
            assert (modest.thinking_allowed, modest.short_thinking) == (8, None)
            rush = await asyncio.gather(*(pool.submit(job(600)) for _ in range(6)))
            assert {each.short_thinking for each in rush} >= {"load"}

    asyncio.run(scenario())


def test_a_killed_worker_is_replaced_and_its_request_tried_again() -> None:
    async def scenario() -> None:
        async with running_pool(workers=2) as pool:
            before = set(pool.worker_pids)
            slow = asyncio.create_task(pool.submit(job(8000, FACT + "睡600毫秒")))
            await asyncio.sleep(0.1)
            (busy,) = [slot.worker for slot in pool._slots if slot.busy]
            assert busy
            assert busy.pid
            os.kill(busy.pid, signal.SIGKILL)
            assert (await slow).generation.finish == "stop"
            await until(lambda: len(pool.worker_pids) == 2)
            assert set(pool.worker_pids) != before

    asyncio.run(scenario())


def test_an_idle_worker_that_dies_is_replaced() -> None:
    async def scenario() -> None:
        async with running_pool() as pool:
            (pid,) = pool.worker_pids
            os.kill(pid, signal.SIGKILL)
            await until(lambda: not pool.ready)
            assert await reason_of(pool.submit(job(200))) == "overloaded"
            await until(lambda: pool.ready)
            assert (await pool.submit(job(2000))).generation.finish == "stop"

    asyncio.run(scenario())


def test_a_request_that_kills_workers_is_given_up_after_the_second() -> None:
    async def scenario() -> None:
        async with running_pool(workers=2) as pool:
            with pytest.raises(EngineFailedError) as caught:
                await pool.submit(job(20_000, FACT + "崩溃"))
            assert caught.value.reason == "worker_died"
            assert caught.value.headers == {"X-Should-Retry": "false"}
            await until(lambda: pool.ready)
            assert (await pool.submit(job(2000))).generation.finish == "stop"

    asyncio.run(scenario())


def test_an_engine_that_raises_keeps_its_worker_and_the_fact_out_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        async with running_pool() as pool:
            before = pool.worker_pids
            with caplog.at_level(logging.DEBUG), pytest.raises(EngineFailedError):
                await pool.submit(job(2000, FACT + "出错"))
            assert pool.worker_pids == before

    asyncio.run(scenario())
    records = [str(vars(record)) for record in caplog.records]
    assert any("ValueError" in record for record in records)
    assert not any("张某" in record for record in records)


def test_a_model_that_does_not_load_is_told_and_never_ready(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        async with running_pool(open_engine=open_broken_engine) as pool:
            await until(lambda: "no such weights" in caplog.text)
            assert not pool.ready
            assert await reason_of(pool.submit(job(1000))) == "starting"

    asyncio.run(scenario())


def test_stopping_finishes_what_runs_refuses_the_new_and_leaves_no_process() -> None:
    async def scenario() -> None:
        async with running_pool() as pool:
            pids = pool.worker_pids
            slow = asyncio.create_task(pool.submit(job(3000, FACT + "睡300毫秒")))
            await asyncio.sleep(0.05)
            stopping = asyncio.create_task(pool.stop())
            await asyncio.sleep(0)
            assert not pool.ready
            assert await reason_of(pool.submit(job(1000))) == "draining"
            assert (await slow).generation.finish == "stop"
            await stopping
            assert not any(is_alive(pid) for pid in pids)

    asyncio.run(scenario())


def test_stopping_while_the_model_loads_does_not_wait_for_it() -> None:
    async def scenario() -> float:
        pool = WorkerPool(
            Path("unused"), MANIFEST, Metrics(), workers=1, queue_size=1, margin_ms=10,
            open_engine=open_fake_engine,
        )  # fmt: skip
        await pool.start()
        await asyncio.sleep(0.1)
        started_s = time.monotonic()
        await pool.stop()
        return time.monotonic() - started_s

    assert asyncio.run(scenario()) < 3.0


def test_estimates_that_refuse_everyone_are_checked_on_an_idle_worker() -> None:
    async def scenario() -> None:
        async with running_pool() as pool:
            assert await reason_of(pool.submit(job(30))) == "deadline_too_short"
            await until(lambda: pool._estimator.quiet_s(time.monotonic()) < 5)

    asyncio.run(scenario())


def count(pool: WorkerPool, name: str, **labels: str) -> float:
    return pool._metrics.registry.get_sample_value(f"curt_{name}_total", labels) or 0.0


class FakeClassifier:
    """Always says fraud, and remembers what it was asked."""

    def __init__(self) -> None:
        self.facts: list[str] = []

    def predict(self, fact: str) -> Prediction:
        self.facts.append(fact)
        verdict = Verdict(("诈骗",), ("266",), Term("fixed", 36))
        return Prediction(verdict, {"charge": 0.8, "article": 0.7, "term": 0.4})


async def idle_after(pool: WorkerPool) -> float:
    """Seconds until no worker is busy."""
    started_s = time.monotonic()
    while any(slot.busy for slot in pool._slots):
        assert time.monotonic() - started_s < 5, "still busy"
        await asyncio.sleep(0.0005)
    return time.monotonic() - started_s


def test_one_who_leaves_while_a_worker_computes_frees_it_within_20_ms() -> None:
    async def scenario() -> None:
        async with running_pool(open_engine=open_streaming_engine) as pool:
            freed_s = []
            for _ in range(5):
                leaver = asyncio.create_task(pool.submit(job(3000)))
                await asyncio.sleep(0.05)
                assert pool._slots[0].busy
                leaver.cancel()
                await asyncio.gather(leaver, return_exceptions=True)
                freed_s.append(await idle_after(pool))
            assert sorted(freed_s)[2] < 0.02
            assert count(pool, "cancelled", stage="running") == 5
            assert count(pool, "worker_deaths") == 0
            assert "curt_shed_total{" not in pool._metrics.render().decode()
            # and what comes next is its own answer, not a late one of those who left
            served = await pool.submit(job(3000, FACT + "编号7319"))
            assert served.generation.text.startswith("7319")

    asyncio.run(scenario())


def test_one_who_leaves_the_queue_counts_as_cancelled_there() -> None:
    async def scenario() -> None:
        async with running_pool() as pool:
            slow = asyncio.create_task(pool.submit(job(3000, FACT + "睡200毫秒")))
            await asyncio.sleep(0.05)
            leaver = asyncio.create_task(pool.submit(job(3000)))
            await asyncio.sleep(0.02)
            leaver.cancel()
            await asyncio.gather(leaver, return_exceptions=True)
            assert count(pool, "cancelled", stage="queued") == 1
            await slow

    asyncio.run(scenario())


def test_leaving_at_any_moment_never_mixes_up_answers() -> None:
    async def scenario() -> None:
        async with running_pool(workers=2, open_engine=open_streaming_engine) as pool:
            for moment_ms in range(0, 60, 3):
                leaver = asyncio.create_task(pool.submit(job(500, FACT + "编号1111")))
                await asyncio.sleep(moment_ms / 1e3)
                leaver.cancel()
                served = await pool.submit(job(400, FACT + f"编号{2000 + moment_ms}"))
                assert served.generation.text.startswith(str(2000 + moment_ms))
                await asyncio.gather(leaver, return_exceptions=True)

    asyncio.run(scenario())


def test_a_stream_tells_the_reasoning_and_then_the_answer() -> None:
    async def scenario() -> None:
        async with running_pool(open_engine=open_streaming_engine) as pool:
            stream = pool.stream(job(2000))
            events = [event async for event in stream]
            stream.close()
            *pieces, served = events
            assert isinstance(served, Served)
            assert len(pieces) > 3  # 64 tokens of 2 ms, gathered for 20 ms
            assert all(isinstance(piece, Piece) and piece.attempt == 1 for piece in pieces)
            told = "".join(piece.text for piece in pieces if isinstance(piece, Piece))
            assert served.generation.text.startswith(told + "</think>")
            assert count(pool, "cancelled", stage="running") == 0

    asyncio.run(scenario())


def test_a_stream_is_refused_before_it_begins() -> None:
    async def scenario() -> None:
        async with running_pool(open_engine=open_streaming_engine) as pool:
            with pytest.raises(DeadlineTooShortError, match="longer deadline"):
                pool.stream(job(25))
            pool.drain()
            with pytest.raises(OverloadedError, match="shutting down"):
                pool.stream(job(2000))

    asyncio.run(scenario())


def test_closing_a_stream_stops_the_worker() -> None:
    async def scenario() -> None:
        async with running_pool(open_engine=open_streaming_engine) as pool:
            stream = pool.stream(job(3000))
            assert isinstance(await anext(stream), Piece)
            stream.close()
            stream.close()
            assert await idle_after(pool) < 0.1
            assert count(pool, "cancelled", stage="running") == 1
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    asyncio.run(scenario())


def test_a_stream_whose_worker_dies_begins_its_reasoning_again() -> None:
    async def scenario() -> None:
        async with running_pool(spares=1, open_engine=open_streaming_engine) as pool:
            await until(lambda: len(pool._spares.spare_pids) == 1)
            stream = pool.stream(job(8000))
            first = await anext(stream)
            assert isinstance(first, Piece)
            os.kill(pool.worker_pids[0], signal.SIGKILL)
            *pieces, served = [event async for event in stream]
            stream.close()
            assert isinstance(served, Served)
            again = [p.text for p in pieces if isinstance(p, Piece) and p.attempt == 2]
            assert served.generation.text.startswith("".join(again) + "</think>")

    asyncio.run(scenario())


@pytest.mark.parametrize("moment_s", [0.0, 0.04], ids=["before", "while thinking"])
def test_a_hung_worker_gives_way_to_a_spare_within_the_deadline(moment_s: float) -> None:
    async def scenario() -> None:
        async with running_pool(spares=1, open_engine=open_streaming_engine) as pool:
            await pool.submit(job(2000))
            await until(lambda: len(pool._spares.spare_pids) == 1)
            (pid,) = pool.worker_pids
            if not moment_s:
                os.kill(pid, signal.SIGSTOP)
            answering = asyncio.create_task(pool.submit(job(1500)))
            if moment_s:
                await asyncio.sleep(moment_s)
                os.kill(pid, signal.SIGSTOP)
            served = await answering
            assert served.generation.finish == "stop"
            assert (await pool.submit(job(400))).generation.finish == "stop"
            assert count(pool, "worker_deaths") == 1
            assert not is_alive(pid)

    asyncio.run(scenario())


def test_a_slow_worker_that_makes_steps_is_not_given_up() -> None:
    async def scenario() -> None:
        async with running_pool(spares=1, open_engine=open_streaming_engine) as pool:
            await until(lambda: len(pool._spares.spare_pids) == 1)
            before = pool.worker_pids
            for _ in range(3):
                await pool.submit(job(3000, FACT + "睡200毫秒"))
            assert pool.worker_pids == before

    asyncio.run(scenario())


def test_a_spare_takes_the_place_of_a_dead_worker_within_two_seconds() -> None:
    async def scenario() -> None:
        async with running_pool(spares=1) as pool:
            await until(lambda: len(pool._spares.spare_pids) == 1)
            (spare,) = pool._spares.spare_pids
            started_s = time.monotonic()
            os.kill(pool.worker_pids[0], signal.SIGKILL)
            await until(lambda: pool.worker_pids == [spare], 2.0)
            assert time.monotonic() - started_s < 2.0
            assert (await pool.submit(job(2000))).generation.finish == "stop"
            await until(lambda: len(pool._spares.spare_pids) == 1)  # and there is a new one

    asyncio.run(scenario())


def test_a_spare_that_dies_in_reserve_is_replaced_and_nobody_notices() -> None:
    async def scenario() -> None:
        async with running_pool(spares=1) as pool:
            await until(lambda: len(pool._spares.spare_pids) == 1)
            before = pool._spares.spare_pids
            os.kill(before[0], signal.SIGKILL)
            await until(lambda: pool._spares.spare_pids not in (before, []))
            assert (await pool.submit(job(2000))).generation.finish == "stop"
            assert count(pool, "worker_deaths") == 1

    asyncio.run(scenario())


def test_the_classifier_answers_where_the_model_has_no_time() -> None:
    async def scenario() -> None:
        classifier = FakeClassifier()
        async with running_pool(fallback=classifier) as pool:
            started_s = time.monotonic()
            served = await pool.submit(job(25))
            assert time.monotonic() - started_s < 0.1
            assert (served.source, served.unserved) == ("fallback", "deadline")
            assert served.fallback
            assert served.fallback.confidences["charge"] == 0.8
            assert served.generation.text == ""
            assert count(pool, "fallback", reason="deadline_too_short") == 1
            assert await reason_of(pool.submit(job(2))) == "deadline_too_short"
            assert classifier.facts == [FACT]  # the hopeless one cost it nothing
            pool.drain()
            assert await reason_of(pool.submit(job(2000))) == "draining"

    asyncio.run(scenario())


def test_the_classifier_answers_for_those_a_full_pool_would_refuse() -> None:
    async def scenario() -> None:
        async with running_pool(queue_size=1, fallback=FakeClassifier()) as pool:
            slow = asyncio.create_task(pool.submit(job(3000, FACT + "睡300毫秒")))
            await asyncio.sleep(0.05)
            waiting = asyncio.create_task(pool.submit(job(3000)))
            await asyncio.sleep(0.01)
            third = await pool.submit(job(3000))
            assert (third.source, third.unserved) == ("fallback", "overloaded")
            assert {(await slow).source, (await waiting).source} == {"model"}

    asyncio.run(scenario())


def test_the_classifier_stands_in_for_an_answer_that_cannot_be_read() -> None:
    async def scenario() -> None:
        async with running_pool(
            open_engine=open_streaming_engine, fallback=FakeClassifier()
        ) as pool:
            served = await pool.submit(job(2000, FACT + "读不懂"))
            assert (served.source, served.unserved) == ("fallback", None)
            assert served.generation.thinking_tokens > 0
            assert (await pool.submit(job(2000))).source == "model"

    asyncio.run(scenario())


def test_the_classifier_answers_in_time_for_a_worker_that_does_not() -> None:
    async def scenario() -> None:
        async with running_pool(fallback=FakeClassifier()) as pool:
            started_s = time.monotonic()
            served = await pool.submit(job(300, FACT + "睡900毫秒"))
            assert time.monotonic() - started_s < 0.33
            assert (served.source, served.unserved) == ("fallback", "deadline")

    asyncio.run(scenario())


def test_the_classifier_answers_for_an_engine_that_fails() -> None:
    async def scenario() -> None:
        async with running_pool(workers=2, fallback=FakeClassifier()) as pool:
            raised = await pool.submit(job(2000, FACT + "出错"))
            assert (raised.source, raised.unserved) == ("fallback", "worker_failed")
            killed = await pool.submit(job(20_000, FACT + "崩溃"))
            assert (killed.source, killed.unserved) == ("fallback", "worker_failed")

    asyncio.run(scenario())


def in_background(fact: str = FACT, allowed_ms: float = 5_000) -> Job:
    return replace(job(allowed_ms, fact), background=True)


def test_the_background_has_a_worker_only_while_nobody_waits_and_as_long_as_it_likes() -> None:
    async def scenario() -> None:
        async with running_pool() as pool:
            done: list[str] = []

            async def submit(name: str, asked: Job) -> Served:
                served = await pool.submit(asked)
                done.append(name)
                return served

            async with asyncio.TaskGroup() as group:
                group.create_task(submit("first", job(3000, FACT + "睡200毫秒")))
                await asyncio.sleep(0.05)
                late = group.create_task(submit("background", in_background(allowed_ms=400)))
                for name in ("second", "third"):
                    group.create_task(submit(name, job(3000, FACT + "睡200毫秒")))
            assert done == ["first", "second", "third", "background"]
            # it waited for longer than it may take, which begins only when it has a worker
            assert late.result().queue_ms < 50
            assert late.result().thinking_allowed == MANIFEST.max_thinking_tokens

    asyncio.run(scenario())


def test_the_background_gives_its_worker_up_to_a_request_and_is_answered_later() -> None:
    async def scenario() -> None:
        async with running_pool(workers=2, open_engine=open_streaming_engine) as pool:
            background = [
                asyncio.create_task(pool.submit(in_background(f"{FACT}编号{n}"))) for n in range(6)
            ]
            waits = []
            for _ in range(5):
                await asyncio.sleep(0.06)
                waits.append((await pool.submit(job(400))).queue_ms)
                assert (await pool.submit(job(400))).generation.thinking_tokens > 0
            assert max(waits) < 50, waits  # one in the background takes 180 ms
            answers = await asyncio.gather(*background)
            assert [f"{n}推理" in a.generation.text for n, a in enumerate(answers)] == [True] * 6

    asyncio.run(scenario())


def test_what_the_background_can_not_have_is_said_and_a_pool_that_drains_ends_it() -> None:
    async def scenario() -> None:
        async with running_pool(open_engine=open_streaming_engine) as pool:
            assert (
                await reason_of(pool.submit(in_background(allowed_ms=20))) == "deadline_too_short"
            )
            tasks = [asyncio.create_task(pool.submit(in_background())) for _ in range(3)]
            await asyncio.sleep(0.05)
            tasks[2].cancel()
            started_s = time.monotonic()
            pool.drain()
            for task in tasks[:2]:  # one under way, one waiting
                assert await reason_of(task) == "draining"
            assert time.monotonic() - started_s < 0.1

    asyncio.run(scenario())


def test_a_killed_worker_loses_nothing_of_the_background() -> None:
    async def scenario() -> None:
        async with running_pool(spares=1) as pool:
            waiting = [asyncio.create_task(pool.submit(in_background())) for _ in range(2)]
            await asyncio.sleep(0.03)
            os.kill(pool.worker_pids[0], signal.SIGKILL)
            answers = await asyncio.gather(*waiting)
            assert [answer.generation.finish for answer in answers] == ["stop", "stop"]

    asyncio.run(scenario())
