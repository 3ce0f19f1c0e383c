"""Quantised weights on their way into ONNX Runtime, and the check that they got there.

The model builder of onnxruntime-genai reads quantised checkpoints in the layout of AutoGPTQ:
`qweight` (K / 8, N) and `qzeros` (K / block, N / 8), eight four-bit values in an int32 with the
first one lowest, zero points less one, and `scales` (K / block, N).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from compress.onnx.gptq import BITS, QuantisedWeight

_PACKED = 32 // BITS  # values in an int32
_ATTENTION = {"self_attn.": "attn."}  # the builder's name for it


def write_gptq_checkpoint(
    model: Path, weights: Mapping[str, QuantisedWeight], folder: Path
) -> None:
    """Copy the model folder `model` to `folder` with `weights` in place of its own.

    Raises ValueError when a matrix has a number of rows that does not pack.
    """
    block_sizes = {weight.block_size for weight in weights.values()}
    if len(block_sizes) != 1:
        raise ValueError(f"block sizes {sorted(block_sizes)}: give weights of one block size")
    copy_settings(model, folder)
    shape = json.loads((model / "config.json").read_text(encoding="utf-8"))
    shape["quantization_config"] = {
        "quant_method": "gptq",
        "bits": BITS,
        "group_size": block_sizes.pop(),
        "desc_act": False,
        "sym": False,
        "lm_head": False,
    }
    (folder / "config.json").write_text(json.dumps(shape, indent=2), encoding="utf-8")
    tensors: dict[str, Tensor] = {}
    for name, tensor in _read_tensors(model):
        module = name.removesuffix(".weight")
        if module in weights:
            tensors |= {f"{module}.{part}": t for part, t in _pack(module, weights[module])}
        elif not (name == "lm_head.weight" and shape.get("tie_word_embeddings")):
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def copy_settings(model: Path, folder: Path) -> None:
    """Copy what a model folder holds beside its weights, manifest aside."""
    folder.mkdir(parents=True, exist_ok=True)
    left = {"manifest.json", "model.safetensors.index.json"}
    for file in model.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name not in left:
            shutil.copyfile(file, folder / file.name)


def check_graph_weights(graph: Path, weights: Mapping[str, QuantisedWeight]) -> None:
    """Compare every quantised matrix of an ONNX file with the weights it was made from.

    Raises ValueError when the graph lacks one, or holds other codes, zero points or scales.
    """
    loaded = onnx.load(str(graph))
    stored = {tensor.name: tensor for tensor in loaded.graph.initializer}
    seen: set[str] = set()
    for node in loaded.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        modules = _modules_of(node.name, weights)
        if not modules:
            continue  # the output layer, which the builder rounds by itself
        expected = [weights[module] for module in modules]
        arrays = [numpy_helper.to_array(stored[name]) for name in node.input[1:4]]
        codes = _unpack(arrays[0].reshape(arrays[0].shape[0], -1))
        scales = arrays[1].reshape(codes.shape[0], -1).astype(np.float32)
        zeros = _unpack(arrays[2].reshape(codes.shape[0], -1))[:, : scales.shape[1]]
        for what, got, wanted in (
            ("codes", codes, torch.cat([w.codes for w in expected])),
            ("scales", scales, torch.cat([w.scales for w in expected])),
            ("zero points", zeros, torch.cat([w.zero_points for w in expected])),
        ):
            if not np.array_equal(got, wanted.numpy()):
                raise ValueError(
                    f"{node.name} holds other {what} than calibration gave: this version of the "
                    "model builder rounds again; use --precision kquant"
                )
        seen.update(modules)
    if seen != set(weights):
        lacking = sorted(set(weights) - seen)
        raise ValueError(
            f"the exported graph lacks {lacking[0]} and {len(lacking) - 1} more of the calibrated "
            "matrices: use --precision kquant"
        )


def _modules_of(node: str, weights: Mapping[str, QuantisedWeight]) -> list[str]:
    """The torch modules a node computes: one, or query, key and value joined."""
    name = node.removesuffix("_Q4").strip("/").removesuffix("/MatMulNBits").replace("/", ".")
    for torch_name, graph_name in _ATTENTION.items():
        name = name.replace(f".{graph_name}", f".{torch_name}")
    if name.endswith("qkv_proj"):
        name = name.removesuffix("qkv_proj")
        return [f"{name}{part}_proj" for part in "qkv"]
    return [name] if name in weights else []


def _read_tensors(model: Path) -> Iterator[tuple[str, Tensor]]:
    files = sorted(model.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{model} has no .safetensors file: save the model in that format")
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (it is no mapping)
                yield name, opened.get_tensor(name)


def _pack(module: str, weight: QuantisedWeight) -> Iterator[tuple[str, Tensor]]:
    rows, columns = weight.codes.shape
    if rows % _PACKED or columns % _PACKED:
        raise ValueError(
            f"{module} is {rows} by {columns}: GPTQ needs multiples of {_PACKED}; use --precision "
            "kquant"
        )
    yield "qweight", _pack_rows(weight.codes).T.contiguous()
    yield "qzeros", _pack_rows((weight.zero_points.T.to(torch.int16) - 1) & 15)
    yield "scales", weight.scales.T.contiguous()
    yield "g_idx", torch.arange(columns, dtype=torch.int32) // weight.block_size


def _pack_rows(values: Tensor) -> Tensor:
    """(R, C) four-bit values to (R, C / 8) int32."""
    wide = values.to(torch.int64).reshape(values.shape[0], -1, _PACKED)
    packed = (wide << (torch.arange(_PACKED) * BITS)).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def _unpack(packed: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(R, C) bytes to (R, 2C) four-bit values, the low half first."""
    pairs = np.stack([packed & 15, packed >> 4], axis=-1)
    return pairs.reshape(packed.shape[0], -1)
