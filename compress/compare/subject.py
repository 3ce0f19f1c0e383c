"""A loaded model folder under the clock: our engine and the raw loop, on the same prompt.

Runs in a process of its own that `compress.compare.speed` starts and asks for one round at a time.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from compress.compare.weights import context_tokens
from curt.artifact import ArtifactError, Format, load_manifest
from curt.dialogue import MAX_ANSWER_TOKENS, state_budget
from curt.engines.protocol import Generation, Request

SENTENCE = "被告人张某在某市某超市窃取他人现金8000元，归案后如实供述，认罪认罚。"
MAX_REQUESTS = 32  # a round, for a model that ends its turn at once
MIN_ROUND_S = 0.2  # of our engine: a shorter round measures the scheduler


@dataclass(frozen=True, slots=True)
class RunTimes:
    """One prompt through the model; `passes` counts the forward passes after the prefill."""

    prefill_s: float
    decode_s: float
    passes: int


class Subject(Protocol):
    """A loaded model that runs one prompt of about `prompt_tokens` through either loop."""

    def widen(self, prompt_tokens: int) -> None:
        """Let facts fill a prompt of this many tokens, as if the folder were made for it."""
        ...

    def count_prompt(self, request: Request) -> int:
        """Tokens of a request's prompt."""
        ...

    def run_engine(self, request: Request) -> RunTimes:
        """Complete a request as evaluation and serving do."""
        ...

    def run_bare(self, request: Request, passes: int) -> RunTimes:
        """The same prompt and number of tokens through the library's own greedy loop."""
        ...


class OrtSubject:
    """An "ort-genai" folder."""

    def __init__(self, folder: Path, threads: int) -> None:
        from curt.engines.onnx.engine import OrtEngine

        self.engine = OrtEngine(folder, threads=threads)
        self._genai_model = functools.cache(lambda: _open_genai(folder, threads))

    def widen(self, prompt_tokens: int) -> None:
        """Let facts fill a prompt of this many tokens, as if the folder were made for it."""
        limits = {"max_fact_tokens": prompt_tokens}
        self.engine.manifest = self.engine.manifest.model_copy(update=limits)
        self.engine._prepare_prefix()  # sizes the key-value cache by those limits

    def count_prompt(self, request: Request) -> int:
        """Tokens of a request's prompt."""
        return len(self.engine.encode(request))

    def run_engine(self, request: Request) -> RunTimes:
        """Complete a request as evaluation and serving do."""
        (generation,) = self.engine.generate([request])
        return RunTimes(
            generation.prefill_ms / 1e3, generation.decode_ms / 1e3, _ort_passes(generation)
        )

    def run_bare(self, request: Request, passes: int) -> RunTimes:
        """onnxruntime-genai's own loop over the same folder."""
        import onnxruntime_genai as og

        prompt = self.engine.encode(request)
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


class TransformersSubject:
    """An "hf" folder. A hook on the model tells the prefill from the decoding."""

    def __init__(self, folder: Path, threads: int) -> None:
        import torch

        from curt.engines.transformers import TransformersEngine

        torch.set_num_threads(threads)
        self.engine = TransformersEngine(folder, batch=1, device="cpu")
        self._ends: list[float] = []
        self.engine.model.register_forward_hook(lambda *_: self._ends.append(time.perf_counter()))

    def widen(self, prompt_tokens: int) -> None:
        """Let facts fill a prompt of this many tokens, as if the folder were made for it."""
        limits = {"max_fact_tokens": prompt_tokens}
        self.engine.manifest = self.engine.manifest.model_copy(update=limits)

    def count_prompt(self, request: Request) -> int:
        """Tokens of a request's prompt."""
        return len(self.engine.encode(request))

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

        return torch.tensor([self.engine.encode(request)])

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


def work(order: str) -> None:
    """Load as ordered, say so, then answer every line on stdin with one round; JSON lines."""
    settings = json.loads(order)
    # Libraries print to stdout too: keep it for replies, send theirs to stderr.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    folder, decode_tokens = Path(settings["folder"]), settings["decode_tokens"]
    kind = load_manifest(folder).format
    if kind not in SUBJECTS:
        raise ArtifactError(f"{folder} holds {kind}, which no engine on this machine runs")
    _import_engine(kind)
    started = time.perf_counter()
    subject = SUBJECTS[kind](folder, settings["threads"])
    load_s = time.perf_counter() - started
    room = context_tokens(folder) - decode_tokens - MAX_ANSWER_TOKENS - 2
    wanted = min(settings["prompt_tokens"], room)
    subject.widen(wanted)
    request = make_request(subject, wanted, decode_tokens)
    subject.run_engine(request)  # warm up, and touch what an engine needs
    ready = {
        "load_s": load_s,
        "peak_rss_mb": peak_rss_mb(),
        "prompt_tokens": subject.count_prompt(request),
    }
    print(json.dumps(ready), file=replies, flush=True)
    subject.run_bare(request, decode_tokens)
    for _ in sys.stdin:
        print(json.dumps(run_round(subject, request, decode_tokens)), file=replies, flush=True)


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


def run_round(subject: Subject, request: Request, decode_tokens: int) -> dict[str, list[Any]]:
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
    return {"engine": [asdict(r) for r in engine], "bare": [asdict(r) for r in bare]}


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
