"""How fast model folders load, read a prompt and write, beside the library's own loop.

Every folder gets a process of its own for each thread count. The processes stay loaded and take
turns, one round each, so that a ratio compares two folders measured at nearly the same time and
not the machine's load at two times; memory must hold all folders at once.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import multiprocessing
import os
import re
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from curt.artifact import ArtifactError, Format, load_manifest
from curt.config import FrozenModel
from curt.dialogue import MAX_ANSWER_TOKENS, state_budget
from curt.engines.onnx.graph import GENAI_CONFIG
from curt.engines.protocol import Generation, Request

log = logging.getLogger(__name__)

T = TypeVar("T")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
SENTENCE = "被告人张某在某市某超市窃取他人现金8000元，归案后如实供述，认罪认罚。"
MAX_REQUESTS = 32  # a round, for a model that ends its turn at once
MIN_ROUND_S = 0.2  # of our engine: a shorter round measures the scheduler


class Spread(FrozenModel):
    """The median of several rounds with the lowest and the highest."""

    median: float
    low: float
    high: float


class Speed(FrozenModel):
    """One folder at one thread count.

    Rates are our engine's. `*_to_bare` are ratios to the library's own loop on the same prompt,
    `decode_to_first` to the first folder's decoding in the same round.
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
    seen: list[list[Round]] = [[] for _ in folders]
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
    first = [_decode_rate(one.engine) for one in seen[0]]
    return [_summarise(threads, start, own, first) for start, own in zip(ready, seen, strict=True)]


def _ask(folder: Path, worker: ProcessPoolExecutor, work: Callable[..., T], *given: Any) -> T:
    try:
        return worker.submit(work, *given).result()
    except Exception as error:  # of whatever kind, over there
        raise ArtifactError(f"measuring {folder} failed: {error}") from error


def _set_threads(threads: int) -> None:
    """In a worker, before anything is imported that reads these."""
    # passive: a worker that waits for its turn must not keep a core busy
    os.environ |= {"OMP_WAIT_POLICY": "passive", **dict.fromkeys(THREAD_VARIABLES, str(threads))}


def _summarise(threads: int, ready: Loaded, seen: Sequence[Round], first: Sequence[float]) -> Speed:
    length = ready.prompt_tokens
    decode = [_decode_rate(one.engine) for one in seen]
    bare_decode = [_decode_rate(one.bare) for one in seen]
    prefill = [_prefill_rate(one.engine, length) for one in seen]
    bare_prefill = [_prefill_rate(one.bare, length) for one in seen]

    def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
        return spread([a / b for a, b in zip(ours, theirs, strict=True)])

    return Speed(
        threads=threads,
        rounds=len(seen),
        load_s=ready.load_s,
        peak_rss_mb=ready.peak_rss_mb,
        prompt_tokens=length,
        prefill_tokens_per_s=spread(prefill),
        decode_tokens_per_s=spread(decode),
        prefill_to_bare=ratios(prefill, bare_prefill),
        decode_to_bare=ratios(decode, bare_decode),
        decode_to_first=ratios(decode, first),
    )


def _decode_rate(runs: Sequence[RunTimes]) -> float:
    """Tokens a second after the prefills of a round's runs."""
    return sum(run.passes for run in runs) / sum(run.decode_s for run in runs)


def _prefill_rate(runs: Sequence[RunTimes], prompt_tokens: int) -> float:
    return len(runs) * prompt_tokens / sum(run.prefill_s for run in runs)


@dataclass(frozen=True, slots=True)
class RunTimes:
    """One prompt through the model; `passes` counts the forward passes after the prefill."""

    prefill_s: float
    decode_s: float
    passes: int


