"""The pool in front of a remote server, which a small one with a real model stands in for."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from curt.artifact import load_manifest
from curt.classifier.model import Prediction
from curt.engines.protocol import Request
from curt.engines.remote import VllmModel
from curt.engines.writing import LONGEST_RUN
from curt.law.verdict import Term, Verdict
from serve.errors import EngineFailedError, OverloadedError
from serve.metrics import Metrics
from serve.pool.job import Job, Piece
from serve.pool.pool import WorkerPool
from serve.pool.process import WorkerError
from serve.pool.remote import RemoteServer, RemoteWorker
from serve.pool.stand_in import VerdictSource
from serve.served import Served
from tests.curt.engines.completions_server import CompletionsServer
from tests.micro import FACTS


@pytest.fixture
def server(micro_model: Path) -> Iterator[CompletionsServer]:
    server = CompletionsServer(micro_model, "vllm").start()
    yield server
    server.stop()


def job(deadline_ms: float, fact: str = FACTS[0], most: int | None = None) -> Job:
    now_s = time.monotonic()
    return Job(fact, now_s, now_s + deadline_ms / 1e3, most)


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        await asyncio.sleep(0.0005)


@asynccontextmanager
async def running_pool(
    server: CompletionsServer,
    folder: Path,
    *,
    workers: int = 2,
    fallback: VerdictSource | None = None,
) -> AsyncIterator[WorkerPool]:
    remote = RemoteServer(functools.partial(VllmModel, folder, server.url))
    pool = WorkerPool(
        folder,
        load_manifest(folder),
        Metrics(),
        workers=workers,
        queue_size=8,
        margin_ms=10,
        fallback=fallback,
        spawn=lambda: RemoteWorker(remote),
    )
    await pool.start()
    try:
        await until(lambda: pool.ready)
        yield pool
    finally:
        await pool.stop()


def deaths(pool: WorkerPool) -> float:
    return pool._metrics.registry.get_sample_value("curt_worker_deaths_total") or 0.0


def busy(pool: WorkerPool) -> int:
    return sum(slot.busy for slot in pool._slots)


def test_a_deadline_becomes_a_budget_and_is_kept(
    server: CompletionsServer, micro_model: Path
) -> None:
    async def scenario() -> None:
        async with running_pool(server, micro_model) as pool:
            roomy = await pool.submit(job(5000))
            # the micro model says one thing over and over, which ends its thinking before the limit
            assert roomy.generation.thinking_tokens == LONGEST_RUN < roomy.thinking_allowed == 64
            server.pause_s = 0.05
            started_s = time.monotonic()
            tight = await pool.submit(job(3000))
            assert time.monotonic() - started_s < 3.25
            assert tight.generation.finish == "deadline"  # learned at another speed
            assert not tight.generation.left_out
            long = await pool.submit(job(30_000, FACTS[0] * 90, most=0))
            assert long.generation.left_out.sentences > 0  # a fact too long for the event loop, too

    asyncio.run(scenario())


def test_workers_are_requests_in_flight(server: CompletionsServer, micro_model: Path) -> None:
    async def scenario() -> None:
        async with running_pool(server, micro_model, workers=4) as pool:
            server.pause_s = 0.005
            tasks = [asyncio.create_task(pool.submit(job(8000, most=4))) for _ in range(6)]
            await until(lambda: busy(pool) == 4)
            served = await asyncio.gather(*tasks)
            assert [each.generation.thinking_tokens for each in served] == [4] * 6

    asyncio.run(scenario())


def test_one_who_leaves_frees_the_worker_within_20_ms_and_the_server_soon(
    server: CompletionsServer, micro_model: Path
) -> None:
    async def scenario() -> None:
        async with running_pool(server, micro_model, workers=1) as pool:
            server.pause_s = 0.005
            aborted, freed_s = server.aborted, []
            for _ in range(5):
                leaver = asyncio.create_task(pool.submit(job(8000)))
                await asyncio.sleep(0.05)
                assert busy(pool) == 1
                leaver.cancel()
                started_s = time.monotonic()
                await until(lambda: busy(pool) == 0)
                freed_s.append(time.monotonic() - started_s)
                await asyncio.gather(leaver, return_exceptions=True)
            assert sorted(freed_s)[2] < 0.02
            await until(lambda: server.aborted == aborted + 5)
            assert (await pool.submit(job(8000, most=3))).generation.thinking_tokens == 3

    asyncio.run(scenario())


def test_a_stream_tells_the_reasoning_and_then_the_answer(
    server: CompletionsServer, micro_model: Path
) -> None:
    async def scenario() -> None:
        async with running_pool(server, micro_model) as pool:
            stream = pool.stream(job(8000))
            *pieces, served = [event async for event in stream]
            stream.close()
            assert isinstance(served, Served)
            told = "".join(piece.text for piece in pieces if isinstance(piece, Piece))
            thinking = served.generation.text.partition("</think>")[0]
            assert thinking.startswith(told.rstrip("\ufffd"))
            assert len(told) > 10

    asyncio.run(scenario())


def test_a_server_that_drops_a_request_is_asked_again(
    server: CompletionsServer, micro_model: Path
) -> None:
    async def scenario() -> None:
        async with running_pool(server, micro_model) as pool:
            server.die_after_tokens = 3
            served = await pool.submit(job(8000, most=8))
            assert served.generation.thinking_tokens == 8
            await until(lambda: len([s for s in pool._slots if s.worker]) == 2)

    asyncio.run(scenario())


def test_ready_follows_the_server(server: CompletionsServer, micro_model: Path) -> None:
    async def scenario() -> None:
        async with running_pool(server, micro_model) as pool:
            await asyncio.to_thread(server.stop)
            await until(lambda: not pool.ready)
            with pytest.raises(OverloadedError):
                await pool.submit(job(1000))
            server.start()
            await until(lambda: pool.ready)
            assert (await pool.submit(job(8000, most=3))).generation.thinking_tokens == 3

    asyncio.run(scenario())


class FakeClassifier:
    """Always says fraud."""

    def predict(self, fact: str) -> Prediction:
        verdict = Verdict(("诈骗",), ("266",), Term("fixed", 36))
        return Prediction(verdict, {"charge": 0.8, "article": 0.7, "term": 0.4})


def test_a_server_killed_under_way_ends_in_the_classifiers_verdict_by_the_deadline(
    server: CompletionsServer, micro_model: Path
) -> None:
    async def scenario() -> None:
        async with running_pool(server, micro_model, fallback=FakeClassifier()) as pool:
            server.pause_s = 0.02
            under_way = asyncio.create_task(pool.submit(job(1500)))
            await asyncio.sleep(0.2)
            started_s = time.monotonic()
            await asyncio.to_thread(server.stop)
            served = await under_way
            assert served.fallback
            assert served.unserved in ("worker_failed", "overloaded")
            assert time.monotonic() - started_s < 1.5
            await until(lambda: not pool.ready)

    asyncio.run(scenario())


def test_a_server_that_is_healthy_and_answers_nothing_is_not_ready(
    server: CompletionsServer, micro_model: Path
) -> None:
    async def scenario() -> None:
        async with running_pool(server, micro_model, fallback=FakeClassifier()) as pool:
            server.pause_s = 4.0
            started_s = time.monotonic()
            while pool.ready:
                assert time.monotonic() - started_s < 20, "ready for ever"
                assert (await pool.submit(job(1500))).fallback
            server.pause_s = 0.0
            await until(lambda: pool.ready, 20)
            assert (await pool.submit(job(8000, most=3))).generation.thinking_tokens == 3

    asyncio.run(scenario())


def test_a_server_whose_prompts_take_long_is_not_given_up(
    server: CompletionsServer, micro_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a billion parameters on two cores read a prompt in more than silence and probe."""
    monkeypatch.setattr("serve.pool.remote.SILENCE_S", 0.05)
    monkeypatch.setattr("serve.pool.remote.PROBE_S", 0.1)
    monkeypatch.setattr("serve.pool.remote.WATCH_S", 0.05)

    async def scenario() -> None:
        server.prompt_s = 0.5
        async with running_pool(server, micro_model) as pool:
            for _ in range(2):
                served = await pool.submit(job(20_000, most=3))
                assert served.generation.thinking_tokens == 3
            assert deaths(pool) == 0

    asyncio.run(scenario())


