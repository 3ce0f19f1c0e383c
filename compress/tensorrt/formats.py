"""The weight formats of TensorRT-LLM checkpoints: layout, error bounds, and the GPUs they run on.

Weights are unpacked here by hand, not by the tool that packed them, so that a slip in packing
order, scale or folding shows. R and C are a weight's rows and columns.

AWQ takes a factor per input channel out of the weight, into `pre_quant_scale` or the norm before
it: what is packed is the source divided by that factor.

Which GPU runs which format follows the hardware support matrix in TensorRT-LLM's
`docs/source/features/quantization.md` (read at commit 09d4c79).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    group_size: ClassVar[int | None] = None
    """Weights of a row that share one scale, where the checkpoint's settings state it."""
    smoothed: ClassVar[bool] = False
    """Whether a factor per input channel is moved out of the weight."""
    needs_cuda: ClassVar[bool] = False
    """Whether ModelOpt runs its simulated forward pass on a GPU only."""

    def dequantise(self, packed: Packed) -> Tensor:
        """Values of a stored weight, float32 (R, C), before any factor is multiplied back in."""
        raise ValueError("bf16 weights are not quantised: read them as they are")

    def find_layout_faults(self, packed: Packed, source: Tensor) -> list[str]:
        """What is wrong with the types and shapes of a stored weight."""
        raise NotImplementedError

    def find_scale_faults(self, packed: Packed, source: Tensor, largest: float) -> list[str]:
        """What is wrong with its scales; `largest` is the magnitude that a shared scale covers."""
        raise NotImplementedError

    def error_bound(self, packed: Packed, source: Tensor) -> Tensor:
        """Half a step of the format around each number, and slack for bfloat16 along the way."""
        raise NotImplementedError


class Fp8(WeightFormat):
    """E4M3 (R, C) times one float32 `weight_scale` = largest magnitude / 448."""

    algorithm = "FP8"
    modelopt_config = "FP8_DEFAULT_CFG"
    arithmetic = "fp8"
    scales = ("weight_scale", "input_scale")
    least_bits = 8

    def dequantise(self, packed: Packed) -> Tensor:
        return packed.weight.float() * packed.weight_scale.float()

    def find_layout_faults(self, packed: Packed, source: Tensor) -> list[str]:
        faults = _weight_faults(packed, torch.float8_e4m3fn, source.shape)
        return faults + _scale_layout_faults(packed, 1, torch.float32)

    def find_scale_faults(self, packed: Packed, source: Tensor, largest: float) -> list[str]:
        scale, wanted = float(packed.weight_scale.float()), largest / E4M3_MAX
        if abs(scale - wanted) > 5e-3 * wanted:
            return [f"weight_scale is {scale:.4g}, not {wanted:.4g}"]
        return []

    def error_bound(self, packed: Packed, source: Tensor) -> Tensor:
        # three mantissa bits, or half the smallest subnormal step
        return source.abs() * (2**-4 + 2**-8) + packed.weight_scale.float() * 2**-10


