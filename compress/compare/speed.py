"""How fast model folders load, read a prompt and write.

Every folder gets a process of its own for each thread count. The processes stay loaded and take
turns, one round each, so that a ratio compares two folders measured at nearly the same time and
not the machine's load at two times; memory must hold all folders at once.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from curt.artifact import ArtifactError, load_manifest
from curt.config import FrozenModel
from curt.dialogue import state_budget
from curt.engines.protocol import Generation, Request, StreamingEngine, last_generation
from curt.engines.registry import LocalEngine, open_engine

log = logging.getLogger(__name__)

T = TypeVar("T")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
SENTENCE = "被告人张某在某市某超市窃取他人现金8000元，归案后如实供述，认罪认罚。"
MAX_REQUESTS = 32  # a round, for a model that ends its turn at once
MIN_ROUND_MS = 200  # a shorter round measures the scheduler


class Spread(FrozenModel):
    """The median of several rounds with the lowest and the highest."""

    median: float
    low: float
    high: float


class Speed(FrozenModel):
    """One folder at one thread count.

    `decode_to_first` is the ratio to the first folder's decoding in the same round.
    """

    threads: int
    rounds: int
    load_s: float
    peak_rss_mb: float
    prompt_tokens: int
    prefill_tokens_per_s: Spread
    decode_tokens_per_s: Spread
    decode_to_first: Spread


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


def _measure_at(
    folders: Sequence[Path], threads: int, rounds: int, prompt_tokens: int, decode_tokens: int
) -> list[Speed]:
    seen: list[list[list[Generation]]] = [[] for _ in folders]
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(ProcessPoolExecutor(1, spawn, _set_threads, (threads,)))
            for _ in folders
        ]
        ready = [
            _ask(folder, worker, load, folder, threads, prompt_tokens, decode_tokens)
            for folder, worker in zip(folders, workers, strict=True)
        ]
        for turn in range(rounds):
            for place in range(len(folders)):
                index = (turn + place) % len(folders)  # each folder is first in turn
                seen[index].append(_ask(folders[index], workers[index], run_loaded))
            log.info("speed at %d threads: round %d of %d", threads, turn + 1, rounds)
    first = [_decode_rate(runs) for runs in seen[0]]
    return [_summarise(threads, start, own, first) for start, own in zip(ready, seen, strict=True)]


def _ask(folder: Path, worker: ProcessPoolExecutor, work: Callable[..., T], *given: Any) -> T:
    try:
        return worker.submit(work, *given).result()
    except Exception as error:  # of whatever kind, over there
        raise ArtifactError(f"measuring {folder} failed: {error}") from error


def _set_threads(threads: int) -> None:
    """In a worker, before anything is imported that reads these."""
    # passive: a worker that waits for its turn must not keep a core busy
    os.environ |= {"OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}
    os.environ |= dict.fromkeys(THREAD_VARIABLES, str(threads))


def _summarise(
    threads: int, ready: Loaded, seen: Sequence[Sequence[Generation]], first: Sequence[float]
) -> Speed:
    decode = [_decode_rate(runs) for runs in seen]
    return Speed(
        threads=threads,
        rounds=len(seen),
        load_s=ready.load_s,
        peak_rss_mb=ready.peak_rss_mb,
        prompt_tokens=ready.prompt_tokens,
        prefill_tokens_per_s=spread([_prefill_rate(runs) for runs in seen]),
        decode_tokens_per_s=spread(decode),
        decode_to_first=spread([own / other for own, other in zip(decode, first, strict=True)]),
    )


class Loaded(NamedTuple):
    """What loading a folder took, and the prompt that its rounds run."""

    load_s: float
    peak_rss_mb: float
    prompt_tokens: int


_loaded: tuple[LocalEngine, Request, int]  # of this process, which runs one folder


def load(folder: Path, threads: int, prompt_tokens: int, decode_tokens: int) -> Loaded:
    """In a process of its own: load a folder for `run_loaded`, and warm it up."""
    global _loaded
    started = time.perf_counter()
    engine = open_engine(folder, threads=threads)
    load_s = time.perf_counter() - started
    request = make_request(engine, prompt_tokens, decode_tokens)
    first = last_generation(engine.stream(request))
    _loaded = engine, request, decode_tokens
    return Loaded(load_s, peak_rss_mb(), first.prompt_tokens)


def run_loaded() -> list[Generation]:
    """One round of the folder that this process has loaded."""
    return run_round(*_loaded)


def make_request(engine: LocalEngine, prompt_tokens: int, decode_tokens: int) -> Request:
    """A request with as many sentences as `prompt_tokens` and the model's facts have room for.

    Thinking, its end and the answer come to at most `decode_tokens` tokens. Raises ValueError
    when not even one sentence fits.
    """
    thinking = decode_tokens // 2
    found, length = None, 0
    for count in itertools.count(1):
        request = Request(
            SENTENCE * count,
            stated_budget=state_budget(thinking),
            thinking_limit=thinking,
            answer_limit=max(1, decode_tokens - thinking - 1),
            tell_text=False,
        )
        longer = len(engine.encode(request))
        if not length < longer <= prompt_tokens:  # the model's own limit clips it, or ours is met
            break
        found, length = request, longer
    if found is None:
        raise ValueError(f"no prompt fits {prompt_tokens} tokens: allow longer ones")
    return found


def run_round(engine: StreamingEngine, request: Request, decode_tokens: int) -> list[Generation]:
    """A request again and again until enough is decoded and enough time has passed.

    A model may end its turn before `decode_tokens`.
    """
    runs: list[Generation] = []
    while len(runs) < MAX_REQUESTS and (
        sum(map(_written, runs)) < decode_tokens
        or sum(run.prefill_ms + run.decode_ms for run in runs) < MIN_ROUND_MS
    ):
        runs.append(last_generation(engine.stream(request)))
    return runs


def peak_rss_mb() -> float:
    """The most memory this process ever held, in MB.

    Not `ru_maxrss`: Linux carries that over from the parent through fork and exec.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    if match is None:
        raise OSError("/proc/self/status has no VmHWM: peak memory needs Linux")
    return int(match[1]) * 1024 / 1e6


def _decode_rate(runs: Sequence[Generation]) -> float:
    """Tokens a second after the prefills of a round's runs."""
    return 1e3 * sum(map(_written, runs)) / sum(run.decode_ms for run in runs)


def _prefill_rate(runs: Sequence[Generation]) -> float:
    return 1e3 * sum(run.prompt_tokens for run in runs) / sum(run.prefill_ms for run in runs)


def _written(run: Generation) -> int:
    # A token that fills the answer's limit is not fed back.
    return run.thinking_tokens + 1 + run.answer_tokens - (run.finish == "length")