def test_a_slow_health_check_costs_a_server_nothing_that_answers(
    server: CompletionsServer, micro_model: Path
) -> None:
    async def scenario() -> None:
        async with running_pool(server, micro_model) as pool:
            server.health_pause_s = 4.0
            end_s = time.monotonic() + 6
            while time.monotonic() < end_s:
                served = await pool.submit(job(5000, most=4))
                assert served.generation.thinking_tokens == 4
                await asyncio.sleep(0.05)
            await asyncio.sleep(4)  # nor while nobody asks
            assert (await pool.submit(job(5000, most=4))).generation.thinking_tokens == 4
            assert deaths(pool) == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_with_too_much_to_do_is_overload_and_no_fault(
    server: CompletionsServer, micro_model: Path, status: int
) -> None:
    async def scenario() -> None:
        async with running_pool(server, micro_model) as pool:
            server.status = status
            for _ in range(4):
                with pytest.raises(OverloadedError) as caught:
                    await pool.submit(job(2000))
                assert (caught.value.reason, caught.value.retry_after_s) == ("overloaded", 1)
            assert pool.ready
            server.status = None
            assert (await pool.submit(job(8000, most=3))).generation.thinking_tokens == 3
            assert deaths(pool) == 0

    asyncio.run(scenario())


def test_a_refused_request_keeps_the_worker_and_the_fact_out_of_the_log(
    server: CompletionsServer, micro_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with running_pool(server, micro_model) as pool:
            workers = [slot.worker for slot in pool._slots]
            server.status = 400
            with caplog.at_level(logging.DEBUG), pytest.raises(EngineFailedError):
                await pool.submit(job(8000))
            assert [slot.worker for slot in pool._slots] == workers
            server.status = None

    asyncio.run(scenario())
    records = [str(vars(record)) for record in caplog.records]
    assert any("RemoteError" in record for record in records)
    assert not any("张某" in record or "8000元" in record for record in records)


def test_a_server_that_serves_something_else_never_becomes_a_worker(
    server: CompletionsServer, micro_model: Path
) -> None:
    async def scenario() -> None:
        remote = RemoteServer(
            functools.partial(VllmModel, micro_model, server.url, served_name="qwen")
        )
        worker = RemoteWorker(remote)
        with pytest.raises(WorkerError, match="serves curt"):
            await worker.start()
        await worker.close()

    asyncio.run(scenario())


def test_a_hung_server_is_given_up(server: CompletionsServer, micro_model: Path) -> None:
    async def scenario() -> None:
        worker = RemoteWorker(RemoteServer(functools.partial(VllmModel, micro_model, server.url)))
        assert len(await worker.start()) == 4
        server.pause_s = 2.0
        with pytest.raises(WorkerError, match=r"no answer within 0\.1 s"):
            await worker.exchange(Request(FACTS[0], 8, 8, tell_text=False), 0.1)
        assert worker.dead
        await worker.close()

    asyncio.run(scenario())
