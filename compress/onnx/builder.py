"""The model builder of onnxruntime-genai: what it may be asked for, its run, what it must give."""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.util
import io
import json
import logging
import math
import os
import runpy
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from compress.onnx.recipes import INTEGER_PRODUCT, Recipe

log = logging.getLogger(__name__)

# What this project prunes, distils and serves; the builder knows more, which nobody tried here.
ARCHITECTURES = (
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "GraniteForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
_FULL = {code: os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}


def check_model(model: Path, recipe: Recipe) -> None:
    """Refuse what the builder would fail at or, worse, silently get wrong.

    Raises ValueError for an architecture that it can't export, a tokenizer that its runtime would
    read otherwise, or a shape that does not suit the recipe.
    """
    shape = json.loads((model / "config.json").read_text(encoding="utf-8"))
    names = shape.get("architectures") or ["none"]
    if names[0] not in ARCHITECTURES:
        raise ValueError(
            f"architecture {names[0]} in {model / 'config.json'} is not supported: use one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    recipe.check_shape(shape)
    window = shape.get("sliding_window")
    if window and not shape.get("layer_types") and window < shape["max_position_embeddings"]:
        raise ValueError(
            f"{model / 'config.json'} has a sliding_window of {window}, which the model builder "
            "leaves out: serve this model with vLLM, or, where all prompts are shorter, set "
            "max_position_embeddings to it"
        )
    tokenizer = (model / "tokenizer.json").read_text(encoding="utf-8")
    if not any(f'"{kind}"' in tokenizer for kind in ("ByteLevel", "ByteFallback")):
        raise ValueError(
            f"{model / 'tokenizer.json'} is no BPE of bytes: facts would lose characters; use a "
            "checkpoint with another tokenizer"
        )


def check_room(model: Path, folder: Path, recipe: Recipe) -> None:
    """Raise OSError when the disk of `folder` has clearly less room than the export takes."""
    files = list(model.glob("*.safetensors"))
    stored = json.loads((model / "config.json").read_text(encoding="utf-8")).get("dtype")
    stored_bits = 32 if stored == "float32" else 16
    needed = sum(f.stat().st_size for f in files) * recipe.bits / stored_bits
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

    Raises OSError when the disk is full and RuntimeError when the builder fails otherwise.
    """
    # The last position's logits are all an engine reads; the rest cost a seventh of a demo prefill.
    # Layers with a sliding window keep the whole cache too: the engine rewinds it.
    options = ["hf_token=false", "prune_lm_head=true", "windowed_kv_cache=false"]
    if not recipe.fused:
        options.append("fuse_qk_norm_gqa=false")
    options += recipe.builder_options()
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as cache:
        arguments = ["-i", str(model), "-o", str(folder), "-c", cache]
        arguments += ["-p", recipe.built_as, "-e", recipe.device, "--extra_options", *options]
        try:
            with (
                contextlib.redirect_stdout(said),
                contextlib.redirect_stderr(said),
                warnings.catch_warnings(record=True) as noted,
            ):
                warnings.simplefilter("always")  # whatever the filters here: to be read
                _run_builder(arguments)
            said.writelines(f"{warning.message}\n" for warning in noted)
        except (Exception, SystemExit) as error:
            said.write(f"{type(error).__name__}: {error}")
            log.debug("%s", said.getvalue())
            for code, text in _FULL.items():
                if text in said.getvalue():
                    raise OSError(
                        code,
                        f"{text} while the model builder wrote {recipe.precision} to {folder}: "
                        "make room or name another folder with --out",
                    ) from error
            tail = "\n".join(said.getvalue().splitlines()[-15:])
            raise RuntimeError(f"the model builder failed:\n{tail}") from error
    log.debug("%s", said.getvalue())
    recipe.finish(folder / "model.onnx")


def _run_builder(arguments: list[str]) -> None:
    """Run the builder's script as its command does, and forget the modules it brings.

    It imports its neighbours by top-level names (`builders`, `quantization`) and reads `sys.argv`.
    In a process of its own it would import torch and transformers anew, ten seconds an export.
    """
    spec = importlib.util.find_spec("onnxruntime_genai.models.builder")
    assert spec is not None
    assert spec.origin is not None
    home = str(Path(spec.origin).parent)
    before = set(sys.modules)
    kept, sys.argv = sys.argv, [spec.origin, *arguments]
    sys.path.insert(0, home)
    try:
        base: Any = importlib.import_module("builders.base").Model
        begin = base.__init__
        base.__init__ = lambda self, config, *rest: begin(self, _one_rope(config), *rest)
        runpy.run_path(spec.origin, run_name="__main__")
    finally:
        sys.argv = kept
        sys.path.remove(home)
        for name in set(sys.modules) - before:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(home):
                del sys.modules[name]


def _one_rope(config: Any) -> Any:
    """A config as the builder reads it: Gemma 3 has a rotary embedding for each kind of layer."""
    ropes = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in ropes:
        config.rope_local_base_freq = ropes["sliding_attention"]["rope_theta"]
        config.rope_parameters = dict(ropes["full_attention"])
    return config


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

    half = recipe.device == "cuda" and recipe.half_on_cuda
    float_type = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    outputs = {o.name: o.type.tensor_type.elem_type for o in graph.output}
    if outputs.get(decoder["outputs"]["logits"]) != float_type:
        raise ValueError(f"the logits are not {TensorProto.DataType.Name(float_type)}")

    nodes = [node.op_type for node in graph.node]
    blocks = [node for node in graph.node if node.op_type == "MatMulNBits"]
    constants = {tensor.name for tensor in graph.initializer}
    floats = [n for n in graph.node if n.op_type == "MatMul" and set(n.input) & constants]
    counts = {
        "MatMulNBits": len(blocks),
        INTEGER_PRODUCT: nodes.count(INTEGER_PRODUCT),
        "MatMul": len(floats),
    }
    if [product for product, count in counts.items() if count] != [recipe.product]:
        quantised = counts["MatMulNBits"] + counts[INTEGER_PRODUCT]
        raise ValueError(
            f"{quantised} quantised and {len(floats)} other matrices in a graph of "
            f"{recipe.precision}: the model builder made another kind or left some out"
        )
    for node in blocks:
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
        "graph_quantised_matrices": float(len(blocks) + counts[INTEGER_PRODUCT]),
    }
    if blocks:
        sizes = {tensor.name: len(tensor.raw_data) for tensor in graph.initializer}
        held = sum(sizes[name] for node in blocks for name in node.input[1:] if name)
        values = sum(
            math.prod(a.i for a in node.attribute if a.name in ("K", "N")) for node in blocks
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
