"""The front's side of a worker: spawn it, exchange messages with it, end it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from curt.engines.budget import Observation
from serve.worker import OpenEngine, run_worker

START_TIMEOUT_S = 600.0  # a large model on a slow disk
CLOSE_TIMEOUT_S = 5.0


class WorkerError(Exception):
    """The worker process ended, failed to load or stopped answering; the message says which."""


class WorkerProcess:
    """One worker process. Its blocking pipe lives in a thread of its own, never in the loop."""

    def __init__(self, folder: Path, open_engine: OpenEngine) -> None:
        # Forked from a process that holds nothing but imports: a fork of the front would copy its
        # threads, and a fresh process takes five times as long to be ready.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["serve.preload"])
        self._connection, child = context.Pipe()
        self._child_connection = child
        self._process = context.Process(
            target=run_worker, args=(child, folder, open_engine), daemon=True, name="curt-worker"
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="curt-pipe")
        self._watched: tuple[asyncio.AbstractEventLoop, int] | None = None
        self._idle = False  # loaded and waiting for a message
        self._sending = threading.Lock()  # the loop cancels while the thread sends
        self._sent = self._cancelled = False
        self.dead = False

    @property
    def pid(self) -> int | None:
        """The process id, None before the start."""
        return self._process.pid

    async def start(self) -> list[Observation]:
        """Spawn, wait for the warm-up, and return its timings. Raises WorkerError."""
        await self._in_thread(self._spawn)
        ready = await self._in_thread(self._exchange, None, START_TIMEOUT_S, None)
        if "failed" in ready:
            raise WorkerError(f"could not load the model: {ready['failed']}")
        return [Observation(**o) for o in ready["calibration"]]

    async def exchange(
        self,
        message: dict[str, Any],
        timeout_s: float,
        on_piece: Callable[[str], None] | None = None,
    ) -> dict[str, Any]:
        """Send a message and wait for its answer. Raises WorkerError when none comes in time.

        `on_piece` is called in the running loop with each piece of reasoning, before the answer.
        """
        data = json.dumps(message, ensure_ascii=False).encode()
        self._sent = self._cancelled = self._idle = False
        loop = asyncio.get_running_loop()

        def pass_on(piece: str) -> None:
            if on_piece:
                loop.call_soon_threadsafe(on_piece, piece)

        answer: dict[str, Any] = await self._in_thread(self._exchange, data, timeout_s, pass_on)
        return answer

    def cancel(self) -> None:
        """Let the worker stop what `exchange` waits for, which then returns `{"cancelled": True}`.

        Unless the answer was on its way already. Returns at once.
        """
        with self._sending:
            if self._cancelled or self._idle:
                return
            self._cancelled = True
            if self._sent:
                with contextlib.suppress(OSError):  # it died; the waiting thread tells
                    self._connection.send_bytes(b'{"cancel": true}')

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

    async def close(self) -> None:
        """End the process: an idle one by closing its pipe, a loading or busy one by a kill."""
        self._unwatch()
        if not self._idle:
            self.kill()  # which also frees the thread below, if it waits for an answer
        await self._in_thread(self._close)
        self._thread.shutdown(wait=False)

    def _spawn(self) -> None:
        self._process.start()
        self._child_connection.close()  # or the worker's death would not read as end of file

    def _exchange(
        self, data: bytes | None, timeout_s: float, on_piece: Callable[[str], None] | None
    ) -> dict[str, Any]:
        end_s = time.monotonic() + timeout_s
        try:
            if data is not None and not self._send(data):
                return {"cancelled": True}
            while True:
                if not self._connection.poll(max(0.0, end_s - time.monotonic())):
                    raise WorkerError(f"no answer within {timeout_s:.1f} s")
                answer = json.loads(self._connection.recv_bytes())
                assert isinstance(answer, dict)
                if on_piece and "piece" in answer:
                    on_piece(answer["piece"])
                    continue
                with self._sending:
                    self._idle = True
                return answer
        except (EOFError, OSError) as error:
            self._process.join(CLOSE_TIMEOUT_S)
            raise WorkerError(f"exit code {self._process.exitcode}") from error

    def _send(self, data: bytes) -> bool:
        """Send a request, unless it was cancelled before it got here."""
        with self._sending:
            if self._cancelled:
                self._idle = True
                return False
            self._connection.send_bytes(data)
            self._sent = True
            return True

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
