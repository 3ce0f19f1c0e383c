"""Rows of different lengths decoded together, on plain onnxruntime without its GenAI layer.

The exported graph reads each row's length from the sum of its attention mask, so that rows need
no padding to one length: every row has its own place in a cache that the graph writes in place,
is prefilled alone and decoded together with whichever others are under way. This is what
continuous batching on this model format would be; the library's own generator can't do it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.batching_turn import Logits, Rows, Turn
from curt.engines.onnxruntime_genai import GENAI_CONFIG


class RowCache:
    """The model, and a key-value cache of `rows` rows of `tokens` places it writes in place."""

    def __init__(self, folder: Path, rows: int, tokens: int, threads: int, spin: bool) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        model = json.loads((folder / GENAI_CONFIG).read_text(encoding="utf-8"))["model"]
        decoder = model["decoder"]
        self._session = ort.InferenceSession(
            str(folder / decoder["filename"]), options, providers=["CPUExecutionProvider"]
        )
        shape = (rows, decoder["num_key_value_heads"], tokens, decoder["head_size"])
        names = [i.name for i in self._session.get_inputs() if i.name.startswith("past_key_values")]
        self._cache = {name: np.zeros(shape, np.float32) for name in names}
        self._logits: Logits = np.zeros((rows, 1, model["vocab_size"]), np.float32)
        self._mask = np.zeros((rows, tokens), np.int64)
        self._lengths = [0] * rows
        self._steps: dict[int, tuple[Any, NDArray[np.int64]]] = {}

    def prefill(self, row: int, ids: list[int], kept: int = 0) -> Logits:
        """Read a prompt into a row; its first `kept` tokens are copied from the last row."""
        if kept:
            for values in self._cache.values():
                values[row, :, :kept] = values[-1, :, :kept]
        tail = np.asarray([ids[kept:]], np.int64)
        self._lengths[row] = len(ids)
        self._mask[row] = np.arange(self._mask.shape[1]) < len(ids)
        self._session.run_with_iobinding(self._bind(row, tail))
        logits: Logits = self._logits[row, 0]
        return logits

    def step(self, tokens: list[int]) -> Logits:
        """Read one more token in each of the first rows; their logits, (rows, vocabulary)."""
        rows = len(tokens)
        if rows not in self._steps:
            ids = np.zeros((rows, 1), np.int64)
            self._steps[rows] = self._bind(0, ids), ids
        binding, ids = self._steps[rows]
        ids[:, 0] = tokens
        for row in range(rows):
            self._mask[row, self._lengths[row]] = 1
            self._lengths[row] += 1
        self._session.run_with_iobinding(binding)
        return self._logits[:rows, 0]

    def move(self, source: int, target: int) -> None:
        """Copy a row over another."""
        length = self._lengths[source]
        for values in self._cache.values():
            values[target, :, :length] = values[source, :, :length]
        self._mask[target] = self._mask[source]
        self._lengths[target] = length

    def _bind(self, first: int, ids: NDArray[np.int64]) -> Any:
        rows = slice(first, first + len(ids))
        binding = self._session.io_binding()
        inputs = {"input_ids": ids, "attention_mask": self._mask[rows]}
        outputs = {"logits": self._logits[rows]}
        for name, values in self._cache.items():
            inputs[name] = values[rows]
            outputs[name.replace("past_key_values", "present")] = values[rows]
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, array in arrays.items():
                assert array.flags.c_contiguous, "the graph writes to where it is told"
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return binding


class RowsDecoder:
    """Takes a request whenever a row is free; all rows under way share every step."""

    def __init__(
        self, folder: Path, batch: int, tokens: int, prefix: list[int], threads: int, spin: bool
    ) -> None:
        """`tokens` is the longest prompt with its completion, `prefix` what all prompts share."""
        self._rows = Rows(batch)
        self._cache = RowCache(folder, batch + 1, tokens, threads, spin)  # the last: the prefix
        self._prefix = prefix
        self._cache.prefill(batch, prefix)
        self._next: dict[int, int] = {}  # by job: the token to read
        self._finished: list[Turn] = []

    @property
    def room(self) -> int:
        """How many more requests it can take now."""
        return self._rows.capacity - len(self._rows.turns)

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self._rows.turns or self._finished)

    def admit(self, turns: list[Turn]) -> None:
        """Prefill some requests, one after another."""
        for turn in turns:
            row = self._rows.add(turn)
            held = len(self._prefix)
            kept = held if turn.prompt[:held] == self._prefix and len(turn.prompt) > held else 0
            self._pick(turn, self._cache.prefill(row, turn.prompt, kept))
        self._sweep()

    def step(self) -> list[Turn]:
        """One token for every row; the requests that are over."""
        turns = self._rows.turns
        if turns:
            logits = self._cache.step([self._next[turn.job] for turn in turns])
            for turn, row in zip(turns, logits, strict=True):
                self._pick(turn, row)
            self._sweep()
        finished, self._finished = self._finished, []
        return finished

    def _pick(self, turn: Turn, logits: Logits) -> None:
        token = turn.take(logits)
        if token is not None:
            self._next[turn.job] = token

    def _sweep(self) -> None:
        over, moves = self._rows.remove_finished()
        for source, target in moves:
            self._cache.move(source, target)
        for turn in over:
            self._next.pop(turn.job, None)
        self._finished += over
