"""The front's side of a worker process: spawn it, exchange messages with it, end it."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from curt.engines.budget import Observation
from serve.pool.messages import (
    Calibrated,
    Cancel,
    LoadFailed,
    Message,
    Order,
    Reasoning,
    Reply,
    decode,
    encode,
)
from serve.pool.worker import OpenEngine, Steps, run_worker

START_TIMEOUT_S = 600.0  # a large model on a slow disk
CLOSE_TIMEOUT_S = 5.0
PIPE_BYTES = 65_536  # that a pipe takes before a write blocks


class WorkerError(Exception):
    """The worker ended, failed to load or stopped answering; the message says which."""


class Worker(Protocol):
    """Runs one request at a time for the pool, in a process of ours or on a remote server."""

    dead: bool

    @property
    def steps(self) -> int:
        """Grows while it makes progress; 0 for one that can't tell."""
        ...

    @property
    def pid(self) -> int | None:
        """Its process id, if it is a process of ours that was started."""
        ...

    async def start(self) -> Sequence[Observation]:
        """Be ready, and return the timings of the warm-up. Raises WorkerError."""
        ...

    async def exchange(
        self,
        order: Order,
        timeout_s: float,
        on_piece: Callable[[str], None] | None = None,
    ) -> Reply:
        """The reply to an order. Raises WorkerError when there will be none."""
        ...

    def cancel(self) -> None:
        """Stop what `exchange` waits for; returns at once."""
        ...

    def lose(self) -> None:
        """Give it up, because it makes no progress: `exchange` raises WorkerError."""
        ...

    def on_death(self, callback: Callable[[], None]) -> None:
        """Call back when it ends; the last callback given counts."""
        ...

    def kill(self) -> None:
        """End it at once, whatever it does."""
        ...

    async def close(self) -> None:
        """End it, and wait for that."""
        ...


Spawn = Callable[[], Worker]


class _LateError(Exception):
    """There was no answer in time."""


