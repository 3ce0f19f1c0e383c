"""Sizes of model folders, read from their headers without loading a model."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curt.artifact import ArtifactError
from curt.engines.onnx.graph import GENAI_CONFIG

SAFETENSORS_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
# They look rows up (an embedding, a rotary table) instead of reading the tensor through.
LOOKUPS = {"Gather", "GatherBlockQuantized", "RotaryEmbedding", "GroupQueryAttention"}


def folder_bytes(folder: Path) -> int:
    """Bytes of every file below a folder."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def fp32_bytes(folder: Path) -> int:
    """What the weights of an "hf" folder take at 32 bits each. ArtifactError without weights."""
    return sum(4 * count for _, count, _ in _safetensors(folder))


def weight_bytes_per_token(folder: Path) -> int:
    """Bytes of weights one decoded token has to read: all but tables only looked up in.

    An input embedding that serves as the output layer too is read through, so it counts.
    Raises ArtifactError where the folder holds no weights.
    """
    if (folder / GENAI_CONFIG).is_file():
        return _onnx_bytes_per_token(folder)
    tensors = list(_safetensors(folder))
    untied = any(name.endswith("lm_head.weight") for name, _, _ in tensors)
    return sum(
        math.ceil(count * bits / 8)
        for name, count, bits in tensors
        if not (untied and name.endswith("embed_tokens.weight"))
    )


def context_tokens(folder: Path) -> int:
    """The longest sequence a model folder takes, in tokens."""
    if (folder / GENAI_CONFIG).is_file():
        return int(_read_json(folder / GENAI_CONFIG)["model"]["context_length"])
    return int(_read_json(folder / "config.json")["max_position_embeddings"])


def _safetensors(folder: Path) -> Iterator[tuple[str, int, int]]:
    """(name, number of values, bits a value) of every tensor."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ArtifactError(f"{folder} holds no .safetensors file: give a model folder")
    for file in files:
        with open(file, "rb") as handle:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                if entry["dtype"] not in SAFETENSORS_BITS:
                    raise ArtifactError(f"{file} holds {entry['dtype']}, whose size is not known")
                yield name, math.prod(entry["shape"]), SAFETENSORS_BITS[entry["dtype"]]


def _onnx_bytes_per_token(folder: Path) -> int:
    import onnx

    name = _read_json(folder / GENAI_CONFIG)["model"]["decoder"]["filename"]
    graph = onnx.load(str(folder / name), load_external_data=False).graph
    readers: dict[str, set[str]] = defaultdict(set)
    for node in graph.node:
        for source in node.input:
            readers[source].add(node.op_type)
    return sum(
        math.ceil(math.prod(tensor.dims) * _onnx_bits(tensor.data_type) / 8)
        for tensor in graph.initializer
        if readers[tensor.name] - LOOKUPS
    )


def _onnx_bits(data_type: int) -> int:
    import onnx

    if data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return 4
    return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize) * 8


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
