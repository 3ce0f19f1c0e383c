"""The model builder of onnxruntime-genai: what it may be asked, its run, what it must give."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from compress.onnx.w8a8 import INTEGER_PRODUCT, quantise_activations

log = logging.getLogger(__name__)

Precision = Literal["int4", "int8", "w8a8", "fp16", "fp32"]
Device = Literal["cpu", "cuda"]

# What this project prunes, distils and serves; the builder knows more, which nobody tried here.
ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
# On the disk at most, while the export is made: w8a8 comes from a graph in fp32.
_BITS = {"int4": 4, "int8": 8, "w8a8": 32, "fp16": 16, "fp32": 32}
_FULL = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to make of a model folder.

    `algorithm` is the builder's `algo_config`; `fused` lets attention normalise queries and keys
    by itself, which only CUDA kernels can. Of a model that is `calibrated` already, only the output
    layer is left to round.
    """

    precision: Precision
    device: Device
    block_size: int
    algorithm: str
    accuracy_level: int
    symmetric: bool
    fused: bool = True
    calibrated: bool = False


def check_model(model: Path, recipe: Recipe) -> None:
    """Refuse what the builder would fail at or, worse, silently get wrong.

    Raises ValueError for an architecture or a combination of precision and device that it can't
    export, and for widths the blocks do not divide: it would pad the last block.
    """
    if recipe.precision == "fp16" and recipe.device == "cpu":
        raise ValueError(
            "fp16 on cpu: ONNX Runtime's CPU attention has no float16 kernel, and the graph built "
            "instead fails at the first decoded token; use fp32 or int8, or --device cuda"
        )
    if recipe.precision == "w8a8" and recipe.device != "cpu":
        raise ValueError(
            f"w8a8 on {recipe.device}: ONNX Runtime has these integer products for the CPU only; "
            "use int8 or int4, or export to TensorRT-LLM in fp8"
        )
    shape = json.loads((model / "config.json").read_text(encoding="utf-8"))
    names = shape.get("architectures") or ["none"]
    if names[0] not in ARCHITECTURES:
        raise ValueError(
            f"architecture {names[0]} in {model / 'config.json'} is not supported: use one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    if recipe.precision not in ("int4", "int8"):
        return
    heads = shape["num_attention_heads"]
    widths = {
        "hidden_size": shape["hidden_size"],
        "intermediate_size": shape["intermediate_size"],
        "attention width": heads * (shape.get("head_dim") or shape["hidden_size"] // heads),
    }
    for name, width in widths.items():
        if width % recipe.block_size:
            largest = max((b for b in (16, 32, 64, 128) if width % b == 0), default=None)
            remedy = f"use {largest}" if largest else "use fp32"
            raise ValueError(
                f"{name} {width} is no multiple of block_size {recipe.block_size}: {remedy}"
            )
    if recipe.calibrated:
        widths = {} if recipe.algorithm.endswith("_last") else {"hidden_size": shape["hidden_size"]}
    # Zero points of four bits are packed in pairs, across the end of a row (onnxruntime 1.31).
    if recipe.precision == "int4" and (
        recipe.algorithm.startswith("k_quant")
        or (recipe.algorithm.startswith("rtn") and not recipe.symmetric)
    ):
        for name, width in widths.items():
            if width // recipe.block_size % 2:
                smaller = recipe.block_size // 2
                remedy = f"block_size {smaller}" if smaller >= 16 else "precision int8"
                raise ValueError(
                    f"{name} {width} makes {width // recipe.block_size} blocks of "
                    f"{recipe.block_size}, an odd number, whose zero points the exporter can't "
                    f"pack: use {remedy} or algorithm gptq_last"
                )


def check_room(model: Path, folder: Path, recipe: Recipe) -> None:
    """Raise OSError when the disk of `folder` has clearly less room than the export takes."""
    files = list(model.glob("*.safetensors"))
    stored = json.loads((model / "config.json").read_text(encoding="utf-8")).get("dtype")
    stored_bits = 32 if stored == "float32" else 16
    needed = sum(f.stat().st_size for f in files) * _BITS[recipe.precision] / stored_bits
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{recipe.precision} needs about {math.ceil(needed / 1e6)} MB and {there} has "
            f"{free // 10**6} MB free: make room or name another folder with --out",
        )


def build_graph(model: Path, folder: Path, recipe: Recipe) -> None:
    """Write `model.onnx`, its weights, `genai_config.json` and the tokenizer into `folder`.

    The builder runs in a process of its own: it prints and imports into the top level. Raises
    OSError when the disk is full and RuntimeError when the builder fails otherwise.
    """
    # The last position's logits are all an engine reads; the rest cost a seventh of a demo prefill.
    options = ["hf_token=false", "prune_lm_head=true"]
    if not recipe.fused:
        options.append("fuse_qk_norm_gqa=false")
    if recipe.precision in ("int4", "int8"):
        options += [
            f"block_size={recipe.block_size}",
            f"accuracy_level={recipe.accuracy_level}",
            f"algo_config={recipe.algorithm if recipe.precision == 'int4' else 'default'}",
            f"is_symmetric={str(recipe.symmetric).lower()}",
        ]
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", str(model), "-o", str(folder), "-c", cache]
        built = "fp32" if recipe.precision == "w8a8" else recipe.precision
        command += ["-p", built, "-e", recipe.device, "--extra_options", *options]
        done = subprocess.run(
            command,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    log.debug("%s", done.stdout)
    if not done.returncode:
        if recipe.precision == "w8a8":
            quantise_activations(folder / "model.onnx")
        return
    for code, text in _FULL.items():
        if text in done.stdout:
            raise OSError(
                code,
                f"{text} while the model builder wrote {recipe.precision} to {folder}: make room "
                "or name another folder with --out",
            )
    tail = "\n".join(done.stdout.splitlines()[-15:])
    raise RuntimeError(f"the model builder failed with status {done.returncode}:\n{tail}")


def check_graph(folder: Path, recipe: Recipe) -> dict[str, float]:
    """Check an export without running it; returns counts of its parts.

    `graph_bits_per_weight` counts scales and zero points too; float16 has 16.

    The graph is well-formed, its provider, weights and logits are of the kinds asked for, and no
    weight or scale left the range of its type. Raises ValueError otherwise.
    """
    settings = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    decoder = settings["model"]["decoder"]
    file = folder / decoder["filename"]
    graph = onnx.load(str(file)).graph
    # onnx.checker does not know the runtime's operators in the standard domain
    known = {value.name for value in (*graph.input, *graph.initializer)} | {""}
    for node in graph.node:
        if lacking := sorted(set(node.input) - known):
            raise ValueError(f"{node.name} reads {lacking[0]}, which nothing before it writes")
        known.update(node.output)
    providers = [name for entry in decoder["session_options"]["provider_options"] for name in entry]
    wanted = [] if recipe.device == "cpu" else [recipe.device]
    if providers != wanted:
        raise ValueError(f"the export is for providers {providers}, not {wanted}: export it again")

    half = recipe.device == "cuda" and recipe.precision != "fp32"
    float_type = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    outputs = {o.name: o.type.tensor_type.elem_type for o in graph.output}
    if outputs.get(decoder["outputs"]["logits"]) != float_type:
        raise ValueError(f"the logits are not {TensorProto.DataType.Name(float_type)}")

    nodes = [node.op_type for node in graph.node]
    quantised = [node for node in graph.node if node.op_type == "MatMulNBits"]
    wants_blocks = recipe.precision in ("int4", "int8")
    integer = nodes.count(INTEGER_PRODUCT)
    constants = {tensor.name for tensor in graph.initializer}
    floats = [n for n in graph.node if n.op_type == "MatMul" and set(n.input) & constants]
    wants_integer = recipe.precision == "w8a8"
    if (
        wants_blocks is not bool(quantised)
        or wants_integer is not bool(integer)
        or ((wants_blocks or wants_integer) and floats)
    ):
        raise ValueError(
            f"{len(quantised) + integer} quantised and {len(floats)} other matrices in a graph of "
            f"{recipe.precision}: the model builder made another kind or left some out"
        )
    for node in quantised:
        attributes = {a.name: a.i for a in node.attribute}
        if attributes["block_size"] != recipe.block_size:
            raise ValueError(
                f"{node.name} has blocks of {attributes['block_size']}, not {recipe.block_size}"
            )
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype in (np.float16, np.float32) and not np.isfinite(array).all():
            raise ValueError(
                f"{tensor.name} left the range of {array.dtype}: export in fp32, or with a larger "
                "type"
            )
    row = {
        "graph_nodes": float(len(nodes)),
        "graph_quantised_matrices": float(len(quantised) + integer),
    }
    if quantised:
        sizes = {tensor.name: len(tensor.raw_data) for tensor in graph.initializer}
        held = sum(sizes[name] for node in quantised for name in node.input[1:] if name)
        values = sum(
            math.prod(a.i for a in node.attribute if a.name in ("K", "N")) for node in quantised
        )
        row["graph_bits_per_weight"] = 8 * held / values
    return row


def check_same_weights(left: Path, right: Path) -> None:
    """Raise ValueError unless the weights both graphs name are the same to the bit."""
    first, second = (
        {t.name: t for t in onnx.load(str(folder / "model.onnx")).graph.initializer}
        for folder in (left, right)
    )
    shared = [name for name in first.keys() & second.keys() if name.startswith(("model.", "lm_"))]
    if not shared:
        raise ValueError(f"{left} and {right} share no weight: export them from one model")
    for name in sorted(shared):
        a, b = (numpy_helper.to_array(tensors[name]) for tensors in (first, second))
        if a.tobytes() != b.tobytes():
            raise ValueError(f"{name} differs between {left} and {right}: export both again")
