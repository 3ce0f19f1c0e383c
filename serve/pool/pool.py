"""The worker pool: a bounded earliest-deadline-first queue in front of the workers.

A request is admitted only if its deadline can be met. Its thinking budget is set when a worker
takes it, from the time that is left then. Where the model gives no full verdict, a classifier's
stands in if there is one. A job of the background enters the queue when a worker is idle, and
begins anew when a request wants that worker. Everything here runs in one event loop and never
blocks it.
"""

from __future__ import annotations

import asyncio
import atexit
import bisect
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from curt.artifact import Manifest
from curt.dialogue import state_budget
from serve.errors import DeadlineTooShortError, EngineFailedError, OverloadedError, RequestError
from serve.metrics import Metrics
from serve.pool.forecast import Forecast
from serve.pool.job import Job, Piece, ServedStream, Slot, Ticket
from serve.pool.messages import Calibrate, Calibrated, EngineBusy, EngineRaised, Generated
from serve.pool.process import Spawn, Worker, WorkerError, WorkerProcess
from serve.pool.schedule import Demand, admits, seconds_until_free
from serve.pool.spares import ReadyWorker, Spares
from serve.pool.stand_in import LEAST_S, StandIn, VerdictSource
from serve.pool.worker import OpenEngine, observe, open_worker_engine
from serve.served import Served

logger = logging.getLogger(__name__)

OVERRUN_GRACE_S = 0.25  # a generation that overruns its deadline by more is given up
HANG_TIMEOUT_S = 10.0  # a worker that overruns it by this much is killed
# A worker that makes no step for so long is given up: at once where another one is at hand, and
# later where none is, as it may only lack a core.
STALL_S, STALL_ALONE_S = 0.25, 2.0
STALL_FACTOR = 5.0  # and never before so many times what a request takes without thinking
MAX_ATTEMPTS = 2  # a request whose worker died is tried once more
PROBE_INTERVAL_S = 1.0
PROBE_TIMEOUT_S = 10.0
PAUSE_S = 0.005  # after an answer, before work that must not delay it
REPLY_MS = 5.0  # part of the margin kept for writing the reply after the engine has stopped


class GaveWayError(Exception):
    """A job of the background lost its worker to a request."""


