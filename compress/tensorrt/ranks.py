"""The rank-sharded checkpoint of TensorRT-LLM 1.2.1 and older, for its engine builder.

One `rankN.safetensors` a GPU (rank = pipeline stage · tensor parallel + tensor rank) beside a
`config.json`. ModelOpt 0.47 writes it; what it leaves out of the configuration is added here:
`rotary_base` (the reader assumes 10,000), `rotary_scaling`, `qwen_type` and
`tie_word_embeddings`. In this form `mlp.fc` is the gate projection, `mlp.gate` the up
projection, q, k and v are one weight, and layers count from 0 in every stage. Key-value heads
fewer than the GPUs are repeated; AWQ pads the vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from compress.tensorrt.formats import QUANT_ALGO, SMOOTHED, Packed, Precision, judge
from compress.tensorrt.readers import OLD_ROPE_DEFAULT, old_rope_theta, rope_scaling, rope_theta
from compress.tensorrt.verify import raise_faults, read_parent
from curt.files import write_json

ENGINE_CHECKPOINT = "engine-checkpoint"

_LAYER = re.compile(r"transformer\.layers\.(\d+)\.(.+)")
_SPLIT_ROWS = ("attention.qkv", "mlp.fc", "mlp.gate")
_SPLIT_COLUMNS = ("attention.dense", "mlp.proj")
_SCALES = {
    "weights_scaling_factor": "weight_scale",
    "weights_scaling_factor_2": "weight_scale_2",
    "activation_scaling_factor": "input_scale",
}
_PARENT_OF = {
    "attention.dense": ("self_attn.o_proj",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.fc": ("mlp.gate_proj",),
    "mlp.gate": ("mlp.up_proj",),
    "mlp.proj": ("mlp.down_proj",),
}
_NORM_OF = {
    "attention.q_layernorm": "self_attn.q_norm",
    "attention.k_layernorm": "self_attn.k_norm",
    "input_layernorm": "input_layernorm",
    "post_layernorm": "post_attention_layernorm",
}


def write_ranks(
    model: torch.nn.Module, source: Path, folder: Path, tensor_parallel: int, pipeline_parallel: int
) -> None:
    """Write a (quantised) model, rank by rank. Raises ValueError when it cannot be split so."""
    from modelopt.torch.export import export_tensorrt_llm_checkpoint

    try:
        export_tensorrt_llm_checkpoint(
            model,
            "qwen",
            torch.bfloat16,
            folder,
            inference_tensor_parallel=tensor_parallel,
            inference_pipeline_parallel=pipeline_parallel,
        )
    except NotImplementedError as error:
        raise ValueError(
            f"no engine checkpoint for {tensor_parallel} × {pipeline_parallel} GPUs: {error} "
            "Use fewer GPUs or another precision"
        ) from error
    parent = json.loads((source / "config.json").read_text(encoding="utf-8"))
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("rank", None)  # the last one written; the file is for all of them
    write_json(path, config | _left_out(parent))


def assemble_ranks(folder: Path) -> dict[str, Tensor]:
    """Undo the sharding: the tensors one GPU alone would have, layers counted through."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    mapping = config["mapping"]
    tensor_parallel, stages = mapping["tp_size"], mapping["pp_size"]
    whole: dict[str, Tensor] = {}
    for stage in range(stages):
        shards = [
            load_file(folder / f"rank{stage * tensor_parallel + rank}.safetensors")
            for rank in range(tensor_parallel)
        ]
        first_layer = stage * config["num_hidden_layers"] // stages
        for name in shards[0]:
            joined = _join(name, [shard[name] for shard in shards], config)
            match = _LAYER.fullmatch(name)
            if match:
                name = f"transformer.layers.{int(match[1]) + first_layer}.{match[2]}"
            whole[name] = joined
    return whole


