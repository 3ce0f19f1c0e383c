"""Starts workers, warms them up and keeps some in reserve for slots that need one.

A worker needs a second or more to load a model. A spare that has loaded already takes the place of
one that died within milliseconds, while the next spare starts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from curt.engines.budget import Observation
from serve.pool.process import Spawn, Worker, WorkerError

logger = logging.getLogger(__name__)

FIRST_DELAY_S, MAX_DELAY_S = 0.1, 10.0  # before another try, once a worker could not load
TAKE_S = 0.05  # to put a spare in its place


@dataclass(frozen=True, slots=True, eq=False)
class ReadyWorker:
    """A worker that is ready, with the timings of its warm-up."""

    worker: Worker
    calibration: Sequence[Observation]


class Spares:
    """Workers in reserve; starts as many as are taken, and some to spare."""

    def __init__(self, spawn: Spawn, on_death: Callable[[], None]) -> None:
        """`on_death` is called for each worker that could not load or died while in reserve."""
        self._spawn = spawn
        self._on_death = on_death
        self._spare_count = 0
        self._wanted = 0
        self._ready: list[ReadyWorker] = []
        self._starting: dict[asyncio.Task[None], Worker] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._arrival = asyncio.Event()
        self._failures = 0
        self._closed = False
        self._startup_s = 5.0  # until the first start has been timed

    @property
    def at_hand(self) -> bool:
        """Whether a spare has loaded and waits."""
        return bool(self._ready)

    @property
    def expected_s(self) -> float:
        """How long the next `take` is expected to last."""
        return TAKE_S if self._ready else self._startup_s

    @property
    def spare_pids(self) -> list[int]:
        """Process ids of the workers in reserve."""
        return [ready.worker.pid for ready in self._ready if ready.worker.pid]

    def keep(self, count: int) -> None:
        """Hold this many workers in reserve from now on."""
        self._spare_count = count
        self._replenish()

    async def take(self) -> ReadyWorker:
        """A worker that is ready: a spare, or the next that gets there."""
        self._wanted += 1
        try:
            self._replenish()
            while not self._ready:
                self._arrival.clear()
                await self._arrival.wait()
            return self._ready.pop(0)
        finally:
            self._wanted -= 1
            self._replenish()

    def kill(self) -> None:
        """End every worker that starts or waits here at once."""
        for worker in (*self._starting.values(), *(ready.worker for ready in self._ready)):
            worker.kill()

    async def close(self) -> None:
        """End the workers that start or wait here; those taken end elsewhere."""
        self._closed = True
        starting = list(self._starting)
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, *self._closing, return_exceptions=True)
        while self._ready:
            await self._ready.pop().worker.close()

    def _replenish(self) -> None:
        missing = self._wanted + self._spare_count - len(self._ready) - len(self._starting)
        for _ in range(0 if self._closed else missing):
            worker = self._spawn()
            task = asyncio.create_task(self._start(worker, self._delay_s()))
            self._starting[task] = worker
            task.add_done_callback(self._end_start)

    def _delay_s(self) -> float:
        if not self._failures:
            return 0.0
        return min(FIRST_DELAY_S * 2.0 ** min(self._failures - 1, 10), MAX_DELAY_S)

    async def _start(self, worker: Worker, delay_s: float) -> None:
        started = False
        try:
            await asyncio.sleep(delay_s)
            started_s = time.monotonic()
            calibration = await worker.start()
            self._startup_s = time.monotonic() - started_s
            self._failures, started = 0, True
            logger.info("worker %s loaded in %.1f s", worker.pid, self._startup_s)
            self._add(ReadyWorker(worker, calibration))
        except WorkerError as failure:
            self._failures += 1
            self._on_death()
            logger.error("a worker did not start: %s; next try in %.1f s", failure, self._delay_s())
        finally:
            if not started:
                await worker.close()

    def _add(self, ready: ReadyWorker) -> None:
        self._ready.append(ready)
        ready.worker.on_death(lambda: self._lose(ready))
        self._arrival.set()

    def _lose(self, ready: ReadyWorker) -> None:
        """A spare died before anyone took it."""
        self._ready.remove(ready)
        self._on_death()
        logger.error("a spare worker ended")
        task = asyncio.create_task(ready.worker.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        self._replenish()

    def _end_start(self, task: asyncio.Task[None]) -> None:
        del self._starting[task]
        if not task.cancelled() and (error := task.exception()):
            logger.error("starting a worker failed", exc_info=error)
            self._failures += 1  # so that a bug here does not become a busy loop
        self._replenish()