class Subject(ABC):
    """A loaded model that runs one prompt of about `prompt_tokens` through either loop."""

    engine: Any
    """Of `curt.engines`."""

    def widen(self, prompt_tokens: int) -> None:
        """Let facts fill a prompt of this many tokens, as if the folder were made for it."""
        self.engine.prompts.max_fact_tokens = prompt_tokens

    def count_prompt(self, request: Request) -> int:
        """Tokens of a request's prompt."""
        return len(self.engine.encode(request))

    @abstractmethod
    def run_engine(self, request: Request) -> RunTimes:
        """Complete a request as evaluation and serving do."""

    @abstractmethod
    def run_bare(self, request: Request, passes: int) -> RunTimes:
        """The same prompt and number of tokens through the library's own greedy loop."""


class OrtSubject(Subject):
    """An "ort-genai" folder."""

    def __init__(self, folder: Path, threads: int) -> None:
        from curt.engines.onnx.engine import OrtEngine

        self.engine = OrtEngine(folder, threads=threads)
        self._genai_model = functools.cache(lambda: _open_genai(folder, threads))

    def widen(self, prompt_tokens: int) -> None:
        """The same, and a key-value cache of that size."""
        super().widen(prompt_tokens)
        self.engine._prepare_prefix()

    def run_engine(self, request: Request) -> RunTimes:
        """Complete a request as evaluation and serving do."""
        (generation,) = self.engine.generate([request])
        return RunTimes(
            generation.prefill_ms / 1e3, generation.decode_ms / 1e3, _ort_passes(generation)
        )

    def run_bare(self, request: Request, passes: int) -> RunTimes:
        """onnxruntime-genai's own loop over the same folder."""
        import onnxruntime_genai as og

        prompt = self.engine.encode(request).ids
        total = len(prompt) + passes + 1
        model = self._genai_model()
        params = og.GeneratorParams(model)
        # min_length keeps it from stopping early
        params.set_search_options(max_length=total, min_length=total, do_sample=False)
        generator = og.Generator(model, params)
        started = time.perf_counter()
        generator.append_tokens(prompt)
        prefilled = time.perf_counter()
        for _ in range(passes + 1):  # the first one only picks from the prefill's logits
            generator.generate_next_token()
        return RunTimes(prefilled - started, time.perf_counter() - prefilled, passes)


class TransformersSubject(Subject):
    """An "hf" folder. A hook on the model tells the prefill from the decoding."""

    def __init__(self, folder: Path, threads: int) -> None:
        import torch

        from curt.engines.transformers import TransformersEngine

        torch.set_num_threads(threads)
        self.engine = TransformersEngine(folder, batch=1, device="cpu")
        self._ends: list[float] = []
        self.engine.model.register_forward_hook(lambda *_: self._ends.append(time.perf_counter()))

    def run_engine(self, request: Request) -> RunTimes:
        """Complete a request as evaluation does."""
        return self._time(lambda: self.engine.generate([request]))

    def run_bare(self, request: Request, passes: int) -> RunTimes:
        """transformers' own `generate`."""
        import torch

        ids = self._encode(request)
        with torch.inference_mode():
            return self._time(
                lambda: self.engine.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    min_new_tokens=passes + 1,
                    max_new_tokens=passes + 1,
                    pad_token_id=0,
                )
            )

    def _encode(self, request: Request) -> Any:
        import torch

        return torch.tensor([self.engine.encode(request).ids])

    def _time(self, run: Callable[[], object]) -> RunTimes:
        self._ends.clear()
        started = time.perf_counter()
        run()
        ended = time.perf_counter()
        return RunTimes(self._ends[0] - started, ended - self._ends[0], len(self._ends) - 1)


SUBJECTS: dict[Format, Callable[[Path, int], Subject]] = {
    "ort-genai": OrtSubject,
    "hf": TransformersSubject,
}


class Loaded(NamedTuple):
    """What loading a folder took, and the prompt that its rounds run."""

    load_s: float
    peak_rss_mb: float
    prompt_tokens: int


class Round(NamedTuple):
    """The runs of one round, by our engine and by the library's own loop."""

    engine: list[RunTimes]
    bare: list[RunTimes]


_loaded: tuple[Subject, Request, int]  # of this process, which runs one folder


