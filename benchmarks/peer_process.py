"""Processes that each hold one variant of a model and are stopped between their turns."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from compress.speed import THREAD_VARIABLES

ROOT = Path(__file__).parents[1]
MIN_ROUND_S = 0.2  # of decoding: a shorter round measures the scheduler
MAX_RUNS = 32


@dataclass(frozen=True, slots=True)
class Variant:
    """One library on one form of the weights."""

    name: str
    library: str
    model: Path
    python: Path
    weight_bytes_per_token: int
    model_bytes: int
    spin: bool = False


class Worker:
    """The far end of a `benchmarks.peer_worker`; stopped except while it has its turn."""

    def __init__(self, name: str, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._name, self._process, self._errors = name, process, errors
        self.load_s: float = self._read()["load_s"]
        os.kill(process.pid, signal.SIGSTOP)

    def run(self, prompt: list[int], passes: int) -> dict[str, Any]:
        """One prompt's times and tokens. RuntimeError with the last words of one that died."""
        os.kill(self._process.pid, signal.SIGCONT)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a worker that died: _read says why
            self._process.stdin.write(json.dumps({"prompt": prompt, "passes": passes}) + "\n")
            self._process.stdin.flush()
        reply = self._read()
        os.kill(self._process.pid, signal.SIGSTOP)
        return reply

    def run_round(self, prompt: list[int], passes: int) -> dict[str, Any]:
        """The prompt again and again until enough time has passed; sums of its times."""
        runs: list[dict[str, Any]] = []
        while len(runs) < MAX_RUNS and sum(r["decode_s"] for r in runs) < MIN_ROUND_S:
            runs.append(self.run(prompt, passes))
        sums = {name: sum(r[name] for r in runs) for name in ("prefill_s", "decode_s", "passes")}
        return sums | {"runs": len(runs), "rss_mb": runs[-1]["rss_mb"]}

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines() or ["without a word"]
            raise RuntimeError(f"{self._name} failed: {said[-1]}")
        reply: dict[str, Any] = json.loads(line)
        return reply


@contextlib.contextmanager
def open_worker(variant: Variant, threads: int, capacity: int) -> Iterator[Worker]:
    """A variant loaded in a process of its own. RuntimeError when it does not load."""
    order = {
        "library": variant.library,
        "model": str(variant.model),
        "threads": threads,
        "capacity": capacity,
        "spin": variant.spin,
    }
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [str(variant.python), "-m", "benchmarks.peer_worker", json.dumps(order)],
            cwd=ROOT,
            env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield Worker(variant.name, process, errors)
        finally:
            process.kill()  # it holds nothing worth a farewell
            process.communicate()
