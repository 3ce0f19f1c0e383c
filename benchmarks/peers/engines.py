"""The libraries that are run here, each in the way its own documentation shows.

All complete greedily until the model stops, and take and give token ids.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from curt.config import Config


class EngineConfig(Config):
    """What an engine loads, and what it may use."""

    model: Path
    """Model folder, or a GGUF file."""
    slots: int
    """Completions at once."""
    threads: int = 1
    """Of one engine."""
    context: int = 512
    """Tokens of a prompt and its completion, at most."""
    stops: bool = True
    """Whether the model may end its text; asked alone, all write as much as they are told."""


class PeerEngine(Protocol):
    """A loaded model."""

    def complete(self, prompt: list[int], max_tokens: int) -> list[int]:
        """A greedy completion without the stop token."""
        ...


class OnnxRuntimeGenai:
    """onnxruntime-genai's generator, one prompt after another."""

    def __init__(self, own: EngineConfig) -> None:
        import onnxruntime_genai as og

        self._og = og
        config = og.Config(str(own.model))
        options = {
            "intra_op_num_threads": own.threads,
            "session.intra_op.allow_spinning": "0",  # faster on shared cores
        }
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = og.Model(config)
        settings = json.loads((own.model / "genai_config.json").read_bytes())["model"]
        stops = settings["eos_token_id"]
        self._stops = set(stops if isinstance(stops, list) else [stops])

    def complete(self, prompt: list[int], max_tokens: int) -> list[int]:
        """A greedy completion without the stop token."""
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(max_length=len(prompt) + max_tokens, do_sample=False)
        generator = self._og.Generator(self._model, params)
        generator.append_tokens(np.asarray(prompt, dtype=np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        tokens = [int(token) for token in generator.get_sequence(0)[len(prompt) :]]
        return [token for token in tokens if token not in self._stops]


@dataclass(slots=True, eq=False)
class PromptRun:
    """One prompt on its way through an engine that runs many at once."""

    prompt: list[int]
    max_tokens: int
    written: list[int] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    handle: Any = None
    error: Exception | None = None


class Continuous:
    """Joins requests to those under way: a thread of its own steps them all, one token each.

    A subclass says how to begin a sequence and how to step; `step` returns those that ended.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._failure: Exception | None = None
        self._arriving: queue.SimpleQueue[PromptRun] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def begin(self, sequence: PromptRun) -> None:
        """Take a sequence in."""
        raise NotImplementedError

    def step(self) -> list[PromptRun]:
        """One forward pass over all that run; those that ended with it."""
        raise NotImplementedError

    def complete(self, prompt: list[int], max_tokens: int) -> list[int]:
        """A greedy completion without the stop token."""
        sequence = PromptRun(prompt, max_tokens)
        self._arriving.put(sequence)
        sequence.done.wait()
        if sequence.error is not None:
            raise sequence.error
        return sequence.written

    def _run(self) -> None:
        running: list[PromptRun] = []
        while True:
            while len(running) < self._slots and (not running or not self._arriving.empty()):
                sequence = self._arriving.get()  # waits only where there is nothing to step
                if self._failure is None:
                    self.begin(sequence)
                running.append(sequence)
            try:
                ended = running if self._failure else self.step()
            except Exception as error:  # whoever waits or comes later is told; the server says 500
                self._failure, ended = error, running
            running = [sequence for sequence in running if sequence not in ended]
            for sequence in ended:
                sequence.error = self._failure
                sequence.done.set()


class LlamaCpp(Continuous):
    """llama.cpp with parallel slots and continuous batching, what its own server does.

    Through the C interface, as the Python package's `Llama` class completes one at a time.
    """

    def __init__(self, own: EngineConfig) -> None:
        import llama_cpp

        self._library = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)  # must outlive the model
        llama_cpp.llama_log_set(self._quiet, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            os.fsencode(own.model), llama_cpp.llama_model_default_params()
        )
        self._stops = own.stops
        slots, context = own.slots, llama_cpp.llama_context_default_params()
        context.n_ctx = own.context * slots
        context.n_batch = context.n_ubatch = own.context * slots
        context.n_seq_max = slots
        context.n_threads = context.n_threads_batch = own.threads
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            raise RuntimeError(f"llama.cpp refuses {own.model}: is it a GGUF file?")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._stop = llama_cpp.llama_vocab_eos(vocabulary)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(own.context * slots, 0, 1)
        self._free = list(range(slots))
        self._running: list[PromptRun] = []
        super().__init__(slots)

    def begin(self, sequence: PromptRun) -> None:
        """Give the sequence a slot; its prompt is read with the next step."""
        sequence.handle = self._free.pop()
        self._running.append(sequence)

    def step(self) -> list[PromptRun]:
        """One decode of all slots, whole prompts of the new ones; those that ended with it."""
        batch, count, places = self._batch, 0, []
        for sequence in self._running:
            new = sequence.written[-1:] or sequence.prompt
            first = len(sequence.prompt) + len(sequence.written) - len(new)
            for offset, token in enumerate(new):
                batch.token[count] = token
                batch.pos[count] = first + offset
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = sequence.handle
                batch.logits[count] = offset == len(new) - 1
                count += 1
            places.append(count - 1)
        batch.n_tokens = count
        if status := self._library.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode failed with status {status}")
        ended = []
        for sequence, place in zip(list(self._running), places, strict=True):
            token = self._pick(place)
            stopped = self._stops and token == self._stop
            if not stopped:
                sequence.written.append(token)
            if stopped or len(sequence.written) == sequence.max_tokens:
                self._library.llama_memory_seq_rm(self._memory, sequence.handle, -1, -1)
                self._free.append(sequence.handle)
                self._running.remove(sequence)
                ended.append(sequence)
        return ended

    def _pick(self, place: int) -> int:
        pointer = self._library.llama_get_logits_ith(self._context, place)
        address = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
        return int(np.ctypeslib.as_array(address, (self._vocab_size,)).argmax())


class OpenVino:
    """OpenVINO GenAI's pipeline, one prompt after another; it never stops early."""

    def __init__(self, own: EngineConfig) -> None:
        import openvino
        import openvino_genai

        self._tensor, self._config = openvino.Tensor, openvino_genai.GenerationConfig
        # Its other backend keeps prompts, and the same one is asked again and again.
        options = {"INFERENCE_NUM_THREADS": own.threads, "ATTENTION_BACKEND": "SDPA"}
        self._pipeline = openvino_genai.LLMPipeline(str(own.model), "CPU", **options)

    def complete(self, prompt: list[int], max_tokens: int) -> list[int]:
        """A greedy completion."""
        asked = self._config(max_new_tokens=max_tokens, ignore_eos=True, do_sample=False)
        said = self._pipeline.generate(self._tensor(np.asarray([prompt], dtype=np.int64)), asked)
        return list(said.tokens[0])


class OwnGraph:
    """This project's graph driven bare, without grammar, guesses or a reused start."""

    def __init__(self, own: EngineConfig) -> None:
        from curt.engines.onnx.engine import split_prompt
        from curt.engines.onnx.graph import open_graph

        self._split = split_prompt
        self._graph = open_graph(own.model, own.threads, allow_spinning=own.threads > 1)

    def complete(self, prompt: list[int], max_tokens: int) -> list[int]:
        """A greedy completion; it never stops early."""
        sequence = self._graph.begin(len(prompt) + max_tokens)
        for chunk in self._split(prompt):
            sequence.feed(chunk, telling=1)
        written = [sequence.likeliest()]
        while len(written) < max_tokens:
            sequence.feed(written[-1:])
            written.append(sequence.likeliest())
        return written


ENGINES: dict[str, Callable[[EngineConfig], PeerEngine]] = {
    "onnxruntime-genai": OnnxRuntimeGenai,
    "llama.cpp": LlamaCpp,
    "openvino": OpenVino,
    "curt": OwnGraph,
}
