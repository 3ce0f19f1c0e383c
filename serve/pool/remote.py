"""Workers for a remote engine: each stands for one request in flight there.

The pool drives them as it drives a `WorkerProcess`, so queue, admission, learned budgets, retry and
stand-in stay the same; `CURT_WORKERS` is the number of requests the remote server has at once.
Nothing here computes: all runs in the front's event loop, over one set of connections.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

from curt.dialogue import Prompt
from curt.engines.budget import Observation
from curt.engines.protocol import Generation, Request
from curt.engines.remote import (
    RemoteBusyError,
    RemoteError,
    RemoteModel,
    RemoteUnavailableError,
    complete,
)
from serve.pool.messages import (
    Calibrate,
    Calibrated,
    Cancelled,
    EngineBusy,
    EngineRaised,
    Generated,
    Order,
    Reply,
)
from serve.pool.process import WorkerError
from serve.pool.worker import (
    CALIBRATION_TEXT,
    CALIBRATION_THINKING_TOKENS,
    PieceGatherer,
    calibration_facts,
    find,
    observe,
)

logger = logging.getLogger(__name__)

POLL_S = 0.25  # between two health checks of a server that does not answer
WATCH_S = 0.5  # and between two looks at one that does
SILENCE_S = 1.0  # without a token for what was asked, a server is in doubt
PROBE_S = 2.0  # in which it must then answer the shortest request
PATIENCE = 3.0  # where a prompt alone takes long, so many times what it took at the start
BUSY_S = 10.0  # one that only says that it is busy is given up after so long
LONG_FACT_CHARS = 2_000  # tokenising more than this would hold up the event loop


class RemoteServer:
    """One remote engine, shared by all workers in front of it.

    It is judged by what becomes of requests. While they progress nobody looks at its health check,
    which may be slow on a busy server and well on a wedged one; where it is in doubt, it must
    answer one more request.
    """

    def __init__(self, open_model: Callable[[], RemoteModel]) -> None:
        """`open_model` reads the model folder; it is called when the first worker starts."""
        self._open_model = open_model
        self._model: RemoteModel | None = None
        self._workers: set[RemoteWorker] = set()
        self._starting = asyncio.Lock()
        self._calibration: list[Observation] = []
        self._longest_s = 0.0  # until a first token, at the start
        self._watch: asyncio.Task[None] | None = None
        self._progressed_s = -math.inf
        self._waiting_since_s: float | None = None  # the first that was asked since then

    def note_request(self) -> None:
        """A request is sent."""
        if self._waiting_since_s is None:
            self._waiting_since_s = time.monotonic()

    def note_progress(self) -> None:
        """Something of a request came back."""
        self._progressed_s, self._waiting_since_s = time.monotonic(), None

    def note_stall(self, since_s: float) -> None:
        """A request has not progressed since then; no other may have either."""
        if self._progressed_s <= since_s:
            self._waiting_since_s = min(since_s, self._waiting_since_s or since_s)

    async def join(self, worker: RemoteWorker) -> tuple[RemoteModel, list[Observation]]:
        """Wait for the server, warm it up once, and watch it for the worker.

        Raises RemoteError when it refuses what it is asked.
        """
        self._workers.add(worker)
        async with self._starting:
            if self._model is None:
                self._model = await asyncio.to_thread(self._open_model)
            if time.monotonic() - self._progressed_s > SILENCE_S:
                await self._wait_until_healthy(self._model)
            if not self._calibration:
                await self._model.open()
                thinking = CALIBRATION_THINKING_TOKENS
                await complete(self._model, Request(CALIBRATION_TEXT, thinking, thinking))
                self._calibration = await calibrate(self._model, rounds=2)
                self._longest_s = max(taken.prefill_ms for taken in self._calibration) / 1e3
                self.note_progress()
            if self._watch is None:
                self._watch = asyncio.create_task(self._keep_watch(self._model))
        return self._model, self._calibration

    async def leave(self, worker: RemoteWorker) -> None:
        """Close the connections with the last worker that leaves."""
        self._workers.discard(worker)
        if self._workers:
            return
        if self._watch:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None
        if self._model and not self._workers:
            model, self._model, self._calibration = self._model, None, []
            await model.close()

    async def _wait_until_healthy(self, model: RemoteModel) -> None:
        warned = False
        while not await model.is_healthy():
            if not warned:
                warned = True
                logger.warning("the remote %s server does not answer yet", model.name)
            await asyncio.sleep(POLL_S)

    async def _keep_watch(self, model: RemoteModel) -> None:
        while not await self._in_doubt(model) or await self._answers(model):
            await asyncio.sleep(WATCH_S)
        logger.error("the remote %s server answers no requests", model.name)
        self._calibration, self._watch = [], None  # it may come back on another machine
        self._progressed_s, self._waiting_since_s = -math.inf, None
        for worker in list(self._workers):
            worker.lose()

    async def _in_doubt(self, model: RemoteModel) -> bool:
        now_s = time.monotonic()
        if self._waiting_since_s is not None:
            return now_s - self._waiting_since_s > max(SILENCE_S, PATIENCE * self._longest_s)
        return now_s - self._progressed_s > WATCH_S and not await model.is_healthy()

    async def _answers(self, model: RemoteModel) -> bool:
        """Whether the server answers the shortest request, or another one meanwhile."""
        asked_s = time.monotonic()
        try:
            async with asyncio.timeout(max(PROBE_S, PATIENCE * self._longest_s)):
                await complete(model, Request(CALIBRATION_TEXT, 0, 0, answer_limit=1))
            self.note_progress()
        except RemoteBusyError:
            return asked_s - (self._waiting_since_s or asked_s) < BUSY_S
        except (TimeoutError, RemoteError) as error:
            logger.warning("the remote %s server is in doubt: %r", model.name, error)
        return self._progressed_s >= asked_s


class RemoteWorker:
    """One request at a time at a remote server; the interface of `process.WorkerProcess`."""

    pid = None  # not a process of ours

    def __init__(self, server: RemoteServer) -> None:
        self._server = server
        self._model: RemoteModel | None = None
        self._task: asyncio.Task[Reply] | None = None
        self._cancelled = False
        self._on_death: Callable[[], None] | None = None
        self._progressed_s = 0.0
        self.steps = 1
        """Grows with each token."""
        self.dead = False

    async def start(self) -> list[Observation]:
        """Wait for the server and its warm-up, and return its timings. Raises WorkerError."""
        try:
            self._model, calibration = await self._server.join(self)
        except (RemoteError, ValueError, OSError) as error:
            raise WorkerError(f"the remote engine can't be used: {error}") from error
        return calibration

    async def exchange(
        self,
        order: Order,
        timeout_s: float,
        on_piece: Callable[[str], None] | None = None,
    ) -> Reply:
        """Have an order carried out. Raises WorkerError when the server goes or takes too long.

        `on_piece` is called with each piece of reasoning, before the answer.
        """
        assert self._model is not None, "start() comes first"
        self._cancelled, self._progressed_s = False, time.monotonic()
        self._server.note_request()
        self._task = asyncio.create_task(self._carry_out(self._model, order, on_piece))
        try:
            async with asyncio.timeout(timeout_s):
                return await self._task
        except TimeoutError:
            self.dead = True
            raise WorkerError(f"no answer within {timeout_s:.1f} s") from None
        except RemoteUnavailableError as error:
            self.dead = True
            raise WorkerError(str(error)) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and task.cancelling():  # not this exchange alone is to end
                raise
            if self.dead:
                raise WorkerError("the remote server makes no progress") from None
            return Cancelled()
        finally:
            self._task = None

    def cancel(self) -> None:
        """Abort what `exchange` waits for, which then returns `Cancelled`.

        The connection is closed, by which the server knows. Returns at once.
        """
        if self._task and not self._cancelled:
            self._cancelled = True
            self._task.cancel()

    def on_death(self, callback: Callable[[], None]) -> None:
        """Call back when the server is gone; the last callback given counts."""
        self._on_death = callback
        if self.dead:  # the server went between the warm-up and now
            asyncio.get_running_loop().call_soon(self._tell)

    def lose(self) -> None:
        """End what is under way because it makes no progress, and call back."""
        if self.dead:
            return
        self._server.note_stall(self._progressed_s)
        self.dead = True
        if self._task:
            self._task.cancel()
        self._tell()

    def kill(self) -> None:
        """Abort what is under way; there is no process to end."""
        self.cancel()

    async def close(self) -> None:
        """Abort what is under way and leave the server."""
        self._on_death = None
        self.cancel()
        await self._server.leave(self)

    def _tell(self) -> None:
        callback, self._on_death = self._on_death, None
        if callback:
            callback()

    async def _carry_out(
        self,
        model: RemoteModel,
        order: Order,
        on_piece: Callable[[str], None] | None,
    ) -> Reply:
        try:
            if isinstance(order, Calibrate):
                return Calibrated(tuple(await calibrate(model, rounds=1)))
            started_s = time.monotonic()
            if len(order.fact) <= LONG_FACT_CHARS:
                prompt = model.encode(order)
            else:
                prompt = await asyncio.to_thread(model.encode, order)
            findings = find(model, order.fact)
            encoded_ms = (time.monotonic() - started_s) * 1e3
            generation = await self._stream_pieces(model, order, prompt, on_piece)
            generation = replace(generation, prefill_ms=generation.prefill_ms + encoded_ms)
            return Generated(generation, findings)
        except RemoteUnavailableError:
            raise
        except RemoteBusyError as error:
            return EngineBusy(error.retry_after_s)
        except Exception as error:  # the worker outlives a request it can't serve
            return EngineRaised.by(error)

    async def _stream_pieces(
        self,
        model: RemoteModel,
        request: Request,
        prompt: Prompt,
        on_piece: Callable[[str], None] | None,
    ) -> Generation:
        """One generation; `on_piece` gets its reasoning as it comes."""
        pieces = PieceGatherer()
        async with aclosing(model.stream(request, prompt)) as steps:
            async for step in steps:
                if step.generation:
                    return step.generation
                self.steps += 1
                self._progressed_s = time.monotonic()
                self._server.note_progress()
                if on_piece and request.tell_text and (piece := pieces.add(step)):
                    on_piece(piece)
        raise AssertionError("a stream ends with its generation")


async def calibrate(model: RemoteModel, rounds: int) -> list[Observation]:
    """Time generations over a short and a long prompt, as `serve.pool.worker.calibrate` does."""
    thinking = min(CALIBRATION_THINKING_TOKENS, model.manifest.max_thinking_tokens)
    facts = calibration_facts(model.tokenizer.count, model.manifest.max_fact_tokens)
    return [
        observe(
            fact, await complete(model, Request(fact, thinking, thinking)), thinking_limit=thinking
        )
        for fact in facts * rounds
    ]
