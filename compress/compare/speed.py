"""How fast model folders load, read a prompt and write, and how near that is to what is possible.

    python -m compress.compare.speed --artifacts '["artifacts/demo/ort-int4"]' --out speed.json

Every folder gets a process of its own for each thread count. The processes stay loaded and take
turns, one round each, so that a ratio compares two folders measured at nearly the same time and
not the machine's load at two times; memory must hold all folders at once.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

from compress.compare.weights import weight_bytes_per_token
from curt.artifact import ArtifactError, load_manifest
from curt.config import Config, FrozenModel, run
from curt.files import write_json

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
COPY_BYTES = 256 << 20  # larger than most caches, so that the copy reads memory
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class SpeedConfig(Config):
    """Settings of `python -m compress.compare.speed`."""

    artifacts: list[Path]
    """Model folders, as a JSON list; the first is what the others are compared with."""
    out: Path
    """JSON file to write."""
    threads: tuple[int, ...] = (1, 2)
    """Thread counts to measure at."""
    rounds: int = 5
    """Rounds at each thread count, all folders in each."""
    prompt_tokens: int = 500
    """Prompt length; less where a model's context is too short."""
    decode_tokens: int = 64
    """Tokens to decode after it."""


class Spread(FrozenModel):
    """The median of several rounds with the lowest and the highest."""

    median: float
    low: float
    high: float


class Speed(FrozenModel):
    """One folder at one thread count.

    Rates are our engine's. `*_to_bare` are ratios to the library's own loop on the same prompt,
    `decode_to_first` to the first folder's decoding in the same round. `bandwidth_share` is the
    traffic of the weights alone over the machine's copy bandwidth.
    """

    threads: int
    rounds: int
    load_s: float
    peak_rss_mb: float
    prompt_tokens: int
    prefill_tokens_per_s: Spread
    decode_tokens_per_s: Spread
    prefill_to_bare: Spread
    decode_to_bare: Spread
    decode_to_first: Spread
    weight_mb_per_token: float
    copy_gb_per_s: Spread
    bandwidth_share: Spread


def measure_speeds(
    folders: Sequence[Path],
    *,
    threads: Sequence[int] = (1, 2),
    rounds: int = 5,
    prompt_tokens: int = 500,
    decode_tokens: int = 64,
) -> list[list[Speed]]:
    """The speeds of every folder, in order, at every thread count.

    Raises ArtifactError when a folder must not or can't be loaded, ValueError on counts below 1.
    """
    if min([rounds, prompt_tokens, decode_tokens - 1, *threads]) < 1 or not folders:
        raise ValueError(
            f"{len(folders)} folders, {rounds} rounds, {list(threads)} threads, {prompt_tokens} "
            f"prompt and {decode_tokens} decoded tokens: use 1 or more, 2 or more decoded tokens"
        )
    for folder in folders:
        load_manifest(folder)
    by_thread = [
        _measure_at(folders, count, rounds, prompt_tokens, decode_tokens) for count in threads
    ]
    return [list(row) for row in zip(*by_thread, strict=True)]


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest of at least one value."""
    return Spread(median=statistics.median(values), low=min(values), high=max(values))


def copy_gb_per_s(source: np.ndarray, target: np.ndarray, threads: int) -> float:
    """Memory bandwidth of a copy, counting each byte read and each written (as STREAM does)."""
    edges = [len(source) * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:  # numpy copies outside the interpreter lock
        started = time.perf_counter()
        parts = [
            pool.submit(np.copyto, target[low:high], source[low:high])
            for low, high in itertools.pairwise(edges)
        ]
        for part in parts:
            part.result()
        return 2 * source.nbytes / (time.perf_counter() - started) / 1e9


def _measure_at(
    folders: Sequence[Path], threads: int, rounds: int, prompt_tokens: int, decode_tokens: int
) -> list[Speed]:
    source = np.ones(COPY_BYTES // 8)
    target = np.zeros_like(source)
    copies: list[float] = []
    seen: list[list[dict[str, Any]]] = [[] for _ in folders]
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(_worker(folder, threads, prompt_tokens, decode_tokens))
            for folder in folders
        ]
        for turn in range(rounds):
            copies.append(max(copy_gb_per_s(source, target, threads) for _ in range(3)))
            for place in range(len(folders)):
                index = (turn + place) % len(folders)  # each folder is first in turn
                seen[index].append(workers[index].run_round())
            log.info("speed at %d threads: round %d of %d", threads, turn + 1, rounds)
        ready = [worker.ready for worker in workers]
    first = [_rate(one["engine"], "decode_s", "passes") for one in seen[0]]
    return [
        _summarise(folder, threads, start, own, first, copies)
        for folder, start, own in zip(folders, ready, seen, strict=True)
    ]


def _summarise(
    folder: Path,
    threads: int,
    ready: dict[str, Any],
    seen: Sequence[dict[str, Any]],
    first: Sequence[float],
    copies: Sequence[float],
) -> Speed:
    length = ready["prompt_tokens"]
    decode = [_rate(one["engine"], "decode_s", "passes") for one in seen]
    bare_decode = [_rate(one["bare"], "decode_s", "passes") for one in seen]
    prefill = [_rate(one["engine"], "prefill_s", length) for one in seen]
    bare_prefill = [_rate(one["bare"], "prefill_s", length) for one in seen]
    weight_bytes = weight_bytes_per_token(folder)

    def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
        return spread([a / b for a, b in zip(ours, theirs, strict=True)])

    return Speed(
        threads=threads,
        rounds=len(seen),
        load_s=ready["load_s"],
        peak_rss_mb=ready["peak_rss_mb"],
        prompt_tokens=length,
        prefill_tokens_per_s=spread(prefill),
        decode_tokens_per_s=spread(decode),
        prefill_to_bare=ratios(prefill, bare_prefill),
        decode_to_bare=ratios(decode, bare_decode),
        decode_to_first=ratios(decode, first),
        weight_mb_per_token=weight_bytes / 1e6,
        copy_gb_per_s=spread(copies),
        bandwidth_share=ratios([d * weight_bytes / 1e9 for d in decode], copies),
    )


def _rate(runs: Sequence[dict[str, float]], seconds: str, tokens: str | int) -> float:
    """Tokens a second over a round's runs; `tokens` is a field or a length shared by all."""
    total = sum(run[tokens] if isinstance(tokens, str) else tokens for run in runs)
    return total / sum(run[seconds] for run in runs)


