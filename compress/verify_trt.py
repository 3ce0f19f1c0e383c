"""Checks a TensorRT-LLM checkpoint against its parent by reading its files, without a GPU.

Each quantised weight is unpacked here by hand, not by the tool that packed it, so that a slip
in packing order, scale or folding shows:

- FP8: E4M3 numbers times one float32 `weight_scale`, which is largest magnitude / 448.
- INT4 (AWQ): bytes [rows/2, columns], low nibble = even row, two's complement, times
  `weight_scale` [rows, columns/128], which is the block's largest magnitude / 7. AWQ moves a
  factor per input channel out of the weight, into `pre_quant_scale` or the norm before it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

Precision = Literal["fp8", "int4_awq", "bf16"]

QUANT_ALGO: Mapping[Precision, str | None] = {
    "fp8": "FP8",
    "int4_awq": "W4A16_AWQ",
    "bf16": None,
}
INT4_BLOCK = 128
E4M3_MAX = 448.0
INT4_MAX = 7.0
TOKENIZER_CLASS = "PreTrainedTokenizerFast"

_EXTRA_KEYS = ("weight_scale", "input_scale", "pre_quant_scale")
# Norms into which AWQ folds the factor of the projections that read them.
_FOLDED_INTO = {
    "self_attn.q_proj": "input_layernorm",
    "self_attn.k_proj": "input_layernorm",
    "self_attn.v_proj": "input_layernorm",
    "mlp.gate_proj": "post_attention_layernorm",
    "mlp.up_proj": "post_attention_layernorm",
}
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
    figures = _check_tensors(_read_tensors(folder), _read_tensors(parent), precision, faults)
    _check_config(folder, parent, precision, faults)
    _check_tokenizer(folder, parent, texts, faults)
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults[:20])
        raise VerificationError(f"{folder.name} has {len(faults)} faults:\n{listed}")
    return figures | {"compared_texts": float(len(texts))}


def unpack_int4(packed: Tensor) -> Tensor:
    """Signed values of a packed weight: bytes (rows/2, columns) to float32 (rows, columns)."""
    low, high = packed & 0x0F, packed >> 4
    nibbles = torch.stack([low, high], dim=1).reshape(-1, packed.shape[1]).to(torch.int16)
    return torch.where(nibbles > 7, nibbles - 16, nibbles).float()


def _check_tensors(
    found: dict[str, Tensor], parent: dict[str, Tensor], precision: Precision, faults: list[str]
) -> dict[str, float]:
    if torch.equal(*_output_and_input(parent)):  # tied: stored once
        parent.pop("lm_head.weight", None)
    quantised = {n for n in parent if precision != "bf16" and _is_quantised(n, parent[n])}
    expected = set(parent)
    for name in quantised:
        prefix = name.removesuffix("weight")
        expected.add(f"{prefix}weight_scale")
        if precision == "fp8":
            expected.add(f"{prefix}input_scale")
        elif f"{prefix}pre_quant_scale" in found:
            expected.add(f"{prefix}pre_quant_scale")
    faults += [f"{name} is missing" for name in sorted(expected - set(found))]
    faults += [f"{name} is not expected" for name in sorted(set(found) - expected)]
    worst, gain = 0.0, 0.0
    for name in sorted(set(parent) & set(found)):
        source = parent[name].to(torch.bfloat16)
        if name in quantised:
            prefix = name.removesuffix("weight")
            if not all(k in found for k in expected if k.startswith(prefix)):
                continue  # already reported as missing
            check = _check_fp8 if precision == "fp8" else _check_int4
            error, off = check(name, found, parent, source.float(), faults)
            worst, gain = max(worst, error), max(gain, off)
        elif found[name].dtype != torch.bfloat16 or found[name].shape != source.shape:
            faults.append(f"{name} is {found[name].dtype} {tuple(found[name].shape)}")
        elif _is_folded(name, precision):
            ratio = found[name].float() / source.float()
            if not bool((torch.isfinite(ratio) & (ratio > 0) | (source == 0)).all()):
                faults.append(f"{name} is no positive multiple of its parent's")
        elif not torch.equal(found[name], source):
            faults.append(f"{name} differs from its parent's")
    return {
        "tensors": float(len(found)),
        "quantised_weights": float(len(quantised)),
        "worst_error_of_bound": worst,
        "worst_gain_error": gain,
    }


def _check_fp8(
    name: str, found: dict[str, Tensor], _: dict[str, Tensor], source: Tensor, faults: list[str]
) -> tuple[float, float]:
    weight, prefix = found[name], name.removesuffix("weight")
    scale, input_scale = found[f"{prefix}weight_scale"], found[f"{prefix}input_scale"]
    if weight.dtype != torch.float8_e4m3fn or weight.shape != source.shape:
        faults.append(f"{name} is {weight.dtype} {tuple(weight.shape)}")
        return 0.0, 0.0
    if scale.dtype != torch.float32 or scale.numel() != 1:
        faults.append(f"{prefix}weight_scale is {scale.dtype} {tuple(scale.shape)}")
        return 0.0, 0.0
    if not bool(torch.isfinite(input_scale).all() & (input_scale > 0).all()):
        faults.append(f"{prefix}input_scale is not positive and finite")
    expected_scale = source.abs().max() / E4M3_MAX
    if not torch.isclose(scale.reshape(()), expected_scale, rtol=5e-3):
        faults.append(f"{prefix}weight_scale is {scale.item():.4g}, not {expected_scale:.4g}")
    # Half a step of three mantissa bits, or half the smallest subnormal step; bfloat16 slack.
    bound = source.abs() * (2**-4 + 2**-8) + expected_scale * 2**-10
    return _judge(name, weight.float() * scale, source, bound, faults)


def _check_int4(
    name: str,
    found: dict[str, Tensor],
    parent: dict[str, Tensor],
    source: Tensor,
    faults: list[str],
) -> tuple[float, float]:
    weight, prefix = found[name], name.removesuffix("weight")
    scale = found[f"{prefix}weight_scale"].float()
    rows, columns = source.shape
    if weight.dtype != torch.uint8 or weight.shape != (rows // 2, columns):
        faults.append(f"{name} is {weight.dtype} {tuple(weight.shape)}")
        return 0.0, 0.0
    if scale.shape != (rows, columns // INT4_BLOCK):
        faults.append(f"{prefix}weight_scale has shape {tuple(scale.shape)}")
        return 0.0, 0.0
    factor, known = _channel_factor(name, found, parent, columns)
    # What was quantised is the source divided by the factor; the slack covers bfloat16 rounding
    # of the weight, of the factor and of the norm it may be folded into.
    smooth = torch.where(known, source / factor, 0.0)
    blocks = smooth.reshape(rows, -1, INT4_BLOCK)
    expected_scale = blocks.abs().amax(-1) / INT4_MAX
    if bool(known.all()) and not torch.allclose(scale, expected_scale, rtol=2e-2, atol=1e-9):
        faults.append(f"{prefix}weight_scale is not the largest magnitude of its block / 7")
    wide = scale.repeat_interleave(INT4_BLOCK, dim=1)
    bound = wide * 0.5 + smooth.abs() * 2**-6
    value = torch.where(known, unpack_int4(weight) * wide, 0.0)
    return _judge(name, value, smooth, bound, faults)


def _channel_factor(
    name: str, found: dict[str, Tensor], parent: dict[str, Tensor], columns: int
) -> tuple[Tensor, Tensor]:
    """The factor AWQ took out of each input channel, and where it can be told."""
    prefix = name.removesuffix("weight")
    factor, known = torch.ones(columns), torch.ones(columns, dtype=torch.bool)
    if f"{prefix}pre_quant_scale" in found:
        factor = factor * found[f"{prefix}pre_quant_scale"].float()
    *layer, block, linear, _ = name.split(".")
    projection = f"{block}.{linear}"
    if projection in _FOLDED_INTO:
        norm = ".".join([*layer, _FOLDED_INTO[projection], "weight"])
        before = parent[norm].to(torch.bfloat16).float()
        known = before != 0  # a channel a norm silences tells nothing, and weighs nothing
        factor = factor * torch.where(known, found[norm].float() / before, 1.0)
    return factor, known


def _judge(
    name: str, value: Tensor, source: Tensor, bound: Tensor, faults: list[str]
) -> tuple[float, float]:
    """Largest error as a share of the bound, and the relative error of the overall gain."""
    if not bool(torch.isfinite(value).all()):
        faults.append(f"{name} holds numbers that are not finite")
        return 0.0, 0.0
    error = float(((value - source).abs() / bound.clamp_min(1e-12)).max())
    gain = abs(float((value * source).sum() / source.square().sum()) - 1)
    if error > 1:
        faults.append(f"{name} is {error:.3g} times its error bound away from its parent")
    if gain > 0.02:
        faults.append(f"{name} is off by {gain:.1%} overall")
    return error, gain


def _check_config(folder: Path, parent: Path, precision: Precision, faults: list[str]) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    source = json.loads((parent / "config.json").read_text(encoding="utf-8"))
    for key in _COPIED_CONFIG:
        if config.get(key) != source.get(key):
            faults.append(f"config {key} is {config.get(key)!r}, not {source.get(key)!r}")
    if not config.get("architectures"):
        faults.append("config architectures is not set")
    theta = rope_theta(source)
    # Older transformers (the ones inside TensorRT-LLM 1.2) read only the top-level field.
    if config.get("rope_theta") != theta or rope_theta(config, nested_only=True) != theta:
        faults.append(f"config rope_theta is {config.get('rope_theta')!r}, not {theta!r}")
    algo = QUANT_ALGO[precision]
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
    if precision == "int4_awq" and quantization.get("group_size") != INT4_BLOCK:
        faults.append(f"hf_quant_config group_size is {quantization.get('group_size')!r}")
    if "lm_head" not in quantization.get("exclude_modules", []):
        faults.append("hf_quant_config does not exclude lm_head, which is not quantised")


def rope_theta(config: dict[str, Any], *, nested_only: bool = False) -> float | None:
    """The rotary base of a Hugging Face configuration, wherever its version keeps it."""
    nested = (config.get("rope_parameters") or {}).get("rope_theta")
    if nested is None and not nested_only:
        nested = config.get("rope_theta")
    return None if nested is None else float(nested)


def _check_tokenizer(folder: Path, parent: Path, texts: Sequence[str], faults: list[str]) -> None:
    from transformers import AutoTokenizer

    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") != TOKENIZER_CLASS:
        faults.append(f"tokenizer_class is {settings.get('tokenizer_class')!r}")
    ours, theirs = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(parent)
    if ours.chat_template != theirs.chat_template:
        faults.append("the chat template differs from the parent's")
    if ours.eos_token_id != theirs.eos_token_id:
        faults.append(f"eos_token_id is {ours.eos_token_id}, not {theirs.eos_token_id}")
    for index, text in enumerate(texts):
        if ours(text)["input_ids"] != theirs(text)["input_ids"]:
            faults.append(f"the tokenizer gives other ids for text {index}")
            return


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as handle:
            for name in handle.keys():  # noqa: SIM118
                tensors[name] = handle.get_tensor(name)
    if not tensors:
        raise VerificationError(f"{folder} holds no safetensors file")
    return tensors


def _output_and_input(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    embedding = tensors["model.embed_tokens.weight"]
    return tensors.get("lm_head.weight", embedding), embedding


def _is_quantised(name: str, tensor: Tensor) -> bool:
    return ".layers." in name and name.endswith("_proj.weight") and tensor.dim() == 2


def _is_folded(name: str, precision: Precision) -> bool:
    norms = ("input_layernorm.weight", "post_attention_layernorm.weight")
    return precision == "int4_awq" and name.endswith(norms)
