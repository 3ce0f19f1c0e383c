"""The libraries that the servers here run, each in the way its own documentation shows.

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
from typing import Any, Literal, Protocol

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
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of transformers' weights."""


class PeerEngine(Protocol):
    """A loaded model."""

    def complete(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """Greedy completions without the stop token."""
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
        self._stops = _as_set(settings["eos_token_id"])

    def complete(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """Greedy completions without the stop token."""
        return [self._complete(prompt, max_tokens) for prompt in prompts]

    def _complete(self, prompt: list[int], max_tokens: int) -> list[int]:
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(max_length=len(prompt) + max_tokens, do_sample=False)
        generator = self._og.Generator(self._model, params)
        generator.append_tokens(np.asarray(prompt, dtype=np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        tokens = [int(token) for token in generator.get_sequence(0)[len(prompt) :]]
        return [token for token in tokens if token not in self._stops]


class Transformers:
    """transformers' `generate`, all prompts in one batch padded on the left."""

    def __init__(self, own: EngineConfig) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(own.threads)
        self._torch = torch
        loader: Any = AutoModelForCausalLM
        self._model = loader.from_pretrained(own.model, dtype=getattr(torch, own.dtype))
        self._model.eval()
        self._stops = _as_set(self._model.generation_config.eos_token_id)

    def complete(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """Greedy completions without the stop token."""
        torch = self._torch
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            whole = self._model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=max_tokens,
                pad_token_id=0,
            )
        return [_until_stop(row[longest:].tolist(), self._stops) for row in whole]


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

    def complete(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """Greedy completions without the stop token."""
        sequences = [PromptRun(prompt, max_tokens) for prompt in prompts]
        for sequence in sequences:
            self._arriving.put(sequence)
        for sequence in sequences:
            sequence.done.wait()
            if sequence.error is not None:
                raise sequence.error
        return [sequence.written for sequence in sequences]

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


class OpenVino(Continuous):
    """OpenVINO GenAI's own continuous batching."""

    def __init__(self, own: EngineConfig) -> None:
        import openvino
        import openvino_genai

        self._openvino, self._genai = openvino, openvino_genai
        settings = openvino_genai.GenerationConfig()
        told = json.loads((own.model / "generation_config.json").read_bytes())
        settings.stop_token_ids = _as_set(told["eos_token_id"])
        settings.do_sample = False
        self._settings = settings
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 1  # GiB
        scheduler.max_num_seqs = own.slots
        scheduler.enable_prefix_caching = True  # the system message is the same in all
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(own.model), scheduler, "CPU", {"INFERENCE_NUM_THREADS": own.threads}
        )
        self._running: list[PromptRun] = []
        self._count = 0
        super().__init__(own.slots)

    def begin(self, sequence: PromptRun) -> None:
        """Hand the sequence to the pipeline."""
        self._count += 1
        self._settings.max_new_tokens = sequence.max_tokens  # the pipeline takes a copy
        sequence.handle = self._pipeline.add_request(
            self._count,
            self._openvino.Tensor(np.asarray([sequence.prompt], dtype=np.int64)),
            self._settings,
        )
        self._running.append(sequence)

    def step(self) -> list[PromptRun]:
        """One step of the pipeline; those that ended with it."""
        self._pipeline.step()
        running = self._genai.GenerationStatus.RUNNING
        ended = [s for s in self._running if s.handle.get_status() != running]
        for sequence in ended:
            self._running.remove(sequence)
            sequence.written = [int(token) for token in sequence.handle.read_all()[0].generated_ids]
        return ended


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
        slots, context = own.slots, llama_cpp.llama_context_default_params()
        context.n_ctx = 512 * slots
        context.n_batch = context.n_ubatch = 512 * slots
        context.n_seq_max = slots
        context.n_threads = context.n_threads_batch = own.threads
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            raise RuntimeError(f"llama.cpp refuses {own.model}: is it a GGUF file?")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._stop = llama_cpp.llama_vocab_eos(vocabulary)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(512 * slots, 0, 1)
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
            if token != self._stop:
                sequence.written.append(token)
            if token == self._stop or len(sequence.written) == sequence.max_tokens:
                self._library.llama_memory_seq_rm(self._memory, sequence.handle, -1, -1)
                self._free.append(sequence.handle)
                self._running.remove(sequence)
                ended.append(sequence)
        return ended

    def _pick(self, place: int) -> int:
        pointer = self._library.llama_get_logits_ith(self._context, place)
        address = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
        return int(np.ctypeslib.as_array(address, (self._vocab_size,)).argmax())


def _as_set(stops: int | list[int]) -> set[int]:
    return set(stops if isinstance(stops, list) else [stops])


def _until_stop(tokens: list[int], stops: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]


ENGINES: dict[str, Callable[[EngineConfig], PeerEngine]] = {
    "onnxruntime-genai": OnnxRuntimeGenai,
    "transformers": Transformers,
    "openvino": OpenVino,
    "llama.cpp": LlamaCpp,
}