def load(folder: Path, threads: int, prompt_tokens: int, decode_tokens: int) -> Loaded:
    """In a process of its own: load a folder for `run_loaded`, and warm it up."""
    global _loaded
    kind = load_manifest(folder).format
    if kind not in SUBJECTS:
        raise ArtifactError(f"{folder} holds {kind}, which no engine on this machine runs")
    _import_engine(kind)
    started = time.perf_counter()
    subject = SUBJECTS[kind](folder, threads)
    load_s = time.perf_counter() - started
    room = context_tokens(folder) - decode_tokens - MAX_ANSWER_TOKENS - 2
    wanted = min(prompt_tokens, room)
    subject.widen(wanted)
    request = make_request(subject, wanted, decode_tokens)
    subject.run_engine(request)  # warm up, and touch what an engine needs
    loaded = Loaded(load_s, peak_rss_mb(), subject.count_prompt(request))
    subject.run_bare(request, decode_tokens)
    _loaded = subject, request, decode_tokens
    return loaded


def run_loaded() -> Round:
    """One round of the folder that this process has loaded."""
    return run_round(*_loaded)


def make_request(subject: Subject, prompt_tokens: int, decode_tokens: int) -> Request:
    """A request whose prompt is as long as it gets without passing `prompt_tokens`.

    Thinking, its end and the answer come to at most `decode_tokens` tokens. Raises ValueError
    when even an empty fact is too long.
    """
    text = SENTENCE * (prompt_tokens // len(SENTENCE) * 8 + 8)

    def request(chars: int) -> Request:
        thinking = decode_tokens // 2
        return Request(
            text[:chars],
            stated_budget=state_budget(thinking),
            thinking_limit=thinking,
            answer_limit=max(1, decode_tokens - thinking - 1),
        )

    if subject.count_prompt(request(0)) > prompt_tokens:
        raise ValueError(f"no prompt fits {prompt_tokens} tokens: allow longer ones")
    low, high = 0, len(text)
    while high - low > 1:
        middle = (low + high) // 2
        if subject.count_prompt(request(middle)) <= prompt_tokens:
            low = middle
        else:
            high = middle
    return request(low)


def run_round(subject: Subject, request: Request, decode_tokens: int) -> Round:
    """Engine and raw loop in turn until enough is decoded and enough time has passed.

    A model may end its turn before `decode_tokens`: then the prompt is run again.
    """
    engine: list[RunTimes] = []
    bare: list[RunTimes] = []
    while len(engine) < MAX_REQUESTS and (
        sum(r.passes for r in engine) < decode_tokens
        or sum(r.prefill_s + r.decode_s for r in engine) < MIN_ROUND_S
    ):
        engine.append(subject.run_engine(request))
        bare.append(subject.run_bare(request, engine[-1].passes))
    return Round(engine, bare)


def context_tokens(folder: Path) -> int:
    """The longest sequence a model folder takes, in tokens."""
    if (folder / GENAI_CONFIG).is_file():
        return int(json.loads((folder / GENAI_CONFIG).read_bytes())["model"]["context_length"])
    return int(json.loads((folder / "config.json").read_bytes())["max_position_embeddings"])


def peak_rss_mb() -> float:
    """The most memory this process ever held, in MB.

    Not `ru_maxrss`: Linux carries that over from the parent through fork and exec.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    if match is None:
        raise OSError("/proc/self/status has no VmHWM: peak memory needs Linux")
    return int(match[1]) * 1024 / 1e6


def _import_engine(kind: Format) -> None:
    """So that loading is timed and importing is not."""
    if kind == "hf":
        import curt.engines.transformers
    else:
        import curt.engines.onnx.engine  # noqa: F401


def _open_genai(folder: Path, threads: int) -> Any:
    """The folder as an onnxruntime_genai.Model with this many intra-op threads that don't spin."""
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    options = {"intra_op_num_threads": threads, "session.intra_op.allow_spinning": "0"}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    return og.Model(config)


def _ort_passes(generation: Generation) -> int:
    # A token that fills the answer's limit is not fed back.
    fed = generation.thinking_tokens + 1 + generation.answer_tokens
    return fed - (generation.finish == "length")
