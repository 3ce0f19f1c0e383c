"""An exported graph on plain onnxruntime, which writes its key-value cache in place.

What onnxruntime-genai does around a pass costs a tiny model a tenth of its time: an append copies
its tokens, an output is wrapped anew each time it is asked for, and going back is a call of its
own. Here every input and output lies in an array that exists already. The graph reads how many
tokens it holds from the sum of its attention mask, so that going back is a matter of the mask. A
pass releases the interpreter lock.

A graph exported for CUDA runs on `onnxruntime-gpu`: its cache stays on the device, while tokens go
there and the last logits come back with every pass.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from curt.artifact import ArtifactError

LIKELIEST = "picks"
"""Output of a graph, (1, tokens): the likeliest token after each of the last tokens fed."""

LIKELIEST_WINDOW = 16
"""After how many of the last tokens fed that is told, unless the graph is told otherwise."""

LIKELIEST_START = "picks/start"
"""Optional input of a graph, (1,): minus the number of last tokens it is wanted after."""

GENAI_CONFIG = "genai_config.json"
PROVIDERS = {"cuda": ("CUDAExecutionProvider", "onnxruntime-gpu")}
"""Execution provider, and the package that holds it, by the name a genai config has for it."""

_LOG_ERRORS = 3
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
_REMEDY = "export it again with compress.onnx.export"

_Named = tuple[str, npt.NDArray[Any]]


class OrtGraph:
    """An export of a model in an `onnxruntime.InferenceSession`."""

    def __init__(self, settings: dict[str, Any], session: Any, device: str = "cpu") -> None:
        """`settings` are a folder's genai settings, `session` its graph on `device`.

        Raises ArtifactError where the graph asks for more than tokens, their mask and the cache, or
        in a number format that numpy has not.
        """
        decoder = settings["model"]["decoder"]
        self.session, self.device = session, device
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
        taken = {value.name: value.type for value in session.get_inputs()}
        given = {value.name: value for value in session.get_outputs()}
        known = {self.ids_name, self.mask_name, *(past for past, _ in self.cache_names)}
        logits = given[self.logits_name]
        unknown = sorted(set(taken) ^ known)
        strange = sorted({*taken.values(), logits.type} - set(_TYPES))
        if unknown or strange:
            raise ArtifactError(
                f"a graph of other inputs ({', '.join(unknown + strange)}) than tokens, their mask "
                f"and the keys and values of each layer: {_REMEDY}"
            )
        self.types = {name: _TYPES[kind] for name, kind in taken.items()}
        self.logits_type = _TYPES[logits.type]
        self.tells_last_logits_only = logits.shape[1] == 1
        self.tells_likeliest = LIKELIEST in given
        optional = session.get_overridable_initializers()
        self.has_start = any(value.name == LIKELIEST_START for value in optional)

    def begin(self, capacity_tokens: int) -> TokenSequence:
        """An empty sequence with room for this many tokens."""
        return TokenSequence(self, capacity_tokens)


class TokenSequence:
    """Tokens fed to a graph, and what the model would write after the last few of them."""

    def __init__(self, graph: OrtGraph, capacity_tokens: int) -> None:
        """An empty sequence with room for this many tokens."""
        import onnxruntime as ort

        self._graph = graph
        heads, width = graph.cache_shape
        shape = (1, heads, capacity_tokens, width)
        self._cache = [
            (
                past,
                present,
                ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, graph.types[past]), graph.device),
            )
            for past, present in graph.cache_names
        ]
        self._mask = np.zeros((1, capacity_tokens), graph.types[graph.mask_name])
        self._last_logits = np.zeros((1, 1, graph.vocabulary), graph.logits_type)
        self._passes: dict[tuple[int, int], _Pass] = {}
        self._last: _Pass | None = None
        self._fed: Sequence[int] = ()
        self.held_tokens = 0
        self.passes = 0

    def feed(self, ids: Sequence[int], telling: int = LIKELIEST_WINDOW) -> None:
        """Run the model over some more tokens, in one pass.

        Only after the last `telling` of them is the likeliest token wanted. The caller keeps within
        the capacity.
        """
        count = len(ids)
        told = min(count, telling if self._graph.has_start else LIKELIEST_WINDOW)
        prepared = self._passes.get((count, told))
        if prepared is None:
            prepared = self._passes[count, told] = self._prepare(count, told)
        prepared.ids[0, :] = ids
        end = self.held_tokens + count
        self._mask[0, self.held_tokens : end] = 1
        self.held_tokens = end
        if self._graph.device != "cpu":  # binding is what copies an input to the device
            prepared.binding.bind_cpu_input(self._graph.ids_name, prepared.ids)
            prepared.binding.bind_cpu_input(self._graph.mask_name, self._mask[:, :end])
        self._graph.session.run_with_iobinding(prepared.binding)
        if self._graph.device != "cpu":
            prepared.binding.synchronize_outputs()
        self._fed, self._last = ids, prepared
        self.passes += 1

    def drop(self, count: int) -> None:
        """Forget the last `count` tokens; the next thing to do is to feed others."""
        if count:
            self.rewind_to(self.held_tokens - count)

    def rewind_to(self, tokens: int) -> None:
        """Hold the first `tokens` tokens only; the next thing to do is to feed others."""
        self._mask[0, tokens : self.held_tokens] = 0
        self.held_tokens = tokens

    def likeliest(self, behind: int = 0) -> int:
        """The likeliest token after the last one fed, or after the one `behind` tokens earlier.

        Before the last only where the graph tells it, and only within the last feed.
        """
        assert self._last is not None, "a token is likely after another"
        if not self._graph.tells_likeliest:
            assert behind == 0, "this graph tells the last position's logits only"
            return int(self._last.logits[0, -1].argmax())
        return int(self._last.likeliest[0, -1 - behind])

    def logits(self, behind: int = 0) -> npt.NDArray[np.float32]:
        """A copy of the logits there, (vocab,); drops the tokens behind that place."""
        if behind:
            last = self._fed[-behind - 1]  # asked for within the last feed only
            self.drop(behind + 1)
            self.feed([last])
        assert self._last is not None, "logits follow a token"
        return np.array(self._last.logits[0, -1], np.float32)

    def _prepare(self, count: int, told: int) -> _Pass:
        graph = self._graph
        ids = np.zeros((1, count), graph.types[graph.ids_name])
        likeliest = np.zeros((1, told), np.int64)
        logits = self._last_logits
        if not graph.tells_last_logits_only:
            logits = np.zeros((1, count, graph.vocabulary), graph.logits_type)
        start = np.array([-told], np.int64)
        binding = graph.session.io_binding()
        inputs: list[_Named] = []
        outputs: list[_Named] = [(graph.logits_name, logits)]
        if graph.device == "cpu":  # read where they lie, with whatever they hold by then
            inputs = [(graph.ids_name, ids), (graph.mask_name, self._mask)]
        if graph.tells_likeliest:
            outputs.append((LIKELIEST, likeliest))
        if graph.has_start:
            inputs.append((LIKELIEST_START, start))
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, array in arrays:
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for past, present, values in self._cache:  # one for both: written in place
            binding.bind_ortvalue_input(past, values)
            binding.bind_ortvalue_output(present, values)
        return _Pass(binding, ids, likeliest, logits, start)


class _Pass(NamedTuple):
    """A pass over so many tokens, bound to its arrays; the arrays must live as long."""

    binding: Any
    ids: npt.NDArray[Any]
    likeliest: npt.NDArray[np.int64]
    logits: npt.NDArray[Any]
    start: npt.NDArray[np.int64]


def open_graph(folder: Path, threads: int, allow_spinning: bool) -> OrtGraph:
    """Load a folder's graph with this many intra-op threads, on the device it was exported for.

    Raises ArtifactError where this machine's onnxruntime has no provider for that device, and for a
    graph whose cache is not one fixed buffer.
    """
    import onnxruntime as ort

    settings = read_settings(folder)
    device, providers = choose_providers(settings, ort.get_available_providers())
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS
    spinning = "1" if allow_spinning else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    session: Any = ort.InferenceSession(
        folder / settings["model"]["decoder"]["filename"], options, providers=providers
    )
    if session.get_providers()[0] != providers[0][0]:  # onnxruntime falls back without a word
        raise ArtifactError(
            f"{folder}: {providers[0][0]} could not be started: look for its libraries and the "
            "driver, or export with --device cpu"
        )
    return OrtGraph(settings, session, device)


def read_settings(folder: Path) -> dict[str, Any]:
    """A folder's genai settings. Raises ArtifactError where its cache is not one fixed buffer."""
    file = folder / GENAI_CONFIG
    if not file.is_file():
        raise ArtifactError(f"{folder} has no {GENAI_CONFIG}: {_REMEDY}")
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    shared = settings.get("search", {}).get("past_present_share_buffer") is True
    if not shared or "sliding_window" in settings["model"]["decoder"]:
        raise ArtifactError(
            f"{folder}: a graph whose keys and values are not one fixed buffer; {_REMEDY}, for "
            "CUDA in fp16, int8 or int4"
        )
    return settings


def choose_providers(
    settings: dict[str, Any], available: Sequence[str]
) -> tuple[str, list[tuple[str, dict[str, str]]]]:
    """The device a graph was exported for, and the execution providers with their options.

    Raises ArtifactError where that is none of `available`.
    """
    wanted = settings["model"]["decoder"].get("session_options", {}).get("provider_options", [])
    if not wanted:
        return "cpu", [("CPUExecutionProvider", {})]
    [(device, options)] = wanted[0].items()
    provider, package = PROVIDERS.get(device, (None, None))
    if provider is None:
        raise ArtifactError(f"a graph for {device}: export it with --device cpu or cuda")
    if provider not in available:
        raise ArtifactError(
            f"a graph for {device}, but this onnxruntime has {', '.join(available)}: install "
            f"{package} in place of onnxruntime, or export with --device cpu"
        )
    return device, [(provider, dict(options)), ("CPUExecutionProvider", {})]
