"""The weight formats of TensorRT-LLM checkpoints: how they are laid out, unpacked and judged.

Everything is unpacked here by hand, not by the tool that packed it, so that a slip in packing
order, scale or folding shows. R and C are a weight's rows and columns.

- FP8: E4M3 (R, C) times one float32 `weight_scale` = largest magnitude / 448.
- INT4 (AWQ): bytes (R/2, C), low nibble = even row, two's complement, times `weight_scale`
  (R, C/128) = the block's largest magnitude / 7.
- INT8 (SmoothQuant): int8 (R, C) times `weight_scale` (R,) = the row's largest magnitude / 127.
- NVFP4: bytes (R, C/2), low nibble = even column, E2M1, times an E4M3 `weight_scale` (R, C/16)
  = the block's largest magnitude / 6 / `weight_scale_2`, times one float32 `weight_scale_2` =
  largest magnitude / (6 · 448).

AWQ and SmoothQuant take a factor per input channel out of the weight, into `pre_quant_scale`
or the norm before it: what is packed is the source divided by that factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp8", "int4_awq", "int8_sq", "nvfp4", "bf16"]

QUANT_ALGO: Mapping[Precision, str | None] = {
    "fp8": "FP8",
    "int4_awq": "W4A16_AWQ",
    "int8_sq": "W8A8_SQ_PER_CHANNEL",
    "nvfp4": "NVFP4",
    "bf16": None,
}
SCALES: Mapping[Precision, tuple[str, ...]] = {
    "fp8": ("weight_scale", "input_scale"),
    "int4_awq": ("weight_scale",),
    "int8_sq": ("weight_scale", "input_scale"),
    "nvfp4": ("weight_scale", "weight_scale_2", "input_scale"),
    "bf16": (),
}
LEAST_BITS: Mapping[Precision, float] = {
    "fp8": 8,
    "int4_awq": 4,
    "int8_sq": 8,
    "nvfp4": 4.5,
    "bf16": 16,
}
"""Bits a quantised weight takes; the embedding, which stays in bfloat16, takes more."""

SMOOTHED: frozenset[Precision] = frozenset({"int4_awq", "int8_sq"})
"""Formats that move a factor per input channel out of the weight."""

INT4_BLOCK = 128
NVFP4_BLOCK = 16
E4M3_MAX = 448.0
E2M1_MAX = 6.0
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
GROUP_SIZE: Mapping[Precision, int] = {"int4_awq": INT4_BLOCK, "nvfp4": NVFP4_BLOCK}


@dataclass(frozen=True, slots=True)
class Packed:
    """One quantised weight as stored; the scales a format does not have are None."""

    weight: Tensor
    weight_scale: Tensor
    weight_scale_2: Tensor | None = None
    input_scale: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """How a weight compares with its source: error over its bound, and what is wrong."""

    error_of_bound: float = 0.0
    gain_error: float = 0.0
    faults: tuple[str, ...] = ()


def dequantise(packed: Packed, precision: Precision) -> Tensor:
    """Values of a stored weight, float32 (R, C), before any factor is multiplied back in."""
    weight, scale = packed.weight, packed.weight_scale.float()
    if precision == "fp8":
        return weight.float() * scale
    if precision == "int4_awq":
        return unpack_int4(weight) * scale.repeat_interleave(INT4_BLOCK, dim=1)
    if precision == "int8_sq":
        return weight.float() * scale.reshape(-1, 1)
    if precision == "nvfp4":
        assert packed.weight_scale_2 is not None
        whole = scale * packed.weight_scale_2.float()
        return unpack_e2m1(weight) * whole.repeat_interleave(NVFP4_BLOCK, dim=1)
    raise ValueError(f"{precision} weights are not quantised: read them as they are")


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


def judge(
    packed: Packed,
    source: Tensor,
    precision: Precision,
    *,
    known: Tensor | None = None,
    shared_magnitude: float | None = None,
) -> Judgement:
    """Compare a stored weight with `source`, float32 (R, C), its factor already divided out.

    `known` (C,) marks channels whose factor can be told; the others are not compared.
    `shared_magnitude` is the largest magnitude of all weights that share one scale, where a
    format makes projections that read the same input share it.
    """
    faults = _layout_faults(packed, source, precision)
    if faults:
        return Judgement(faults=tuple(faults))
    whole = known is None or bool(known.all())
    largest = float(source.abs().max()) if shared_magnitude is None else shared_magnitude
    if packed.input_scale is not None and precision != "int4_awq":
        scale = packed.input_scale
        if not bool(torch.isfinite(scale).all() & (scale > 0).all()):
            faults.append("input_scale is not positive and finite")
    if whole:
        faults += _scale_faults(packed, source, precision, largest)
    value = dequantise(packed, precision)
    bound = _error_bound(packed, source, precision)
    if known is not None:
        source, value = torch.where(known, source, 0.0), torch.where(known, value, 0.0)
    if not bool(torch.isfinite(value).all()):
        return Judgement(faults=(*faults, "weight holds numbers that are not finite"))
    error = float(((value - source).abs() / bound.clamp_min(1e-12)).max())
    gain = abs(float((value * source).sum() / source.square().sum()) - 1)
    if error > 1:
        faults.append(f"weight is {error:.3g} times its error bound away from its parent")
    if gain > 0.02:
        faults.append(f"weight is off by {gain:.1%} overall")
    return Judgement(error, gain, tuple(faults))


def _layout_faults(packed: Packed, source: Tensor, precision: Precision) -> list[str]:
    rows, columns = source.shape
    weight, scale, scale_2 = packed.weight, packed.weight_scale, packed.weight_scale_2
    e4m3 = torch.float8_e4m3fn
    layout = {
        "fp8": (e4m3, (rows, columns), (torch.float32,), 1),
        "int4_awq": (torch.uint8, (rows // 2, columns), None, rows * (columns // INT4_BLOCK)),
        "int8_sq": (torch.int8, (rows, columns), (torch.float32,), rows),
        "nvfp4": (torch.uint8, (rows, columns // 2), (e4m3,), rows * (columns // NVFP4_BLOCK)),
    }
    dtype, shape, scale_dtypes, scales = layout[precision]
    faults = []
    if weight.dtype != dtype or weight.shape != shape:
        faults.append(f"weight is {weight.dtype} {tuple(weight.shape)}")
    if scale.numel() != scales or (scale_dtypes and scale.dtype not in scale_dtypes):
        faults.append(f"weight_scale is {scale.dtype} {tuple(scale.shape)}")
    if precision == "nvfp4" and (scale_2 is None or scale_2.numel() != 1):
        faults.append("weight_scale_2 is not one number")
    return faults


def _scale_faults(
    packed: Packed, source: Tensor, precision: Precision, largest: float
) -> list[str]:
    scale = packed.weight_scale.float()
    rows = source.shape[0]
    if precision == "fp8":
        wanted = largest / E4M3_MAX
        if abs(float(scale) - wanted) > 5e-3 * wanted:
            return [f"weight_scale is {float(scale):.4g}, not {wanted:.4g}"]
    if precision == "int4_awq":
        blocks = source.reshape(rows, -1, INT4_BLOCK).abs().amax(-1) / 7
        if not torch.allclose(scale, blocks, rtol=2e-2, atol=1e-9):
            return ["weight_scale is not the largest magnitude of its block / 7"]
    if precision == "int8_sq":
        wide = source.abs().amax(-1) / 127
        if not torch.allclose(scale.reshape(-1), wide, rtol=2e-2, atol=1e-9):
            return ["weight_scale is not the largest magnitude of its row / 127"]
    if precision == "nvfp4":
        assert packed.weight_scale_2 is not None
        second, wanted = float(packed.weight_scale_2), largest / (E2M1_MAX * E4M3_MAX)
        if abs(second - wanted) > 5e-3 * wanted:
            return [f"weight_scale_2 is {second:.4g}, not {wanted:.4g}"]
        blocks = source.reshape(rows, -1, NVFP4_BLOCK).abs().amax(-1)
        # E4M3's half step, and half its smallest number; an empty block may say anything.
        slack = blocks / E2M1_MAX * (2**-4 + 2**-8) + second * 2**-10
        if not bool(((scale * second - blocks / E2M1_MAX).abs() <= slack)[blocks > 0].all()):
            return ["weight_scale is not the largest magnitude of its block / 6"]
    return []


def _error_bound(packed: Packed, source: Tensor, precision: Precision) -> Tensor:
    """Half a step of the format around each number, and slack for bfloat16 along the way."""
    scale = packed.weight_scale.float()
    if precision == "fp8":  # three mantissa bits, or half the smallest subnormal step
        return source.abs() * (2**-4 + 2**-8) + scale * 2**-10
    # The slack covers bfloat16 rounding of the weight, of the factor and of the norm it may
    # be folded into.
    if precision == "int4_awq":
        return scale.repeat_interleave(INT4_BLOCK, dim=1) * 0.5 + source.abs() * 2**-6
    if precision == "int8_sq":
        return scale.reshape(-1, 1) * 0.5 + source.abs() * 2**-6
    assert packed.weight_scale_2 is not None
    wide = (scale * packed.weight_scale_2.float()).repeat_interleave(NVFP4_BLOCK, dim=1)
    # Steps of E2M1 are 0.5 up to 2, 1 up to 4 and 2 up to 6; a block scale rounded down by up
    # to 1/16 clips its largest number by that much.
    size = (source.abs() / wide.clamp_min(1e-30)).clamp_max(E2M1_MAX)
    step = torch.where(size <= 2, 0.5, torch.where(size <= 4, 1.0, 2.0))
    clipped = (source.abs() - E2M1_MAX * wide).clamp_min(0.0)
    return wide * step * 0.5 + clipped + source.abs() * 2**-7