class Int4Awq(WeightFormat):
    """Bytes (R/2, C), low nibble = even row, two's complement, times a scale for each block.

    `weight_scale` (R, C/128) is the block's largest magnitude / 7.
    """

    algorithm = "W4A16_AWQ"
    modelopt_config = "INT4_AWQ_CFG"
    scales = ("weight_scale",)
    least_bits = 4
    group_size = INT4_BLOCK
    smoothed = True

    def dequantise(self, packed: Packed) -> Tensor:
        return unpack_int4(packed.weight) * self._wide_scale(packed)

    def find_layout_faults(self, packed: Packed, source: Tensor) -> list[str]:
        rows, columns = source.shape
        faults = _weight_faults(packed, torch.uint8, (rows // 2, columns))
        return faults + _scale_layout_faults(packed, rows * (columns // INT4_BLOCK), None)

    def find_scale_faults(self, packed: Packed, source: Tensor, largest: float) -> list[str]:
        blocks = source.reshape(len(source), -1, INT4_BLOCK).abs().amax(-1) / 7
        if torch.allclose(packed.weight_scale.float(), blocks, rtol=2e-2, atol=1e-9):
            return []
        return ["weight_scale is not the largest magnitude of its block / 7"]

    def error_bound(self, packed: Packed, source: Tensor) -> Tensor:
        # The slack covers bfloat16 rounding of the weight, of the factor and of the norm it may
        # be folded into.
        return self._wide_scale(packed) * 0.5 + source.abs() * 2**-6

    @staticmethod
    def _wide_scale(packed: Packed) -> Tensor:
        return packed.weight_scale.float().repeat_interleave(INT4_BLOCK, dim=1)


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
    group_size = NVFP4_BLOCK
    needs_cuda = True

    def dequantise(self, packed: Packed) -> Tensor:
        return unpack_e2m1(packed.weight) * self._wide_scale(packed)

    def find_layout_faults(self, packed: Packed, source: Tensor) -> list[str]:
        rows, columns = source.shape
        faults = _weight_faults(packed, torch.uint8, (rows, columns // 2))
        faults += _scale_layout_faults(packed, rows * (columns // NVFP4_BLOCK), torch.float8_e4m3fn)
        if packed.weight_scale_2 is None or packed.weight_scale_2.numel() != 1:
            faults.append("weight_scale_2 is not one number")
        return faults

    def find_scale_faults(self, packed: Packed, source: Tensor, largest: float) -> list[str]:
        assert packed.weight_scale_2 is not None
        second, wanted = float(packed.weight_scale_2), largest / (E2M1_MAX * E4M3_MAX)
        if abs(second - wanted) > 5e-3 * wanted:
            return [f"weight_scale_2 is {second:.4g}, not {wanted:.4g}"]
        scale = packed.weight_scale.float()
        blocks = source.reshape(len(source), -1, NVFP4_BLOCK).abs().amax(-1)
        # E4M3's half step, and half its smallest number; an empty block may say anything.
        slack = blocks / E2M1_MAX * (2**-4 + 2**-8) + second * 2**-10
        if bool(((scale * second - blocks / E2M1_MAX).abs() <= slack)[blocks > 0].all()):
            return []
        return ["weight_scale is not the largest magnitude of its block / 6"]

    def error_bound(self, packed: Packed, source: Tensor) -> Tensor:
        wide = self._wide_scale(packed)
        # Steps of E2M1 are 0.5 up to 2, 1 up to 4 and 2 up to 6; a block scale rounded down by up
        # to 1/16 clips its largest number by that much.
        size = (source.abs() / wide.clamp_min(1e-30)).clamp_max(E2M1_MAX)
        step = torch.where(size <= 2, 0.5, torch.where(size <= 4, 1.0, 2.0))
        clipped = (source.abs() - E2M1_MAX * wide).clamp_min(0.0)
        return wide * step * 0.5 + clipped + source.abs() * 2**-7

    @staticmethod
    def _wide_scale(packed: Packed) -> Tensor:
        assert packed.weight_scale_2 is not None
        whole = packed.weight_scale.float() * packed.weight_scale_2.float()
        return whole.repeat_interleave(NVFP4_BLOCK, dim=1)


FORMATS: Mapping[Precision, WeightFormat] = {
    "fp8": Fp8(),
    "int4_awq": Int4Awq(),
    "nvfp4": Nvfp4(),
    "bf16": WeightFormat(),
}


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
    form = FORMATS[precision]
    faults = form.find_layout_faults(packed, source)
    if faults:
        return Judgement(faults=tuple(faults))
    if packed.input_scale is not None and "input_scale" in form.scales:
        scale = packed.input_scale
        if not bool(torch.isfinite(scale).all() & (scale > 0).all()):
            faults.append("input_scale is not positive and finite")
    if known is None or bool(known.all()):
        largest = float(source.abs().max()) if shared_magnitude is None else shared_magnitude
        faults += form.find_scale_faults(packed, source, largest)
    value, bound = form.dequantise(packed), form.error_bound(packed, source)
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


def _weight_faults(packed: Packed, dtype: torch.dtype, shape: tuple[int, ...]) -> list[str]:
    weight = packed.weight
    if weight.dtype == dtype and weight.shape == shape:
        return []
    return [f"weight is {weight.dtype} {tuple(weight.shape)}"]


def _scale_layout_faults(packed: Packed, count: int, dtype: torch.dtype | None) -> list[str]:
    scale = packed.weight_scale
    if scale.numel() == count and dtype in (None, scale.dtype):
        return []
    return [f"weight_scale is {scale.dtype} {tuple(scale.shape)}"]
