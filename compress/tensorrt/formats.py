"""The weight formats of TensorRT-LLM checkpoints: layout, rounding, and the GPUs they run on.

Weights are unpacked here by hand, not by the tool that packed them, so that a slip in packing
order, scale or folding shows. R and C are a weight's rows and columns.

Which GPU runs which format follows the hardware support matrix in TensorRT-LLM's
`docs/source/features/quantization.md` (read at commit 09d4c79).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from curt.hardware import Arithmetic, Gpu, find_gpu

Precision = Literal["fp8", "int4_awq", "nvfp4", "bf16"]

INT4_BLOCK = 128
NVFP4_BLOCK = 16
E4M3_MAX = 448.0
E2M1_MAX = 6.0
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


class WeightFormat:
    """Base of the formats; by itself the format of weights left in bfloat16."""

    algorithm: ClassVar[str | None] = None
    """TensorRT-LLM's name, the checkpoint's `quant_algo`."""
    modelopt_config: ClassVar[str | None] = None
    """ModelOpt's configuration that makes it."""
    arithmetic: ClassVar[Arithmetic] = "bf16"
    """What the tensor cores multiply; INT4 weights are widened to bfloat16 first."""
    scales: ClassVar[tuple[str, ...]] = ()
    """Tensors beside each weight."""
    least_bits: ClassVar[float] = 16
    """Bits a quantised weight takes; the embedding, which stays in bfloat16, takes more."""
    most_error: ClassVar[float] = 0.005
    """How far a weight may be from its parent's, as a share of it: two to three times what rounding
    does to normally distributed ones, for some have longer tails."""

    def dequantise(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Values of a stored weight, float32 (R, C), before any factor is multiplied back in.

        `parts` are the `weight` and its `scales` by their names.
        """
        raise ValueError("bf16 weights are not quantised: read them as they are")

    def round_inputs(self, value: Tensor, input_scale: float) -> Tensor:
        """What a layer's kernels multiply of its inputs, with the layer's `input_scale`."""
        return value


class Fp8(WeightFormat):
    """E4M3 (R, C) times one float32 `weight_scale` = largest magnitude / 448."""

    algorithm = "FP8"
    modelopt_config = "FP8_DEFAULT_CFG"
    arithmetic = "fp8"
    scales = ("weight_scale", "input_scale")
    least_bits = 8
    most_error = 0.05

    def dequantise(self, parts: Mapping[str, Tensor]) -> Tensor:
        return parts["weight"].float() * parts["weight_scale"].float()

    def round_inputs(self, value: Tensor, input_scale: float) -> Tensor:
        scaled = (value / input_scale).clamp(-E4M3_MAX, E4M3_MAX)
        return scaled.to(torch.float8_e4m3fn).to(value.dtype) * input_scale


class Int4Awq(WeightFormat):
    """Bytes (R/2, C), low nibble = even row, two's complement, times a scale for each block.

    `weight_scale` (R, C/128) is the block's largest magnitude / 7. A factor per input channel is
    taken out of the weight, into `pre_quant_scale` or the norm before it.
    """

    algorithm = "W4A16_AWQ"
    modelopt_config = "INT4_AWQ_CFG"
    scales = ("weight_scale",)
    least_bits = 4
    most_error = 0.3

    def dequantise(self, parts: Mapping[str, Tensor]) -> Tensor:
        scale = parts["weight_scale"].float().repeat_interleave(INT4_BLOCK, dim=1)
        return unpack_int4(parts["weight"]) * scale


class Nvfp4(WeightFormat):
    """Bytes (R, C/2), low nibble = even column, E2M1, times a scale for each block of 16.

    `weight_scale` (R, C/16), E4M3, is the block's largest magnitude / 6 / `weight_scale_2`, and
    `weight_scale_2`, one float32, is the largest magnitude / (6 · 448).
    """

    algorithm = "NVFP4"
    modelopt_config = "NVFP4_DEFAULT_CFG"
    arithmetic = "fp4"
    scales = ("weight_scale", "weight_scale_2", "input_scale")
    least_bits = 4.5
    most_error = 0.3

    def dequantise(self, parts: Mapping[str, Tensor]) -> Tensor:
        scale = parts["weight_scale"].float() * parts["weight_scale_2"].float()
        return unpack_e2m1(parts["weight"]) * scale.repeat_interleave(NVFP4_BLOCK, dim=1)

    def round_inputs(self, value: Tensor, input_scale: float) -> Tensor:
        # E2M1 times an E4M3 scale for every 16 numbers
        blocks = value.float().reshape(*value.shape[:-1], -1, NVFP4_BLOCK)
        largest = blocks.abs().amax(-1, keepdim=True)
        scale = (largest / E2M1_MAX / input_scale).clamp_max(E4M3_MAX)
        scale = scale.to(torch.float8_e4m3fn).float() * input_scale
        rounded = round_to_e2m1(blocks / scale.clamp_min(1e-30)) * scale
        return torch.where(scale > 0, rounded, 0.0).reshape(value.shape).to(value.dtype)


FORMATS: Mapping[Precision, WeightFormat] = {
    "fp8": Fp8(),
    "int4_awq": Int4Awq(),
    "nvfp4": Nvfp4(),
    "bf16": WeightFormat(),
}


def unpack_int4(packed: Tensor) -> Tensor:
    """Signed values of packed INT4: bytes (R/2, C) to float32 (R, C)."""
    low, high = packed & 0x0F, packed >> 4
    nibbles = torch.stack([low, high], dim=1).reshape(-1, packed.shape[1]).to(torch.int16)
    return torch.where(nibbles > 7, nibbles - 16, nibbles).float()


def unpack_e2m1(packed: Tensor) -> Tensor:
    """Values of packed E2M1: bytes (R, C/2) to float32 (R, C); the top bit is the sign."""
    nibbles = torch.stack([packed & 0x0F, packed >> 4], dim=-1).reshape(packed.shape[0], -1)
    return torch.where(nibbles > 7, -1.0, 1.0) * E2M1[(nibbles & 7).long()]


def round_to_e2m1(value: Tensor) -> Tensor:
    """The nearest E2M1 numbers, ties to the even mantissa, saturating at 6."""
    bounds = (E2M1[1:] + E2M1[:-1]) / 2
    size = value.abs().clamp_max(E2M1_MAX)
    index = torch.bucketize(size, bounds)  # a tie goes down ...
    tie = (size == bounds[index.clamp_max(6)]) & (index % 2 == 1)
    return torch.sign(value) * E2M1[index + tie.long()]  # ... unless that mantissa is odd


def choose_precision(
    gpu: str | None, asked: Precision | None, *, widths: Mapping[str, int]
) -> tuple[Precision, str]:
    """The weight format for a GPU, and why.

    `asked` is kept where the GPU and the model's `widths` (name to number of columns) allow it;
    None picks. Raises ValueError, with the reason and a remedy, for a format that cannot run.
    """
    uneven = [f"{name} {width}" for name, width in widths.items() if width % INT4_BLOCK]
    if asked is None:
        return _pick(gpu, uneven)
    if gpu:
        card = find_gpu(gpu)
        if refusal := _refuse(card, asked):
            better, _ = _pick(gpu, uneven)
            raise ValueError(
                f"{asked} does not run on {gpu} ({card.architecture}): {refusal}. Use {better}"
            )
    if asked == "int4_awq" and uneven:
        raise ValueError(f"{uneven[0]} is no multiple of {INT4_BLOCK}: use fp8 or bf16")
    return asked, "asked for" + (f"; {gpu} runs it" if gpu else "; no GPU was named")


def _refuse(gpu: Gpu, precision: Precision) -> str | None:
    """Why a GPU does not run a format under TensorRT-LLM, if it does not."""
    if FORMATS[precision].arithmetic not in gpu.tflops:
        return {
            "fp8": "FP8 needs FP8 tensor cores, which came with Ada",
            "nvfp4": "NVFP4 needs FP4 tensor cores, which came with Blackwell",
        }[precision]
    if precision == "int4_awq" and gpu.architecture == "Blackwell":
        return "TensorRT-LLM's support matrix lists only floating-point formats for Blackwell"
    return None


def _pick(gpu: str | None, uneven: list[str]) -> tuple[Precision, str]:
    if gpu is None:
        return "fp8", "the default, for Ada, Hopper and Blackwell; name a --gpu to choose for it"
    card = find_gpu(gpu)
    named = f"{gpu} is {card.architecture}"
    if "fp4" in card.tflops:
        return "nvfp4", f"{named}: its FP4 tensor cores read a quarter of bfloat16's bytes"
    if "fp8" in card.tflops:
        reason = "its FP8 tensor cores halve what is read and double the arithmetic"
        return "fp8", f"{named}: {reason}"
    if uneven:
        return "bf16", f"{named}; INT4 does not fit: {uneven[0]} is no multiple of {INT4_BLOCK}"
    return "int4_awq", (
        f"{named}: it has no FP8 tensor cores, and one answer at a time is bound by reading the "
        "weights: four bits a weight is the least it can read"
    )