class WorkerProcess:
    """One worker process behind a pipe.

    The event loop itself sends and receives messages, because they are small and a worker always
    reads: a thread in between would cost every request two wake-ups. What may block (the start,
    the end, a message larger than the pipe) runs in a thread.
    """

    def __init__(self, folder: Path, open_engine: OpenEngine) -> None:
        # Fork from a process that holds nothing but imports: a fork of the front would inherit
        # its threads' locks, and a fresh process takes five times as long to be ready.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["serve.pool.preload"])
        self._connection, child = context.Pipe()
        self._child_connection = child
        self._steps: Steps = context.RawValue(Steps, 0)
        self._process = context.Process(
            target=run_worker,
            args=(child, folder, open_engine, self._steps),
            daemon=True,
            name="curt-worker",
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="curt-pipe")
        self._watched: tuple[asyncio.AbstractEventLoop, int] | None = None
        self._idle = False  # loaded and waiting for a message
        self._listening = False  # to the pipe, from the first message on
        self._answered: asyncio.Future[Reply] | None = None  # what `exchange` waits for
        self._on_piece: Callable[[str], None] | None = None
        self._sent = self._cancelled = False
        self.dead = False

    @property
    def steps(self) -> int:
        """Steps of its engine so far; 0 before the start and for one that can't stream."""
        return self._steps.value

    @property
    def pid(self) -> int | None:
        """The process id, None before the start."""
        return self._process.pid

    async def start(self) -> Sequence[Observation]:
        """Spawn, wait for the warm-up, and return its timings. Raises WorkerError."""
        await self._in_thread(self._spawn)
        ready = await self._in_thread(self._wait_ready)
        if isinstance(ready, LoadFailed):
            raise WorkerError(f"could not load the model: {ready.reason}")
        assert isinstance(ready, Calibrated)
        return ready.observations

    async def exchange(
        self,
        order: Order,
        timeout_s: float,
        on_piece: Callable[[str], None] | None = None,
    ) -> Reply:
        """Send an order and wait for its reply. Raises WorkerError when none comes in time.

        `on_piece` is called in the running loop with each piece of reasoning, before the answer.
        """
        data = encode(order)
        self._sent = self._cancelled = self._idle = False
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Reply] = loop.create_future()
        self._answered = answered
        self._on_piece = on_piece
        if not self._listening:  # once for all requests: each registration costs system calls
            self._listening = True
            loop.add_reader(self._connection.fileno(), self._receive)
        timer = loop.call_later(timeout_s, _fail, answered, _LateError())
        try:
            await self._send(data)
            return await answered
        except _LateError:
            raise WorkerError(f"no answer within {timeout_s:.1f} s") from None
        except (EOFError, OSError) as error:
            raise WorkerError(f"exit code {await self._in_thread(self._exit_code)}") from error
        finally:
            timer.cancel()
            if not answered.cancel() and not answered.cancelled():
                answered.exception()  # read it, or asyncio logs it as never retrieved
            self._answered = self._on_piece = None

    def cancel(self) -> None:
        """Ask the worker to stop what `exchange` waits for, which then returns `Cancelled`.

        A reply that was on its way already is returned instead. Returns at once.
        """
        if self._cancelled or self._idle:
            return
        self._cancelled = True
        if self._sent:
            self._send_cancel()

    def on_death(self, callback: Callable[[], None]) -> None:
        """Call back in the running loop when the process ends; the last callback given counts."""
        self._unwatch()
        loop, sentinel = asyncio.get_running_loop(), self._process.sentinel
        self._watched = (loop, sentinel)

        def died() -> None:
            self._unwatch()
            self.dead = True
            callback()

        loop.add_reader(sentinel, died)

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        if self._process.pid is not None:
            self._process.kill()

    def lose(self) -> None:
        """End the process, by which `exchange` ends too."""
        self.kill()

    async def close(self) -> None:
        """End the process: an idle one by closing its pipe, a loading or busy one by a kill."""
        self._unwatch()
        self._stop_listening()
        if not self._idle:
            self.kill()  # which also frees the thread below, if it waits for an answer
        await self._in_thread(self._close)
        self._thread.shutdown(wait=False)

    def _receive(self) -> None:
        answered = self._answered
        try:
            message = decode(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            self._stop_listening()  # a closed pipe is always readable
            if answered:
                _fail(answered, error)
            return
        if isinstance(message, Reasoning):
            if self._on_piece:
                self._on_piece(message.text)
        elif answered and not answered.done():
            assert isinstance(message, Reply)
            self._idle = True
            answered.set_result(message)

    def _stop_listening(self) -> None:
        if self._listening:
            self._listening = False
            asyncio.get_running_loop().remove_reader(self._connection.fileno())

    def _spawn(self) -> None:
        self._process.start()
        self._child_connection.close()  # or the pipe would not end with the worker

    def _wait_ready(self) -> Message:
        try:
            if not self._connection.poll(START_TIMEOUT_S):
                raise WorkerError(f"not ready within {START_TIMEOUT_S:.0f} s")
            ready = decode(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise WorkerError(f"exit code {self._exit_code()}") from error
        self._idle = True
        return ready

    async def _send(self, data: bytes) -> None:
        if len(data) > PIPE_BYTES:
            await self._in_thread(self._connection.send_bytes, data)
        else:
            self._connection.send_bytes(data)
        self._sent = True
        if self._cancelled:
            self._send_cancel()

    def _send_cancel(self) -> None:
        with contextlib.suppress(OSError):  # it died, which `exchange` notices itself
            self._connection.send_bytes(encode(Cancel()))

    def _exit_code(self) -> int | None:
        self._process.join(CLOSE_TIMEOUT_S)
        return self._process.exitcode

    def _close(self) -> None:
        self._connection.close()
        self._child_connection.close()
        if self._process.pid is None:
            return
        if not self._idle:
            self._process.kill()  # again, for one whose spawning ended after the first
        self._process.join(CLOSE_TIMEOUT_S)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._process.close()

    def _unwatch(self) -> None:
        if self._watched:
            loop, sentinel = self._watched
            self._watched = None
            loop.remove_reader(sentinel)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)


def _fail(answered: asyncio.Future[Reply], error: Exception) -> None:
    if not answered.done():
        answered.set_exception(error)
