"""How far an ONNX Runtime artifact is from the model it was made from, and how fast it runs.

    python -m compress.onnx.parity --model PARENT --artifact DIR --cases cases.jsonl

The parent writes a greedy continuation of each prompt; both models are then fed exactly those
tokens and their next-token distributions are compared at every position of the continuation.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress.prompts import sample_prompts
from curt.artifact import load_manifest
from curt.config import Config, load_config
from curt.corpus.store import read_cases
from curt.engines.onnx.graph import open_graph
from curt.files import write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]

log = logging.getLogger(__name__)

MODEL_SUFFIXES = (".onnx", ".data", ".safetensors")


class ParityConfig(Config):
    """Settings of `python -m compress.onnx.parity`."""

    model: Path
    """The parent: a Hugging Face model folder of this project."""
    artifact: Path
    """The ONNX Runtime model folder made from it."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """JSON Lines file of cases to draw prompts from."""
    prompts: int = 32
    """How many prompts to compare."""
    continuation_tokens: int = 96
    """Length limit of the parent's greedy continuation."""
    seed: int = 0
    out: Path | None = None
    """JSON file for the result; it is logged in any case."""


def measure_parity(
    model: Path, artifact: Path, prompts: Sequence[list[int]], continuation_tokens: int
) -> dict[str, float]:
    """Compare `artifact` with its parent `model` on prompts given as token ids.

    Returns a flat row: `max_logit_difference`; `argmax_agreement` (0 to 1); `kl`, the mean
    KL(parent ‖ artifact) in nats; `nll_difference`, artifact minus parent, in nats a token on
    the parent's own continuation; sizes in MB; load time and tokens a second at one and two
    threads. Raises ValueError without prompts.
    """
    if not prompts:
        raise ValueError("no prompts to compare on: give at least one")
    runner = _Runner(artifact, threads=1)
    gaps, agreements, kls, nlls = [], [], [], []
    for prompt, (continuation, parent) in zip(
        prompts, _follow_parent(model, prompts, continuation_tokens), strict=True
    ):
        child = runner.teacher_force(prompt, continuation)
        gaps.append(float(np.abs(parent - child).max()))
        agreements += (parent.argmax(-1) == child.argmax(-1)).tolist()
        left, right = _log_softmax(parent), _log_softmax(child)
        kls += (np.exp(left) * (left - right)).sum(-1).tolist()
        rows = np.arange(len(continuation))
        nlls += (left[rows, continuation] - right[rows, continuation]).tolist()
    row = {
        "max_logit_difference": max(gaps),
        "argmax_agreement": statistics.fmean(agreements),
        "kl": statistics.fmean(kls),
        "nll_difference": statistics.fmean(nlls),
        "compared_prompts": float(len(prompts)),
        "compared_positions": float(len(kls)),
        "size_mb": _model_mb(artifact),
        "parent_size_mb": _model_mb(model),
        "load_ms": runner.load_ms,
    }
    longest = max(prompts, key=len)
    for threads in (1, 2):
        timed = runner if threads == 1 else _Runner(artifact, threads)
        prefill, decode = timed.measure_speed(longest, decode_tokens=64)
        row[f"prefill_tokens_per_s_{threads}_threads"] = prefill
        row[f"decode_tokens_per_s_{threads}_threads"] = decode
    return row


class _Runner:
    """The artifact's graph as the engine runs it, without a manifest: it may not be finished."""

    def __init__(self, folder: Path, threads: int) -> None:
        started = time.perf_counter()
        self._graph = open_graph(folder, threads, allow_spinning=False)
        self.load_ms = (time.perf_counter() - started) * 1e3

    def teacher_force(self, prompt: list[int], continuation: list[int]) -> Logits:
        """Logits before each token of the continuation, (tokens, vocabulary)."""
        sequence = self._graph.begin(len(prompt) + len(continuation))
        sequence.feed(prompt)
        rows = [sequence.logits()]
        for token in continuation[:-1]:
            sequence.feed([token])
            rows.append(sequence.logits())
        return np.stack(rows)

    def measure_speed(self, prompt: list[int], decode_tokens: int) -> tuple[float, float]:
        """Prefill and decode tokens a second: the best of several runs, as others share the CPU."""
        prefills, decodes = [], []
        sequence = self._graph.begin(len(prompt) + decode_tokens)
        for _ in range(4):
            sequence.rewind_to(0)
            started = time.perf_counter()
            sequence.feed(prompt)
            prefilled = time.perf_counter()
            for _ in range(decode_tokens):
                sequence.feed([sequence.likeliest()])
            decodes.append(time.perf_counter() - prefilled)
            prefills.append(prefilled - started)
        return len(prompt) / min(prefills), decode_tokens / min(decodes)


def _follow_parent(
    model: Path, prompts: Sequence[list[int]], continuation_tokens: int
) -> list[tuple[list[int], Logits]]:
    """The parent's greedy continuation of each prompt and its logits along it, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    parent = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    followed = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            room = parent.config.max_position_embeddings - len(prompt)
            if room < 1:
                raise ValueError(f"a prompt of {len(prompt)} tokens fills the parent's context")
            whole = parent.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=min(continuation_tokens, room),
                pad_token_id=0,
            )
            logits = parent(whole).logits[0, len(prompt) - 1 : -1].float().numpy()
            followed.append((whole[0, len(prompt) :].tolist(), logits))
    return followed


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    out: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return out


def _model_mb(folder: Path) -> float:
    files = (f for f in folder.iterdir() if f.suffix in MODEL_SUFFIXES)
    return sum(f.stat().st_size for f in files) / 1e6


def main(argv: list[str] | None = None) -> None:
    """Measure, log and optionally write the parity of one artifact."""
    config = load_config(ParityConfig, argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    manifest = load_manifest(config.model, expect="hf")
    load_manifest(config.artifact, expect="ort-genai")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model)
    prompts = sample_prompts(
        list(read_cases(config.cases)), tokenizer, manifest, config.prompts, config.seed
    )
    row = measure_parity(config.model, config.artifact, prompts, config.continuation_tokens)
    log.info("parity of %s: %s", config.artifact, json.dumps(row))
    if config.out:
        write_json(config.out, row)


if __name__ == "__main__":
    main()