class WorkerPool:
    """`workers` workers over one model folder, and `spares` more in reserve.

    `fallback` answers where the model does not; `spawn` makes workers other than processes of
    ours; `on_refusal` is called for each request that is refused because of the load.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        metrics: Metrics,
        *,
        workers: int,
        queue_size: int,
        margin_ms: float,
        spares: int = 0,
        fallback: VerdictSource | None = None,
        open_engine: OpenEngine = open_worker_engine,
        spawn: Spawn | None = None,
        on_refusal: Callable[[], None] | None = None,
    ) -> None:
        self._metrics = metrics
        self._on_refusal = on_refusal or (lambda: None)
        self._queue_size = queue_size
        self._margin_ms = margin_ms
        self._spare_count = spares
        self._stand_in = StandIn(fallback)
        self._forecast = Forecast(manifest, margin_ms)
        self._estimator = self._forecast.estimator
        self._slots = [Slot() for _ in range(workers)]
        spawn = spawn or (lambda: WorkerProcess(folder, open_engine))
        self._spares = Spares(spawn, self._metrics.worker_deaths.inc)
        self._queue: list[Ticket] = []  # ordered by deadline
        self._background: deque[asyncio.Future[None]] = deque()  # what waits for an idle worker
        self._running: set[Ticket] = set()
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
        """Process ids of the workers that are ready; without the spares."""
        return [slot.worker.pid for slot in self._slots if slot.worker and slot.worker.pid]

    async def start(self) -> None:
        """Start the workers; returns before they are ready."""
        atexit.register(self._kill_all)  # before multiprocessing's own hook, which would wait
        self._tasks = [asyncio.create_task(self._supervise(slot)) for slot in self._slots]

    def drain(self) -> None:
        """Take no new requests; those admitted are still served."""
        if not self.draining:
            self.draining = True
            logger.info("draining")
            self._call_background(len(self._background))

    async def stop(self) -> None:
        """Drain, wait for what was admitted, and end every worker."""
        self.drain()
        pending = [ticket.future for ticket in (*self._queue, *self._running)]
        if pending:
            await asyncio.wait(pending)  # each ends by its deadline at the latest
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._spares.close()
        atexit.unregister(self._kill_all)

    async def submit(self, job: Job) -> Served:
        """Serve a job. Raises OverloadedError at once when its deadline can't be met.

        Cancelling the call takes a job that still waits out of the queue and stops the worker of
        one under way.
        """
        while True:
            ticket = await self._enter_idle(job) if job.background else self._enter(job)
            try:
                return await ticket.future
            except GaveWayError:
                continue
            finally:
                self._leave(ticket)

    async def _enter_idle(self, job: Job) -> Ticket:
        """Enter a job of the background once a worker is idle; its time begins then."""
        try:
            while self._queue or all(slot.worker is None or slot.busy for slot in self._slots):
                if self.draining:
                    break  # which refuses it
                turn = asyncio.get_running_loop().create_future()
                self._background.append(turn)
                await turn
            now_s = time.monotonic()
            own_s = job.deadline_s - job.arrived_s
            return self._enter(replace(job, arrived_s=now_s, deadline_s=now_s + own_s))
        except BaseException:
            self._call_background()  # the idle worker is for another
            raise

    def _call_background(self, count: int = 1) -> None:
        while count and self._background:
            turn = self._background.popleft()
            if not turn.done():  # or its client has left
                turn.set_result(None)
                count -= 1

    def _recall(self) -> None:
        """Take as many workers back from the background as more wait than are idle."""
        idle = sum(slot.free and not slot.lent for slot in self._slots)
        lent = [ticket for ticket in self._running if ticket.job.background]
        stopping = sum(ticket.future.done() for ticket in lent)
        wanted = sum(not ticket.job.background for ticket in self._queue) - idle - stopping
        for ticket in lent:
            if wanted > 0 and ticket.worker and not ticket.future.done():
                ticket.future.set_exception(GaveWayError())
                ticket.worker.cancel()
                wanted -= 1

    def expected_thinking(self, job: Job) -> int | None:
        """Thinking tokens a job would be granted if a worker took it now; None if it is refused."""
        now_s = time.monotonic()
        if not self.ready:
            return None
        prompt_tokens = self._forecast.prompt_tokens(len(job.fact), now_s)
        demand = self._forecast.demand(job.deadline_s, prompt_tokens, now_s)
        if demand.latest_start_s < now_s:
            return None
        return self._allow_thinking(job, demand, prompt_tokens, now_s)

    def stream(self, job: Job) -> ServedStream:
        """Serve a job and stream its reasoning. Needs a running event loop.

        Raises OverloadedError here, before anything streams, when the deadline can't be met. The
        caller must `close()` the stream.
        """
        return ServedStream(self._enter(job, events=asyncio.Queue()), self._leave)

    def _allow_thinking(self, job: Job, demand: Demand, prompt_tokens: int, now_s: float) -> int:
        waiting = [other.demand for rank, other in self._in_order(job, now_s) if rank <= 0]
        alive = sum(slot.worker is not None for slot in self._slots)
        allowed = self._forecast.allow_thinking(job, demand, prompt_tokens, waiting, alive, now_s)
        return job.cap(allowed)

    def _in_order(self, job: Job, now_s: float) -> list[tuple[int, Ticket]]:
        """What waits, in the order it is served in beside a job, each with its rank to that.

        -1 where the job must give way because its client asks for far more, 1 where the waiting one
        must; within a rank the earliest deadline is first.
        """
        shares = self._forecast.shares
        ranked = [(shares.rank(other.job, job, now_s), other) for other in self._queue]
        return sorted(ranked, key=lambda each: each[0])  # stable: the queue is in order

    def _pop_next(self) -> Ticket:
        """Take what is to be served next out of the queue."""
        shares, now_s = self._forecast.shares, time.monotonic()
        best = self._queue[0]
        for other in self._queue:
            if shares.rank(best.job, other.job, now_s) > 0:
                best = other
        self._queue.remove(best)
        self._metrics.queue_depth.set(len(self._queue))
        return best

    def _enter(self, job: Job, events: asyncio.Queue[Piece | None] | None = None) -> Ticket:
        now_s = time.monotonic()
        ticket = self._make_ticket(job, now_s, events)
        fault = self._why_refused(ticket, now_s)
        if fault:
            is_load = self._queue or not all(slot.free for slot in self._slots)
            if is_load and isinstance(fault, OverloadedError):
                self._on_refusal()
            if job.deadline_s - now_s < LEAST_S:  # too late for the classifier as well
                raise self._shed(fault)
            self._give_up(ticket, fault)
            if error := ticket.future.exception():
                raise error
            return ticket
        if self._is_full:
            _, last = self._in_order(job, now_s)[-1]
            self._queue.remove(last)
            waiting = [other.demand for other in self._queue]
            wait_s = seconds_until_free(now_s, self._free_times(now_s), waiting)
            self._give_up(last, self._queue_full(wait_s))
        alone = self._forecast.allow_alone(ticket.demand, ticket.prompt_tokens, now_s)
        ticket.allowed_alone = job.cap(alone)
        ticket.admitted_s = now_s
        if not job.background:
            self._forecast.shares.note(job, now_s)
        bisect.insort(self._queue, ticket, key=lambda t: t.order)
        self._metrics.queue_depth.set(len(self._queue))
        # A late generation is replaced by the classifier while there is still time.
        patience_s = -LEAST_S if self._stand_in.present else OVERRUN_GRACE_S
        loop = asyncio.get_running_loop()
        ticket.timers = [
            loop.call_later(ticket.demand.latest_start_s - now_s, self._expire, ticket),
            loop.call_later(job.deadline_s + patience_s - now_s, self._abandon, ticket),
        ]
        self._wake.set()
        self._recall()
        return ticket

    def _make_ticket(
        self, job: Job, now_s: float, events: asyncio.Queue[Piece | None] | None
    ) -> Ticket:
        if self.draining:
            raise self._shed(OverloadedError("draining", "the server is shutting down", 5.0))
        if not self._warm:
            raise self._shed(OverloadedError("starting", "the model is still loading", 2.0))
        prompt_tokens = self._forecast.prompt_tokens(len(job.fact), now_s)
        return Ticket(
            job,
            self._forecast.demand(job.deadline_s, prompt_tokens, now_s),
            prompt_tokens,
            order=(job.deadline_s, next(self._order)),
            future=asyncio.get_running_loop().create_future(),
            events=events,
        )

    def _why_refused(self, ticket: Ticket, now_s: float) -> RequestError | None:
        demand, job = ticket.demand, ticket.job
        if demand.latest_start_s < now_s:
            self._want_probe(now_s)
            least_s = self._forecast.least_possible_s(ticket.prompt_tokens)
            if job.deadline_s - job.arrived_s < least_s:
                return DeadlineTooShortError(
                    "deadline_too_short",
                    f"even without reasoning this takes about {least_s * 1e3:.0f} ms: allow a "
                    "longer deadline",
                )
            return OverloadedError("overloaded", "the machine is slower than usual now")
        free_at_s, own = self._free_times(now_s), (0, ticket.order)
        in_order = self._in_order(job, now_s)
        retry_after_s = seconds_until_free(now_s, free_at_s, [t.demand for _, t in in_order])
        if self._is_full:
            if not in_order or (in_order[-1][0], in_order[-1][1].order) < own:
                return self._queue_full(retry_after_s)
            in_order.pop()  # who can wait longest gives way, or whose client asks for far more
        waiting = [other.demand for rank, other in in_order if rank <= 0]
        place = sum((rank, other.order) < own for rank, other in in_order)
        if not admits(free_at_s, waiting, demand, place):
            return OverloadedError(
                "overloaded", "the deadline can't be met behind those waiting", retry_after_s
            )
        return None

    @property
    def _is_full(self) -> bool:
        return len(self._queue) >= self._queue_size

    def _queue_full(self, retry_after_s: float) -> OverloadedError:
        return OverloadedError("queue_full", "too many requests are waiting", retry_after_s)

    def _leave(self, ticket: Ticket) -> None:
        """Free what a job held, once its client has the answer or is gone."""
        if ticket.future.cancelled():
            stage = "running" if ticket.worker else "queued"
            self._metrics.cancelled.labels(stage).inc()
            if ticket.worker:
                ticket.worker.cancel()
            elif not ticket.attempts:
                self._forecast.shares.withdraw(ticket.job, ticket.admitted_s)
        self._leave_queue(ticket)
        for timer in ticket.timers:
            timer.cancel()

    async def _supervise(self, slot: Slot) -> None:
        """Keep a worker in a slot: take one, serve until it dies, and again."""
        while True:
            slot.free_at_s = time.monotonic() + self._spares.expected_s
            ready = await self._spares.take()
            try:
                self._place(slot, ready)
                await self._serve(slot, ready.worker)
            except WorkerError as death:
                self._metrics.worker_deaths.inc()
                logger.error("a worker ended: %s", death)
            except Exception:  # so that a bug here does not leave the slot empty for good
                self._metrics.worker_deaths.inc()
                logger.exception("serving from a worker failed")
            finally:
                slot.worker = None
                self._count_workers()
                await ready.worker.close()

    def _place(self, slot: Slot, ready: ReadyWorker) -> None:
        if self._warm:
            self._metrics.worker_restarts.inc()
        self._estimator.calibrate(ready.calibration)
        ready.worker.on_death(self._wake.set)
        slot.worker, slot.busy = ready.worker, False
        self._count_workers()
        logger.info("worker %s ready", ready.worker.pid)
        if not self._warm and all(each.worker for each in self._slots):
            self._warm = True
            self._spares.keep(self._spare_count)  # only now: they would slow the others' start

    async def _serve(self, slot: Slot, worker: Worker) -> None:
        """Give one worker its work. Raises WorkerError when it ends."""
        while True:
            if worker.dead:
                raise WorkerError("it ended while idle")
            if self._queue:
                await self._run(slot, worker, self._pop_next())
            elif self._probe_wanted:
                self._probe_wanted = False
                await self._probe(slot, worker)
            else:
                self._wake.clear()
                self._call_background()
                await self._wake.wait()

    async def _run(self, slot: Slot, worker: Worker, ticket: Ticket) -> None:
        job, now_s = ticket.job, time.monotonic()
        if ticket.future.done():  # its client has just left
            return
        demand = self._forecast.demand(job.deadline_s, ticket.prompt_tokens, now_s)
        if demand.latest_start_s < now_s:
            self._expire(ticket)
            return
        allowed = self._allow_thinking(job, demand, ticket.prompt_tokens, now_s)
        stated = state_budget(allowed)
        slot.busy, slot.free_at_s = True, now_s + self._forecast.hold_s(demand, allowed, now_s)
        slot.lent = job.background
        until_s = job.deadline_s - min(self._margin_ms, REPLY_MS) / 1e3
        request = ticket.request(stated, allowed, until_s)
        ticket.attempts += 1
        ticket.worker = worker
        self._running.add(ticket)
        patience_s = job.deadline_s - now_s + HANG_TIMEOUT_S
        stall_s = max(STALL_S, STALL_FACTOR * demand.least_s)
        watch = ProgressWatch(worker, stall_s, lambda: self._spares.at_hand or worker.pid is None)
        try:
            reply = await worker.exchange(request, patience_s, ticket.tell)
        except WorkerError:
            ticket.worker = None
            self._retry(ticket)
            raise
        finally:
            watch.stop()
            slot.busy = slot.lent = False
            ticket.worker = None
            self._running.discard(ticket)
        if isinstance(reply, EngineRaised):
            extra = {"error": reply.error, "stack": reply.stack}
            logger.error("the engine raised", extra=extra)
            self._give_up(ticket, EngineFailedError("engine_error", "the engine raised"))
        elif isinstance(reply, EngineBusy):
            self._on_refusal()
            fault = OverloadedError("overloaded", "the engine is busy", reply.retry_after_s)
            self._give_up(ticket, fault)
        elif isinstance(reply, Generated):
            self._settle(ticket, reply, allowed, stated, queue_s=now_s - job.arrived_s)

    def _settle(
        self, ticket: Ticket, reply: Generated, allowed: int, stated: int, *, queue_s: float
    ) -> None:
        """Learn from a generation and give the client its answer."""
        observation = observe(ticket.job.fact, reply.generation, thinking_limit=allowed)
        self._estimator.observe(observation, time.monotonic())
        self._forecast.note_thinking(reply.generation, allowed)
        # Compute new estimates in a pause, rather than while the next request waits for them.
        asyncio.get_running_loop().call_later(PAUSE_S, self._forecast.refresh)
        if not ticket.future.done():
            served = Served(
                reply.generation,
                allowed,
                stated,
                queue_s * 1e3,
                usual_thinking=ticket.job.cap(self._forecast.usual_thinking),
                allowed_alone=ticket.allowed_alone,
                findings=reply.findings,
            )
            served = self._stand_in.complete(ticket.job, served)
            if served.fallback:
                self._metrics.fallback.labels("no_full_verdict").inc()
            ticket.future.set_result(served)

    async def _probe(self, slot: Slot, worker: Worker) -> None:
        """Time an idle worker.

        Estimates so slow that every request is refused would otherwise never be corrected.
        """
        now_s = time.monotonic()
        slot.busy, slot.free_at_s = True, now_s + PROBE_INTERVAL_S
        try:
            reply = await worker.exchange(Calibrate(), PROBE_TIMEOUT_S)
        finally:
            slot.busy = False
        timings = reply.observations if isinstance(reply, Calibrated) else ()
        self._estimator.begin_again(timings, time.monotonic())

    def _want_probe(self, now_s: float) -> None:
        quiet_s = min(self._estimator.quiet_s(now_s), now_s - self._last_probe_s)
        if quiet_s > PROBE_INTERVAL_S:
            self._last_probe_s, self._probe_wanted = now_s, True
            self._wake.set()

    def _retry(self, ticket: Ticket) -> None:
        hopeless = ticket.demand.latest_start_s < time.monotonic()
        if ticket.attempts >= MAX_ATTEMPTS:  # the next two would die on it as well
            self._give_up(ticket, EngineFailedError("worker_died", "two workers died on it"))
        elif hopeless:
            self._give_up(ticket, OverloadedError("worker_died", "the worker died on this request"))
        elif not ticket.future.done():
            bisect.insort(self._queue, ticket, key=lambda t: t.order)
            self._wake.set()

    def _expire(self, ticket: Ticket) -> None:
        """Give up a ticket that waited too long; one under way goes on."""
        if ticket not in self._running and not ticket.future.done():
            self._leave_queue(ticket)
            self._give_up(ticket, OverloadedError("expired", "no worker came free in time"))

    def _abandon(self, ticket: Ticket) -> None:
        if not ticket.future.done():
            self._leave_queue(ticket)
            self._give_up(ticket, OverloadedError("overrun", "the worker overran the deadline"))
            if ticket.worker:
                ticket.worker.cancel()

    def _give_up(self, ticket: Ticket, fault: RequestError) -> None:
        """End a ticket without the model: by the classifier where that can be, else refused."""
        if ticket.future.done():
            return
        can_wait = ticket.job.background and isinstance(fault, OverloadedError)  # and ask again
        served = None if can_wait else self._stand_in.replace(ticket.job, fault.reason)
        if served:
            self._metrics.fallback.labels(fault.reason).inc()
            ticket.future.set_result(served)
        else:
            ticket.future.set_exception(self._shed(fault))

    def _leave_queue(self, ticket: Ticket) -> None:
        if ticket in self._queue:
            self._queue.remove(ticket)
            self._metrics.queue_depth.set(len(self._queue))

    def _shed(self, fault: RequestError) -> RequestError:
        if isinstance(fault, OverloadedError):
            self._metrics.shed.labels(fault.reason).inc()
        return fault

    def _free_times(self, now_s: float) -> list[float]:
        return [now_s if slot.free else max(now_s, slot.free_at_s) for slot in self._slots]

    def _count_workers(self) -> None:
        self._metrics.workers_ready.set(sum(slot.worker is not None for slot in self._slots))

    def _kill_all(self) -> None:
        self._spares.kill()
        for slot in self._slots:
            if slot.worker:
                slot.worker.kill()


class ProgressWatch:
    """Gives a worker up that makes no progress with a request, from now on until `stop`."""

    def __init__(self, worker: Worker, stall_s: float, replaceable: Callable[[], bool]) -> None:
        """After `stall_s` without a step where it is `replaceable` then, else after longer."""
        self._worker, self._stall_s, self._replaceable = worker, stall_s, replaceable
        self._steps, self._since_s = worker.steps, time.monotonic()
        self._look_later()

    def stop(self) -> None:
        """End it: the request is done."""
        self._timer.cancel()

    def _look_later(self) -> None:
        wait_s = self._stall_s / 5
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._look)

    def _look(self) -> None:
        now_s, steps = time.monotonic(), self._worker.steps
        if steps != self._steps:
            self._steps, self._since_s = steps, now_s
        still_s = now_s - self._since_s
        patience_s = self._stall_s if self._replaceable() else max(self._stall_s, STALL_ALONE_S)
        if steps and still_s >= patience_s:
            logger.error("a worker made no step for %.2f s", still_s)
            self._worker.lose()
        else:
            self._look_later()
