"""The scheduler: a bounded earliest-deadline-first queue in front of the workers.

A request is admitted only when its deadline can be met; its thinking budget is settled when a
worker takes it, from the time that is left then. Everything here runs in one event loop and
never blocks it.
"""

from __future__ import annotations

import asyncio
import atexit
import bisect
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from curt.artifact import Manifest
from curt.dialogue import state_budget
from curt.engines.budget import Estimates, Observation, SpeedEstimator, allowed_thinking_tokens
from curt.engines.protocol import Generation
from serve.faults import EngineFailedError, OverloadedError, RequestError
from serve.metrics import Metrics
from serve.process import WorkerError, WorkerProcess
from serve.reply import Served
from serve.schedule import Demand, admits, latest_finish, seconds_until_free
from serve.worker import OpenEngine, observe, open_ort_engine

logger = logging.getLogger(__name__)

OVERRUN_GRACE_S = 0.25  # a generation that overran its deadline by more is not waited for
HANG_TIMEOUT_S = 10.0  # and a worker that overran it by this much is killed
MAX_ATTEMPTS = 2  # a request whose worker died is tried once more
ARRIVAL_WINDOW_S = 5.0
PROBE_INTERVAL_S = 5.0
PROBE_TIMEOUT_S = 60.0
REPLY_MS = 5.0  # of the margin, kept for writing the reply once the engine has stopped
FIRST_RESPAWN_DELAY_S, MAX_RESPAWN_DELAY_S = 0.1, 10.0


@dataclass(frozen=True, slots=True)
class Job:
    """A fact to judge by a deadline, a `time.monotonic()` instant."""

    fact: str
    arrived_s: float
    deadline_s: float


@dataclass(slots=True, eq=False)
class Ticket:
    """A job in the queue or under way."""

    job: Job
    demand: Demand
    prompt_tokens: int
    order: tuple[float, int]
    future: asyncio.Future[Served]
    attempts: int = 0
    timers: list[asyncio.TimerHandle] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Slot:
    """A place for one worker; `free_at_s` is when it is expected to take the next request."""

    free_at_s: float = 0.0
    startup_s: float = 5.0  # until the first start has been timed
    worker: WorkerProcess | None = None
    busy: bool = False