def verify_ranks(folder: Path, parent: Path, precision: Precision) -> dict[str, float]:
    """Compare a rank-sharded checkpoint with the Hugging Face model it was made from.

    Returns the number of ranks and the largest error, as a share of the format's bound.
    Raises VerificationError naming every fault.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    source = json.loads((parent / "config.json").read_text(encoding="utf-8"))
    faults = _config_faults(config, source, precision)
    ranks = config["mapping"]["world_size"]
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if files != sorted(f"rank{rank}.safetensors" for rank in range(ranks)):
        faults.append(f"the files are {', '.join(files)}, not those of {ranks} ranks")
        raise_faults(folder.name, faults)
    found, tensors = assemble_ranks(folder), read_parent(parent)
    seen: set[str] = set()
    worst = 0.0
    for layer in range(source["num_hidden_layers"]):
        ours, theirs = f"transformer.layers.{layer}.", f"model.layers.{layer}."
        for name, parts in _PARENT_OF.items():
            weight = torch.cat([tensors[f"{theirs}{part}.weight"] for part in parts])
            largest = None
            if name in ("mlp.fc", "mlp.gate") and precision in (
                "fp8",
                "nvfp4",
            ):  # one kernel, one scale
                pair = [tensors[f"{theirs}mlp.{part}_proj.weight"] for part in ("gate", "up")]
                largest = float(max(tensor.float().abs().max() for tensor in pair))
            error, wrong = _check_linear(f"{ours}{name}", weight, found, precision, largest)
            worst, faults = max(worst, error), faults + wrong
            seen |= {key for key in found if key.startswith(f"{ours}{name}.")}
        for name, norm in _NORM_OF.items():
            faults += _check_same(f"{ours}{name}", tensors[f"{theirs}{norm}.weight"], found)
            seen.add(f"{ours}{name}.weight")
    embedding = tensors["model.embed_tokens.weight"]
    for name, tensor in (
        ("transformer.vocab_embedding", embedding),
        ("transformer.ln_f", tensors["model.norm.weight"]),
        ("lm_head", tensors.get("lm_head.weight", embedding)),
    ):
        faults += _check_same(name, tensor, found)
        seen.add(f"{name}.weight")
    faults += [f"{name} is not expected" for name in sorted(set(found) - seen)]
    raise_faults(folder.name, faults)
    return {"engine_ranks": float(ranks), "engine_worst_error_of_bound": worst}


def _left_out(parent: Mapping[str, Any]) -> dict[str, Any]:
    base = rope_theta(parent)
    return {
        "rotary_base": OLD_ROPE_DEFAULT if base is None else base,
        "rotary_scaling": rope_scaling(parent),
        "qwen_type": parent["model_type"],
        "tie_word_embeddings": bool(parent.get("tie_word_embeddings")),
    }


def _config_faults(
    config: Mapping[str, Any], parent: Mapping[str, Any], precision: Precision
) -> list[str]:
    wanted = _left_out(parent) | {
        "architecture": parent["architectures"][0] if parent.get("architectures") else None,
        "dtype": "bfloat16",
        "num_hidden_layers": parent["num_hidden_layers"],
        "num_attention_heads": parent["num_attention_heads"],
        "num_key_value_heads": parent["num_key_value_heads"],
        "hidden_size": parent["hidden_size"],
        "intermediate_size": parent["intermediate_size"],
        "norm_epsilon": parent["rms_norm_eps"],
        "max_position_embeddings": parent["max_position_embeddings"],
    }
    faults = [
        f"config {key} is {config.get(key)!r}, not {value!r}"
        for key, value in wanted.items()
        if config.get(key) != value
    ]
    if old_rope_theta(config) != wanted["rotary_base"]:
        faults.append(f"the engine builder would read rotary base {old_rope_theta(config)}")
    if config["quantization"].get("quant_algo") != QUANT_ALGO[precision]:
        faults.append(f"config quant_algo is {config['quantization'].get('quant_algo')!r}")
    mapping = config["mapping"]
    if mapping["world_size"] != mapping["tp_size"] * mapping["pp_size"]:
        faults.append(f"config mapping {mapping} does not multiply")
    return faults


def _join(name: str, shards: list[Tensor], config: Mapping[str, Any]) -> Tensor:
    if len(shards) == 1:
        return shards[0]
    match = _LAYER.fullmatch(name)
    module, _, kind = (match[2] if match else name).rpartition(".")
    if name in ("transformer.vocab_embedding.weight", "lm_head.weight"):
        return torch.cat(shards)
    per_row = shards[0].dim() == 2 or (kind != "prequant_scaling_factor" and shards[0].numel() > 1)
    if module == "attention.qkv" and per_row:
        return _join_heads(shards, config)
    if module in _SPLIT_ROWS and per_row:
        return torch.cat(shards)
    if module in _SPLIT_COLUMNS and shards[0].dim() == 2:
        return torch.cat(shards, dim=1)
    if module in _SPLIT_COLUMNS and kind == "prequant_scaling_factor":
        return torch.cat(shards)
    if not all(_same(shard, shards[0]) for shard in shards):
        raise ValueError(f"{name} differs between ranks but is one number for all")
    return shards[0]


def _join_heads(shards: list[Tensor], config: Mapping[str, Any]) -> Tensor:
    """Each rank holds its own query heads, then its own (or its copy of a) key and value."""
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    ranks = len(shards)
    own, own_shared = heads // ranks, max(1, shared // ranks)
    copies = max(1, ranks // shared)
    unit = shards[0].shape[0] // (own + 2 * own_shared)  # rows a head
    parts = [s.split([own * unit, own_shared * unit, own_shared * unit]) for s in shards]
    queries, keys, values = (list(part) for part in zip(*parts, strict=True))
    for repeated in (keys, values):
        for rank in range(ranks):
            if not _same(repeated[rank], repeated[rank - rank % copies]):
                raise ValueError(f"rank {rank} holds another copy of its key-value head")
    return torch.cat([*queries, *keys[::copies], *values[::copies]])


def _same(left: Tensor, right: Tensor) -> bool:
    # by bytes, as FP8 numbers cannot be compared on a CPU
    bytes_of = [tensor.reshape(-1).contiguous().view(torch.uint8) for tensor in (left, right)]
    return torch.equal(*bytes_of)


def _check_linear(
    name: str,
    source: Tensor,
    found: Mapping[str, Tensor],
    precision: Precision,
    largest: float | None,
) -> tuple[float, list[str]]:
    if precision == "bf16":
        return 0.0, _check_same(name, source, found)
    scales = {ours: found.get(f"{name}.{theirs}") for theirs, ours in _SCALES.items()}
    weight, scale = found.get(f"{name}.weight"), scales.pop("weight_scale")
    if weight is None or scale is None:
        return 0.0, [f"{name} lacks its weight or its scale"]
    wanted = source.float()
    factor = found.get(f"{name}.prequant_scaling_factor")
    if precision in SMOOTHED and factor is not None:
        wanted = wanted / factor.float()
    if precision == "int4_awq":
        weight = weight.view(torch.uint8)
    packed = Packed(weight, scale, **scales)
    verdict = judge(packed, wanted, precision, shared_magnitude=largest)
    return verdict.error_of_bound, [f"{name}.{fault}" for fault in verdict.faults]


def _check_same(name: str, source: Tensor, found: Mapping[str, Tensor]) -> list[str]:
    tensor = found.get(f"{name}.weight")
    if tensor is None:
        return [f"{name}.weight is missing"]
    padding = tensor.shape[0] - source.shape[0]
    if name in ("lm_head", "transformer.vocab_embedding") and padding > 0:
        tensor, rest = tensor.split([source.shape[0], padding])
        if bool(rest.any()):
            return [f"{name}.weight is padded with numbers that are not zero"]
    if tensor.dtype != torch.bfloat16 or not torch.equal(tensor, source):
        return [f"{name}.weight differs from its parent's"]
    return []
