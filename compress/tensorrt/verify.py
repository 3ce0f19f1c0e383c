"""Checks a TensorRT-LLM checkpoint against its parent by reading its files, without a GPU.

Names, shapes, dtypes, dequantised weights within the format's error bound, the configuration
as old and new readers see it, and the tokenizer. `compress.tensorrt.formats` has the layouts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from compress.tensorrt.formats import FORMATS, Judgement, Packed, Precision, judge
from compress.tensorrt.readers import reader_faults

MAX_LISTED = 20

# Norms into which AWQ folds the factor of the projections that read them; these projections
# read the same input, so NVFP4 and the fused kernels make them share their scales.
READERS: Mapping[str, tuple[str, ...]] = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
_NORM_OF = {reader: norm for norm, readers in READERS.items() for reader in readers}
_COPIED_CONFIG = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "eos_token_id",
    "architectures",
)


class VerificationError(ValueError):
    """A checkpoint that does not say what its parent says; the message lists how."""


def verify_checkpoint(
    folder: Path, parent: Path, precision: Precision, texts: Sequence[str]
) -> dict[str, float]:
    """Compare every tensor, the configuration and the tokenizer of `folder` with its parent.

    `texts` are strings both tokenizers must give the same ids for. Returns counts and the
    largest errors found. Raises VerificationError naming every fault (at most 20).
    """
    faults: list[str] = []
    figures = _check_tensors(read_tensors(folder), read_parent(parent), precision, faults)
    _check_config(folder, parent, precision, faults)
    faults += reader_faults(folder, parent)
    _check_tokenizer(folder, parent, texts, faults)
    raise_faults(folder.name, faults)
    return figures | {"compared_texts": float(len(texts))}


def raise_faults(name: str, faults: Sequence[str]) -> None:
    """Raise VerificationError when there are faults, listing the first 20."""
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults[:MAX_LISTED])
        raise VerificationError(f"{name} has {len(faults)} faults:\n{listed}")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors files. Raises VerificationError without any."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as handle:
            for name in handle.keys():  # noqa: SIM118
                tensors[name] = handle.get_tensor(name)
    if not tensors:
        raise VerificationError(f"{folder} holds no safetensors file")
    return tensors


def read_parent(parent: Path) -> dict[str, Tensor]:
    """A parent's tensors in bfloat16, an output layer tied to the embedding left out."""
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in read_tensors(parent).items()}
    output = tensors.get("lm_head.weight")
    if output is not None and torch.equal(output, tensors["model.embed_tokens.weight"]):
        del tensors["lm_head.weight"]
    return tensors


def is_quantised(name: str, tensor: Tensor) -> bool:
    """Whether a format quantises this tensor: the projections of the layers, nothing else."""
    return ".layers." in name and name.endswith("_proj.weight") and tensor.dim() == 2


def packed_weight(name: str, found: Mapping[str, Tensor]) -> Packed:
    """The stored weight `name` with the scales that stand beside it."""
    prefix = name.removesuffix("weight")
    return Packed(
        found[name],
        found[f"{prefix}weight_scale"],
        found.get(f"{prefix}weight_scale_2"),
        found.get(f"{prefix}input_scale"),
    )


def _check_tensors(
    found: dict[str, Tensor], parent: dict[str, Tensor], precision: Precision, faults: list[str]
) -> dict[str, float]:
    form = FORMATS[precision]
    quantised = {n for n in parent if form.scales and is_quantised(n, parent[n])}
    expected = set(parent)
    for name in quantised:
        prefix = name.removesuffix("weight")
        expected |= {f"{prefix}{scale}" for scale in form.scales}
        if form.smoothed and f"{prefix}pre_quant_scale" in found:
            expected.add(f"{prefix}pre_quant_scale")
    faults += [f"{name} is missing" for name in sorted(expected - set(found))]
    faults += [f"{name} is not expected" for name in sorted(set(found) - expected)]
    worst, gain = 0.0, 0.0
    for name in sorted(set(parent) & set(found)):
        if name in quantised:
            prefix = name.removesuffix("weight")
            if not all(k in found for k in expected if k.startswith(prefix)):
                continue  # already reported as missing
            verdict = _judge_weight(name, found, parent, precision)
            faults += [f"{prefix}{fault}" for fault in verdict.faults]
            worst = max(worst, verdict.error_of_bound)
            gain = max(gain, verdict.gain_error)
        elif found[name].dtype != torch.bfloat16 or found[name].shape != parent[name].shape:
            faults.append(f"{name} is {found[name].dtype} {tuple(found[name].shape)}")
        elif form.smoothed and name.removesuffix(".weight").endswith(tuple(READERS)):
            ratio = found[name].float() / parent[name].float()
            if not bool((torch.isfinite(ratio) & (ratio > 0) | (parent[name] == 0)).all()):
                faults.append(f"{name} is no positive multiple of its parent's")
        elif not torch.equal(found[name], parent[name]):
            faults.append(f"{name} differs from its parent's")
    return {
        "tensors": float(len(found)),
        "quantised_weights": float(len(quantised)),
        "worst_error_of_bound": worst,
        "worst_gain_error": gain,
    }


