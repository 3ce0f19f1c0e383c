"""How far an ONNX Runtime artifact is from the model it was made from, and how fast it runs.

The parent writes a greedy continuation of each prompt; both models are then fed exactly those
tokens and their next-token distributions are compared at every position of the continuation.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress.distance import compare_along_parent
from compress.folders import load_model, weight_bytes
from curt.engines.onnx.graph import open_graph

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Logits = NDArray[np.float32]


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
