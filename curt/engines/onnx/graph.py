"""An exported graph on plain onnxruntime, which writes its key-value cache in place.

What onnxruntime-genai does around a pass costs a tiny model a tenth of its time: an append copies
its tokens, an output is wrapped anew each time it is asked for, and going back is a call of its
own. Here every input and output lies in an array that exists already. The graph reads how many
tokens it holds from the sum of its attention mask, so that going back is a matter of the mask. A
pass releases the interpreter lock.

Graphs for other devices, and those that want more inputs than a mask and their tokens, stay with
onnxruntime-genai (`curt.engines.onnx.sequence`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

PICKS = "picks"
"""Output of a graph, (1, tokens): the likeliest token after each of the last tokens fed."""

PICKS_WINDOW = 16
"""How many of the last tokens fed have their pick, unless the graph is told otherwise."""

PICKS_START = "picks/start"
"""Optional input of a graph, (1,): minus the number of last tokens whose pick is wanted."""

GENAI_CONFIG = "genai_config.json"
_LOG_ERRORS = 3

_Named = tuple[str, npt.NDArray[Any]]


class OrtGraph:
    """A CPU export of a model in an `onnxruntime.InferenceSession`."""

    def __init__(self, settings: dict[str, Any], session: Any) -> None:
        """`settings` are a folder's genai settings, `session` its graph; see `open_graph`."""
        decoder = settings["model"]["decoder"]
        self.session = session
        layers = range(decoder["num_hidden_layers"])
        names, outputs = decoder["inputs"], decoder["outputs"]
        self.ids_name: str = names["input_ids"]
        self.mask_name: str = names["attention_mask"]
        self.logits_name: str = outputs["logits"]
        self.cache_names = [
            (names[f"past_{part}_names"] % layer, outputs[f"present_{part}_names"] % layer)
            for layer in layers
            for part in ("key", "value")
        ]
        self.cache_shape = (decoder["num_key_value_heads"], decoder["head_size"])
        self.vocabulary: int = settings["model"]["vocab_size"]
        self.has_picks = any(output.name == PICKS for output in self.session.get_outputs())
        optional = self.session.get_overridable_initializers()
        self.has_start = any(value.name == PICKS_START for value in optional)

    def begin(self, capacity_tokens: int) -> GraphSequence:
        """An empty sequence with room for this many tokens."""
        return GraphSequence(self, capacity_tokens)

    def is_plain(self) -> bool:
        """Whether it asks for tokens, their mask and a 32-bit cache alone, and gives the last
        position's logits alone."""
        expected = {self.ids_name: "tensor(int64)", self.mask_name: "tensor(int64)"}
        expected |= {past: "tensor(float)" for past, _ in self.cache_names}
        taken = {value.name: value.type for value in self.session.get_inputs()}
        given = {value.name: value for value in self.session.get_outputs()}[self.logits_name]
        return taken == expected and given.type == "tensor(float)" and given.shape[1] == 1