class _Worker:
    """A process that runs `compress.compare.subject.work`."""

    def __init__(self, folder: Path, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._folder, self._process, self._errors = folder, process, errors
        self.ready = self._read()

    def run_round(self) -> dict[str, Any]:
        """One round's times."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a worker that died: _read says why
            self._process.stdin.write("round\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines() or ["without a word"]
            raise ArtifactError(f"measuring {self._folder} failed: {said[-1]}")
        reply: dict[str, Any] = json.loads(line)
        return reply


@contextlib.contextmanager
def _worker(
    folder: Path, threads: int, prompt_tokens: int, decode_tokens: int
) -> Iterator[_Worker]:
    order = {
        "folder": str(folder.resolve()),
        "threads": threads,
        "prompt_tokens": prompt_tokens,
        "decode_tokens": decode_tokens,
    }
    code = "import sys; from compress.compare.subject import work; work(sys.argv[1])"
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(order)],
            cwd=ROOT,
            # passive: a worker that waits for its turn must not keep a core busy
            env={
                **os.environ,
                "OMP_WAIT_POLICY": "passive",
                **dict.fromkeys(THREAD_VARIABLES, str(threads)),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield _Worker(folder, process, errors)
        finally:
            process.kill()  # it has nothing to save
            process.communicate()


def work(config: SpeedConfig) -> None:
    """Measure the folders and write their speeds."""
    speeds = measure_speeds(
        config.artifacts,
        threads=config.threads,
        rounds=config.rounds,
        prompt_tokens=config.prompt_tokens,
        decode_tokens=config.decode_tokens,
    )
    rows = {
        str(folder): [speed.model_dump() for speed in own]
        for folder, own in zip(config.artifacts, speeds, strict=True)
    }
    write_json(config.out, rows)
    for folder, own in zip(config.artifacts, speeds, strict=True):
        for speed in own:
            log.info(
                "%s, %d threads: prefill %.0f, decode %.0f tokens/s, %.2f of the bare loop",
                folder,
                speed.threads,
                speed.prefill_tokens_per_s.median,
                speed.decode_tokens_per_s.median,
                speed.decode_to_bare.median,
            )


if __name__ == "__main__":
    run(SpeedConfig, work)