def _judge_weight(
    name: str, found: dict[str, Tensor], parent: dict[str, Tensor], precision: Precision
) -> Judgement:
    source, shared = parent[name].float(), None
    if not FORMATS[precision].smoothed:
        if precision == "nvfp4":
            shared = max(float(parent[n].float().abs().max()) for n in _sharing(name))
        return judge(packed_weight(name, found), source, precision, shared_magnitude=shared)
    factor, known = _channel_factor(name, found, parent)
    smooth = torch.where(known, source / factor, 0.0)
    return judge(packed_weight(name, found), smooth, precision, known=known)


def _sharing(name: str) -> list[str]:
    """The weights that share their scales with this one, itself among them."""
    *layer, block, linear, _ = name.split(".")
    readers = READERS.get(_NORM_OF.get(f"{block}.{linear}", ""), (f"{block}.{linear}",))
    return [".".join([*layer, reader, "weight"]) for reader in readers]


def _channel_factor(
    name: str, found: dict[str, Tensor], parent: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The factor taken out of each input channel, and where it can be told."""
    prefix, columns = name.removesuffix("weight"), parent[name].shape[1]
    factor, known = torch.ones(columns), torch.ones(columns, dtype=torch.bool)
    if f"{prefix}pre_quant_scale" in found:
        factor = factor * found[f"{prefix}pre_quant_scale"].float()
    *layer, block, linear, _ = name.split(".")
    if f"{block}.{linear}" in _NORM_OF:
        norm = ".".join([*layer, _NORM_OF[f"{block}.{linear}"], "weight"])
        before = parent[norm].float()
        known = before != 0  # a channel a norm silences tells nothing, and weighs nothing
        factor = factor * torch.where(known, found[norm].float() / before, 1.0)
    return factor, known


def _check_config(folder: Path, parent: Path, precision: Precision, faults: list[str]) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    source = json.loads((parent / "config.json").read_text(encoding="utf-8"))
    for key in _COPIED_CONFIG:
        if config.get(key) != source.get(key):
            faults.append(f"config {key} is {config.get(key)!r}, not {source.get(key)!r}")
    if not config.get("architectures"):
        faults.append("config architectures is not set")
    algo = FORMATS[precision].algorithm
    if config.get("quantization_config", {}).get("quant_algo") != algo:
        faults.append(f"config quantization_config.quant_algo is not {algo}")
    quant_file = folder / "hf_quant_config.json"
    if algo is None:
        if quant_file.exists():
            faults.append("hf_quant_config.json stands beside unquantised weights")
        return
    if not quant_file.is_file():
        faults.append("hf_quant_config.json is missing")
        return
    quantization = json.loads(quant_file.read_text(encoding="utf-8"))["quantization"]
    if quantization.get("quant_algo") != algo:
        faults.append(f"hf_quant_config quant_algo is {quantization.get('quant_algo')!r}")
    if quantization.get("group_size") != FORMATS[precision].group_size:
        faults.append(f"hf_quant_config group_size is {quantization.get('group_size')!r}")
    if "lm_head" not in quantization.get("exclude_modules", []):
        faults.append("hf_quant_config does not exclude lm_head, which is not quantised")


def _check_tokenizer(folder: Path, parent: Path, texts: Sequence[str], faults: list[str]) -> None:
    from transformers import AutoTokenizer

    ours, theirs = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(parent)
    if ours.chat_template != theirs.chat_template:
        faults.append("the chat template differs from the parent's")
    if ours.eos_token_id != theirs.eos_token_id:
        faults.append(f"eos_token_id is {ours.eos_token_id}, not {theirs.eos_token_id}")
    for index, text in enumerate(texts):
        if ours(text)["input_ids"] != theirs(text)["input_ids"]:
            faults.append(f"the tokenizer gives other ids for text {index}")
            return