class GraphSequence:
    """Tokens fed to a graph, and what the model picks after the last few of them."""

    def __init__(self, graph: OrtGraph, capacity_tokens: int) -> None:
        """An empty sequence with room for this many tokens."""
        self._graph = graph
        heads, width = graph.cache_shape
        shape = (1, heads, capacity_tokens, width)
        self._cache = [
            (past, present, np.zeros(shape, np.float32)) for past, present in graph.cache_names
        ]
        self._mask = np.zeros((1, capacity_tokens), np.int64)
        self._logits = np.zeros((1, 1, graph.vocabulary), np.float32)
        self._passes: dict[tuple[int, int], _Pass] = {}
        self._picks: npt.NDArray[np.int64] | None = None
        self._fed: Sequence[int] = ()
        self.held_tokens = 0
        self.passes = 0
        self.has_picks = graph.has_picks

    def feed(self, ids: Sequence[int], telling: int = PICKS_WINDOW) -> None:
        """Run the model over some more tokens, in one pass.

        Only the last `telling` of them need a pick. The caller keeps within the capacity.
        """
        count = len(ids)
        told = min(count, telling if self._graph.has_start else PICKS_WINDOW)
        prepared = self._passes.get((count, told))
        if prepared is None:
            prepared = self._passes[count, told] = self._prepare(count, told)
        prepared.ids[:] = ids
        end = self.held_tokens + count
        self._mask[0, self.held_tokens : end] = 1
        self.held_tokens = end
        self._graph.session.run_with_iobinding(prepared.binding)
        self._fed, self._picks = ids, prepared.picks
        self.passes += 1

    def drop(self, count: int) -> None:
        """Forget the last `count` tokens; the next thing to do is to feed others."""
        if count:
            self.rewind_to(self.held_tokens - count)

    def rewind_to(self, tokens: int) -> None:
        """Hold the first `tokens` tokens only; the next thing to do is to feed others."""
        self._mask[0, tokens : self.held_tokens] = 0
        self.held_tokens = tokens

    def pick(self, behind: int = 0) -> int:
        """The likeliest token after the last one fed, or after the one `behind` tokens earlier.

        Before the last only where the graph tells its picks, and only within the last feed.
        """
        if not self.has_picks:
            assert behind == 0, "this graph tells the last position's logits only"
            return int(self._logits.argmax())
        assert self._picks is not None, "a pick follows a token"
        return int(self._picks[-1 - behind])

    def logits(self, behind: int = 0) -> npt.NDArray[np.float32]:
        """A copy of the logits there, (vocab,); drops the tokens behind that place."""
        if behind:
            last = self._fed[-behind - 1]  # a pick is asked for within the last feed only
            self.drop(behind + 1)
            self.feed([last])
        return np.array(self._logits[0, 0])

    def _prepare(self, count: int, told: int) -> _Pass:
        graph = self._graph
        ids, picks = np.zeros((1, count), np.int64), np.zeros((1, told), np.int64)
        binding = graph.session.io_binding()
        inputs: list[_Named] = [(graph.ids_name, ids), (graph.mask_name, self._mask)]
        outputs: list[_Named] = [(graph.logits_name, self._logits)]
        if graph.has_picks:
            outputs.append((PICKS, picks))
        start = np.array([-told], np.int64)
        if graph.has_start:
            inputs.append((PICKS_START, start))
        for past, present, values in self._cache:  # one array for both: written in place
            inputs.append((past, values))
            outputs.append((present, values))
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, array in arrays:
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return _Pass(binding, ids[0], picks[0], start)


class _Pass(NamedTuple):
    """A pass over so many tokens, bound to its arrays; the arrays must live as long."""

    binding: Any
    ids: npt.NDArray[np.int64]
    picks: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]


def open_graph(folder: Path, threads: int, allow_spinning: bool) -> OrtGraph | None:
    """Load a folder's graph with this many intra-op threads.

    None where it is not one for the CPU that writes its cache in place: onnxruntime-genai, which
    knows more kinds of graph, has to run it.
    """
    settings = json.loads((folder / GENAI_CONFIG).read_text(encoding="utf-8"))
    if not writes_in_place(settings):
        return None
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS
    spinning = "1" if allow_spinning else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    session: Any = ort.InferenceSession(
        folder / settings["model"]["decoder"]["filename"],
        options,
        providers=["CPUExecutionProvider"],
    )
    graph = OrtGraph(settings, session)
    return graph if graph.is_plain() else None


def writes_in_place(settings: dict[str, Any]) -> bool:
    """Whether these genai settings are of a graph for the CPU whose cache is one fixed buffer."""
    decoder = settings["model"]["decoder"]
    return (
        not decoder.get("session_options", {}).get("provider_options")
        and settings.get("search", {}).get("past_present_share_buffer") is True
        and "sliding_window" not in decoder
        and set(decoder.get("inputs", {}))
        == {"input_ids", "attention_mask", "past_key_names", "past_value_names"}
    )
