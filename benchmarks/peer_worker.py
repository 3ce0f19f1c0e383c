"""A loaded model under the clock, in a process of its own: ONNX Runtime, llama.cpp or OpenVINO.

`benchmarks.decode_peers` starts it with an order (JSON) as its argument, in the environment that
has the library, and sends a prompt of token ids a line. Every library runs its own greedy loop,
its stop token ignored, at its own defaults save the thread count. Nothing but the ONNX Runtime
runner imports from this project.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class Run:
    """One prompt: seconds until its last token was read, seconds of the `passes` after it."""

    prefill_s: float
    decode_s: float
    passes: int
    tokens: list[int]


class Runner(Protocol):
    """A loaded model."""

    def run(self, prompt: list[int], passes: int) -> Run:
        """Read a prompt, then write greedily: `passes` forward passes, one token more."""
        ...


class OrtRunner:
    """onnxruntime-genai's generator."""

    def __init__(self, model: Path, threads: int, capacity: int, spin: bool) -> None:
        import onnxruntime_genai as og

        from curt.engines.onnxruntime_genai import session_config

        self._og = og
        self._model = og.Model(session_config(model, threads, allow_spinning=spin))

    def run(self, prompt: list[int], passes: int) -> Run:
        """Read a prompt, then write greedily."""
        total = len(prompt) + passes + 1
        params = self._og.GeneratorParams(self._model)
        # min_length keeps it from stopping early
        params.set_search_options(max_length=total, min_length=total, do_sample=False)
        generator = self._og.Generator(self._model, params)
        started = time.perf_counter()
        generator.append_tokens(np.asarray(prompt, dtype=np.int32))
        generator.generate_next_token()  # picks from the prompt's logits
        prefilled = time.perf_counter()
        for _ in range(passes):
            generator.generate_next_token()
        ended = time.perf_counter()
        tokens = [int(i) for i in generator.get_sequence(0)[len(prompt) :]]
        return Run(prefilled - started, ended - prefilled, passes, tokens)


class LlamaRunner:
    """llama.cpp through its C interface, without the Python package's sampling around it."""

    def __init__(self, model: Path, threads: int, capacity: int, spin: bool) -> None:
        import llama_cpp

        self._library = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)  # must outlive the model
        llama_cpp.llama_log_set(self._quiet, None)
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(
            os.fsencode(model / "model.gguf"), options
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp refuses {model}")
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = -(-capacity // 256) * 256
        context.n_threads = context.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context of {capacity} tokens for {model}")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def run(self, prompt: list[int], passes: int) -> Run:
        """Read a prompt, then write greedily."""
        memory = self._library.llama_get_memory(self._context)
        self._library.llama_memory_clear(memory, True)
        started = time.perf_counter()
        tokens = [self._step(prompt)]
        prefilled = time.perf_counter()
        for _ in range(passes):
            tokens.append(self._step(tokens[-1:]))
        return Run(prefilled - started, time.perf_counter() - prefilled, passes, tokens)

    def _step(self, ids: list[int]) -> int:
        array = (self._library.llama_token * len(ids))(*ids)
        batch = self._library.llama_batch_get_one(array, len(ids))
        if status := self._library.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode failed with status {status}")
        pointer = self._library.llama_get_logits_ith(self._context, -1)
        address = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
        return int(np.ctypeslib.as_array(address, (self._vocab_size,)).argmax())


class OpenVinoRunner:
    """OpenVINO GenAI's pipeline, paged attention and all, its cache of prompts switched off."""

    def __init__(self, model: Path, threads: int, capacity: int, spin: bool) -> None:
        import openvino
        import openvino_genai

        self._openvino, self._genai = openvino, openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False  # a repeated prompt would cost nothing
        scheduler.max_num_batched_tokens = capacity
        self._pipeline = openvino_genai.LLMPipeline(
            str(model), "CPU", INFERENCE_NUM_THREADS=threads, scheduler_config=scheduler
        )

    def run(self, prompt: list[int], passes: int) -> Run:
        """Read a prompt, then write greedily; times are the pipeline's own."""
        settings = self._genai.GenerationConfig()
        settings.max_new_tokens = passes + 1
        settings.ignore_eos = True
        settings.do_sample = False
        ids = np.asarray([prompt], dtype=np.int64)
        inputs = self._genai.TokenizedInputs(
            self._openvino.Tensor(ids), self._openvino.Tensor(np.ones_like(ids))
        )
        result = self._pipeline.generate(inputs, settings)
        measured = result.perf_metrics
        return Run(
            measured.get_ttft().mean / 1e3,
            measured.get_tpot().mean * passes / 1e3,
            passes,
            [int(i) for i in result.tokens[0]],
        )


RUNNERS: dict[str, Callable[[Path, int, int, bool], Runner]] = {
    "onnxruntime-genai": OrtRunner,
    "llama.cpp": LlamaRunner,
    "openvino": OpenVinoRunner,
}


def work(order: dict[str, Any]) -> None:
    """Load as ordered, say so, then answer every line on stdin with one run; JSON lines."""
    # Libraries print to stdout too: keep it for replies, send theirs to stderr.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    started = time.perf_counter()
    runner = RUNNERS[order["library"]](
        Path(order["model"]), order["threads"], order["capacity"], order["spin"]
    )
    ready = {"load_s": time.perf_counter() - started}
    print(json.dumps(ready), file=replies, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        run = runner.run(asked["prompt"], asked["passes"])
        print(json.dumps(asdict(run) | {"rss_mb": _peak_rss_mb()}), file=replies, flush=True)


def _peak_rss_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(match[1]) * 1024 / 1e6 if match else float("nan")


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
