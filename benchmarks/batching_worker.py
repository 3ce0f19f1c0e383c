"""Worker processes of the batching benchmark, and the one parent that hands them requests."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

LOAD_S = 120.0


@dataclass(frozen=True, slots=True)
class Variant:
    """So many workers, threads in each, requests at once in each; see `parse`."""

    kind: str
    workers: int
    threads: int
    batch: int
    spin: bool

    @property
    def name(self) -> str:
        """As `parse` reads it."""
        size = f"{self.kind}-{self.workers}x{self.threads}x{self.batch}"
        return f"{size}-spin" if self.spin else size

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Read "padded-2x1x4" or "padded-1x2x4-spin": workers x threads x batch.

        Raises ValueError with the form it should have.
        """
        kind, _, rest = text.partition("-")
        sizes, _, spin = rest.partition("-")
        try:
            workers, threads, batch = (int(part) for part in sizes.split("x"))
        except ValueError:
            workers = threads = batch = 0
        known = kind in ("single", "padded", "engine", "rows") and spin in ("", "spin")
        if not known or min(workers, threads, batch) < 1 or (kind == "single" and batch > 1):
            raise ValueError(
                f"{text!r} is no variant: write KIND-WORKERSxTHREADSxBATCH, where KIND is single "
                "(batch 1), padded, engine or rows, with -spin behind for threads that spin"
            )
        return cls(kind, workers, threads, batch, bool(spin))


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one request; `latency_ms` is None where it was given up unanswered."""

    job: int
    latency_ms: float | None
    tokens: int
    text: str


class Workers:
    """The open processes of one variant."""

    def __init__(self, variant: Variant, connections: Sequence[Connection]) -> None:
        self.variant = variant
        self._connections = list(connections)
        self._room = [variant.batch] * variant.workers
        self.batches: list[int] = []  # sizes of what was handed over at once
        self.decode_s = 0.0
        self.prefill_s = 0.0
        self.cpu_s = 0.0  # of all threads, the spinning ones too

    def offer(self, facts: Sequence[str], due_s: Sequence[float], patience_s: float) -> list[Reply]:
        """Hand over each fact when it is due, first come, first served, as soon as one has room.

        `due_s` counts from now and rises. What nobody has taken `patience_s` after the last of
        them is given up. RuntimeError when a worker fails.
        """
        start_s = time.monotonic() + 0.05
        waiting: deque[int] = deque()
        replies: list[Reply] = []
        arrived = 0
        end_s = start_s + due_s[-1] + patience_s
        while len(replies) < len(facts):
            now_s = time.monotonic()
            while arrived < len(facts) and start_s + due_s[arrived] <= now_s:
                waiting.append(arrived)
                arrived += 1
            if now_s > end_s:
                replies += [Reply(job, None, 0, "") for job in waiting]
                waiting.clear()
            self._hand_over(waiting, facts)
            timeout_s = start_s + due_s[arrived] - time.monotonic() if arrived < len(facts) else 1.0
            for ready in wait(self._connections, max(0.0, timeout_s)):
                assert isinstance(ready, Connection)
                message = self._receive(ready)
                now_s = time.monotonic()
                replies += [
                    Reply(job, (now_s - start_s - due_s[job]) * 1e3, tokens, text)
                    for job, tokens, text in message["done"]
                ]
        while sum(self._room) < self.variant.workers * self.variant.batch:
            for ready in wait(self._connections):
                assert isinstance(ready, Connection)
                self._receive(ready)
        return replies

    def _hand_over(self, waiting: deque[int], facts: Sequence[str]) -> None:
        shares = spread(len(waiting), self._room)
        for place, share in enumerate(shares):
            if share:
                jobs = [(job, facts[job]) for job in (waiting.popleft() for _ in range(share))]
                self._connections[place].send_bytes(json.dumps(jobs).encode())
                # what batches statically has no room again until it says so
                static = self.variant.kind != "rows"
                self._room[place] = 0 if static else self._room[place] - share
                self.batches.append(share)

    def _receive(self, connection: Connection) -> dict[str, Any]:
        try:
            message: dict[str, Any] = json.loads(connection.recv_bytes())
        except EOFError as error:
            raise RuntimeError(f"a worker of {self.variant.name} died") from error
        if "failed" in message:
            raise RuntimeError(f"{self.variant.name}: {message['failed']}")
        self._room[self._connections.index(connection)] += message["freed"]
        self.decode_s += message["decode_s"]
        self.prefill_s += message["prefill_s"]
        self.cpu_s += message["cpu_s"]
        return message


def spread(waiting: int, room: Sequence[int]) -> list[int]:
    """How many requests each worker gets: one at a time to whoever has most room left."""
    shares = [0] * len(room)
    for _ in range(min(waiting, sum(room))):
        place = max(range(len(room)), key=lambda i: room[i] - shares[i])
        shares[place] += 1
    return shares


@contextlib.contextmanager
def open_workers(
    variant: Variant, folder: Path, all_logits: Path, thinking: int, answer: int
) -> Iterator[Workers]:
    """The processes of a variant, loaded. RuntimeError with the reason when one does not load."""
    context = multiprocessing.get_context("spawn")
    processes, connections = [], []
    try:
        for _ in range(variant.workers):
            near, far = context.Pipe()
            process = context.Process(
                target=_work, args=(far, variant, folder, all_logits, thinking, answer), daemon=True
            )
            process.start()
            far.close()
            processes.append(process)
            connections.append(near)
        for connection in connections:
            if not connection.poll(LOAD_S):
                raise RuntimeError(f"{variant.name} did not load in {LOAD_S:.0f} s")
            try:
                message = json.loads(connection.recv_bytes())
            except EOFError as error:
                raise RuntimeError(f"a worker of {variant.name} died while it loaded") from error
            if "failed" in message:
                raise RuntimeError(f"{variant.name}: {message['failed']}")
        yield Workers(variant, connections)
    finally:
        for process in processes:
            process.kill()  # it holds nothing worth a farewell
            process.join()


def _work(
    connection: Connection,
    variant: Variant,
    folder: Path,
    all_logits: Path,
    thinking: int,
    answer: int,
) -> None:
    """Serve batches of (job, fact) until the parent closes the pipe."""
    try:
        _serve(connection, variant, folder, all_logits, thinking, answer)
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        connection.send_bytes(json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode())


def _serve(
    connection: Connection,
    variant: Variant,
    folder: Path,
    all_logits: Path,
    thinking: int,
    answer: int,
) -> None:
    from benchmarks.batching_decoders import Prompts, open_decoder

    prompts = Prompts(folder, thinking, answer)
    decoder = open_decoder(
        variant.kind,  # type: ignore[arg-type]
        folder,
        prompts,
        all_logits=all_logits,
        batch=variant.batch,
        threads=variant.threads,
        spin=variant.spin,
    )
    connection.send_bytes(b"{}")
    prefill_s = decode_s = 0.0
    cpu_s = time.process_time()
    while True:
        while decoder.room and (not decoder.busy or connection.poll()):
            jobs = json.loads(connection.recv_bytes())
            started_s = time.perf_counter()
            decoder.admit([prompts.turn(job, fact) for job, fact in jobs])
            prefill_s += time.perf_counter() - started_s
        room = decoder.room
        started_s = time.perf_counter()
        over = decoder.step()
        decode_s += time.perf_counter() - started_s
        # a batch that is static has its room back at its end, rows one by one
        freed = len(over) if variant.kind == "rows" else decoder.room - room
        if over or freed:
            done = [(turn.job, turn.tokens, prompts.text(turn)) for turn in over]
            message = {
                "done": done,
                "freed": freed,
                "prefill_s": prefill_s,
                "decode_s": decode_s,
                "cpu_s": time.process_time() - cpu_s,
            }
            connection.send_bytes(json.dumps(message).encode())
            prefill_s = decode_s = 0.0
            cpu_s = time.process_time()