class WorkerPool:
    """N workers over one model folder."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        metrics: Metrics,
        *,
        workers: int,
        queue_size: int,
        margin_ms: float,
        open_engine: OpenEngine = open_ort_engine,
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._metrics = metrics
        self._queue_size = queue_size
        self._margin_ms = margin_ms
        self._open_engine = open_engine
        self._estimator = SpeedEstimator()
        self._slots = [Slot() for _ in range(workers)]
        self._queue: list[Ticket] = []  # ordered by deadline
        self._running: set[Ticket] = set()
        self._arrivals: deque[float] = deque(maxlen=10_000)
        self._order = itertools.count()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._warm = False
        self._probe_wanted = False
        self._last_probe_s = 0.0
        self.draining = False

    @property
    def ready(self) -> bool:
        """Whether all workers have warmed up once, one is alive and the pool is not draining."""
        return self._warm and not self.draining and any(slot.worker for slot in self._slots)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are ready."""
        return [slot.worker.pid for slot in self._slots if slot.worker and slot.worker.pid]

    async def start(self) -> None:
        """Begin to spawn the workers; returns before they are ready."""
        atexit.register(self._kill_all)  # before multiprocessing's own hook, which would wait
        self._tasks = [asyncio.create_task(self._supervise(slot)) for slot in self._slots]

    def drain(self) -> None:
        """Take no new requests; those admitted are still served."""
        if not self.draining:
            self.draining = True
            logger.info("draining")

    async def stop(self) -> None:
        """Drain, wait for what was admitted, and end every worker."""
        self.drain()
        pending = [ticket.future for ticket in (*self._queue, *self._running)]
        if pending:
            await asyncio.wait(pending)  # each ends by its deadline, served or not
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        atexit.unregister(self._kill_all)

    async def submit(self, job: Job) -> Served:
        """Serve a job. Raises OverloadedError at once when its deadline can't be met.

        Cancelling the call takes a job that still waits out of the queue.
        """
        now_s = time.monotonic()
        self._arrivals.append(now_s)
        ticket = self._admit(job, now_s)
        bisect.insort(self._queue, ticket, key=lambda t: t.order)
        self._metrics.queue_depth.set(len(self._queue))
        loop = asyncio.get_running_loop()
        ticket.timers = [
            loop.call_later(ticket.demand.latest_start_s - now_s, self._expire, ticket),
            loop.call_later(job.deadline_s + OVERRUN_GRACE_S - now_s, self._abandon, ticket),
        ]
        self._wake.set()
        try:
            return await ticket.future
        finally:
            self._leave_queue(ticket)
            for timer in ticket.timers:
                timer.cancel()

    def _admit(self, job: Job, now_s: float) -> Ticket:
        if self.draining:
            raise self._shed("draining", "the server is shutting down", 5.0)
        if not self._warm:
            raise self._shed("starting", "the model is still loading", 2.0)
        estimates = self._estimator.estimates(now_s)
        prompt_tokens = self._prompt_tokens(len(job.fact), estimates)
        demand = self._demand(job, prompt_tokens, estimates)
        if demand.latest_start_s < now_s:
            self._want_probe(now_s)
            raise self._shed(
                "deadline_too_short",
                f"even without reasoning this takes about {demand.least_s * 1e3:.0f} ms: "
                "allow a longer deadline",
            )
        free_at_s = self._free_times(now_s)
        waiting = [ticket.demand for ticket in self._queue]
        retry_after_s = seconds_until_free(now_s, free_at_s, waiting)
        if len(self._queue) >= self._queue_size:
            raise self._shed("queue_full", "too many requests are waiting", retry_after_s)
        if not admits(free_at_s, waiting, demand):
            raise self._shed(
                "overloaded", "the deadline can't be met behind those waiting", retry_after_s
            )
        return Ticket(
            job,
            demand,
            prompt_tokens,
            order=(job.deadline_s, next(self._order)),
            future=asyncio.get_running_loop().create_future(),
        )

    async def _supervise(self, slot: Slot) -> None:
        """Keep a worker in a slot: spawn, serve until it dies, and again."""
        delay_s = FIRST_RESPAWN_DELAY_S
        while True:
            worker = WorkerProcess(self._folder, self._open_engine)
            started_s = time.monotonic()
            slot.free_at_s = started_s + slot.startup_s
            try:
                calibration = await worker.start()
                slot.startup_s = time.monotonic() - started_s
                delay_s = FIRST_RESPAWN_DELAY_S
                self._place(slot, worker, calibration)
                await self._serve(slot, worker)
            except WorkerError as death:
                self._metrics.worker_deaths.inc()
                logger.error("a worker ended: %s; next start in %.1f s", death, delay_s)
            except Exception:  # a bug here must not leave the slot empty for good
                logger.exception("serving from a worker failed")
            finally:
                slot.worker = None
                self._count_workers()
                await worker.close()
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, MAX_RESPAWN_DELAY_S)

    def _place(self, slot: Slot, worker: WorkerProcess, calibration: Sequence[Observation]) -> None:
        self._estimator.calibrate(calibration)
        worker.on_death(self._wake.set)
        slot.worker, slot.busy = worker, False
        self._count_workers()
        logger.info("worker %s ready after %.1f s", worker.pid, slot.startup_s)
        if all(each.worker for each in self._slots):
            self._warm = True

    async def _serve(self, slot: Slot, worker: WorkerProcess) -> None:
        """Give one worker its work. Raises WorkerError when it ends."""
        while True:
            if worker.dead:
                raise WorkerError("it ended while idle")
            if self._queue:
                ticket = self._queue.pop(0)
                self._metrics.queue_depth.set(len(self._queue))
                await self._run(slot, worker, ticket)
            elif self._probe_wanted:
                self._probe_wanted = False
                await self._probe(slot, worker)
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _run(self, slot: Slot, worker: WorkerProcess, ticket: Ticket) -> None:
        job, now_s = ticket.job, time.monotonic()
        estimates = self._estimator.estimates(now_s)
        demand = self._demand(job, ticket.prompt_tokens, estimates)
        if demand.latest_start_s < now_s:
            self._expire(ticket)
            return
        allowed = self._allow_thinking(demand, ticket.prompt_tokens, estimates, now_s)
        stated = state_budget(allowed)
        thinking_s = allowed * estimates.tpot_ms / 1e3
        slot.busy, slot.free_at_s = True, now_s + demand.least_s + thinking_s
        message = {
            "fact": job.fact,
            "stated_budget": stated,
            "thinking_limit": allowed,
            "deadline_s": job.deadline_s - min(self._margin_ms, REPLY_MS) / 1e3,
        }
        ticket.attempts += 1
        self._running.add(ticket)
        try:
            answer = await worker.exchange(message, job.deadline_s - now_s + HANG_TIMEOUT_S)
        except WorkerError:
            self._retry(ticket)
            raise
        finally:
            slot.busy = False
            self._running.discard(ticket)
        if "error" in answer:
            extra = {"error": answer["error"], "stack": answer["stack"]}
            logger.error("the engine raised", extra=extra)
            self._fail(ticket, EngineFailedError("engine_error", "the engine raised"))
            return
        generation = Generation(**answer["generation"])
        self._estimator.observe(
            observe(job.fact, generation, thinking_limit=allowed), time.monotonic()
        )
        if not ticket.future.done():
            queue_ms = (now_s - job.arrived_s) * 1e3
            served = Served(generation, allowed, stated, answer["fact_clipped"], queue_ms)
            ticket.future.set_result(served)

    def _allow_thinking(
        self, demand: Demand, prompt_tokens: int, estimates: Estimates, now_s: float
    ) -> int:
        finish_s = latest_finish(
            now_s,
            demand,
            [ticket.demand for ticket in self._queue],
            sum(slot.worker is not None for slot in self._slots),
            self._arrivals_per_s(now_s),
        )
        allowed = allowed_thinking_tokens(
            (finish_s - now_s) * 1e3,
            prompt_tokens,
            estimates.answer_tokens,
            estimates,
            self._margin_ms,
            self._manifest.max_thinking_tokens,
        )
        # latest_finish leaves room for zero thinking; None is that room missed by rounding.
        return 0 if allowed is None else allowed

    async def _probe(self, slot: Slot, worker: WorkerProcess) -> None:
        """Time an idle worker: estimates that refuse everyone would else never be corrected."""
        now_s = time.monotonic()
        slot.busy, slot.free_at_s = True, now_s + PROBE_INTERVAL_S
        try:
            answer = await worker.exchange({"calibrate": True}, PROBE_TIMEOUT_S)
        finally:
            slot.busy = False
        for observation in answer.get("calibration", ()):
            self._estimator.observe(Observation(**observation), time.monotonic())

    def _want_probe(self, now_s: float) -> None:
        quiet_s = min(self._estimator.quiet_s(now_s), now_s - self._last_probe_s)
        if quiet_s > PROBE_INTERVAL_S:
            self._last_probe_s, self._probe_wanted = now_s, True
            self._wake.set()

    def _retry(self, ticket: Ticket) -> None:
        hopeless = ticket.demand.latest_start_s < time.monotonic()
        if ticket.attempts >= MAX_ATTEMPTS or hopeless:
            self._fail(ticket, self._shed("worker_died", "the worker died on this request"))
        elif not ticket.future.done():
            bisect.insort(self._queue, ticket, key=lambda t: t.order)
            self._wake.set()

    def _expire(self, ticket: Ticket) -> None:
        """Give up a ticket that waited too long; one under way goes on."""
        if ticket not in self._running and not ticket.future.done():
            self._leave_queue(ticket)
            self._fail(ticket, self._shed("expired", "no worker came free in time"))

    def _abandon(self, ticket: Ticket) -> None:
        if not ticket.future.done():
            self._fail(ticket, self._shed("overrun", "the worker overran the deadline"))

    def _fail(self, ticket: Ticket, fault: RequestError) -> None:
        if not ticket.future.done():
            ticket.future.set_exception(fault)

    def _leave_queue(self, ticket: Ticket) -> None:
        if ticket in self._queue:
            self._queue.remove(ticket)
            self._metrics.queue_depth.set(len(self._queue))

    def _shed(self, reason: str, message: str, retry_after_s: float = 1.0) -> OverloadedError:
        self._metrics.shed.labels(reason).inc()
        return OverloadedError(reason, message, retry_after_s)

    def _demand(self, job: Job, prompt_tokens: int, estimates: Estimates) -> Demand:
        least_ms = estimates.zero_thinking_ms(prompt_tokens) + self._margin_ms
        return Demand(job.deadline_s, least_ms / 1e3)

    def _prompt_tokens(self, fact_chars: int, estimates: Estimates) -> int:
        """An upper estimate; the front has no tokenizer."""
        clipped = math.ceil(max(0.0, estimates.tokens_of_chars.base))
        clipped += self._manifest.max_fact_tokens
        return min(math.ceil(estimates.tokens_of_chars.at(fact_chars)), clipped)

    def _free_times(self, now_s: float) -> list[float]:
        return [
            max(now_s, slot.free_at_s) if slot.busy or not slot.worker else now_s
            for slot in self._slots
        ]

    def _arrivals_per_s(self, now_s: float) -> float:
        while self._arrivals and self._arrivals[0] < now_s - ARRIVAL_WINDOW_S:
            self._arrivals.popleft()
        # One request alone tells no rate.
        return max(0, len(self._arrivals) - 1) / ARRIVAL_WINDOW_S

    def _count_workers(self) -> None:
        self._metrics.workers_ready.set(sum(slot.worker is not None for slot in self._slots))

    def _kill_all(self) -> None:
        for slot in self._slots:
            if slot.worker:
                slot.worker.kill()
