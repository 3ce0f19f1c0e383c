"""How far an ONNX Runtime artifact is from the model it was made from, and how fast it runs.

    python -m compress.onnx.parity --model PARENT --artifact DIR --cases cases.jsonl

The parent writes a greedy continuation of each prompt; both models are then fed exactly those
tokens and their next-token distributions are compared at every position of the continuation.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress.distance import compare_along_parent
from compress.folders import load_model, weight_bytes
from compress.prompts import sample_prompts
from curt.artifact import load_manifest
from curt.config import Config, run
from curt.corpus.store import read_cases
from curt.engines.onnx.graph import open_graph
from curt.files import write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Logits = NDArray[np.float32]

log = logging.getLogger(__name__)


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
    runner = _Runner(artifact, threads=1)

    def read_artifact(prompt: list[int], continuation: list[int]) -> Tensor:
        import torch

        return torch.from_numpy(runner.teacher_force(prompt, continuation))

    row = compare_along_parent(
        load_model(model), read_artifact, prompts, continuation_tokens
    ).to_full_row() | {
        "size_mb": weight_bytes(artifact) / 1e6,
        "parent_size_mb": weight_bytes(model) / 1e6,
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


def work(config: ParityConfig) -> None:
    """Measure, log and optionally write the parity of one artifact."""
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
    run(ParityConfig, work)
