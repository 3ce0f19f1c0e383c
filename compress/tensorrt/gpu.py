"""Which weight format a GPU runs under TensorRT-LLM, what it holds and how fast it reads.

The formats are those of the hardware support matrix in TensorRT-LLM's
`docs/source/features/quantization.md` (read at commit 09d4c79) and, for INT8 SmoothQuant, of
ModelOpt's support matrix. The figures are the vendor's data sheets, dense (no sparsity).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from compress.tensorrt.formats import INT4_BLOCK, Precision

Architecture = Literal["Ampere", "Ada", "Hopper", "Blackwell"]
GpuName = Literal["h200", "h100", "l4", "l40s", "a10", "a100", "b200"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: what it runs, holds and does."""

    architecture: Architecture
    memory_gb: float
    bandwidth_gb_per_s: float
    bf16_tflops: float


GPUS: Mapping[GpuName, Gpu] = {
    "h200": Gpu("Hopper", 141, 4800, 989),
    "h100": Gpu("Hopper", 80, 3350, 989),
    "l4": Gpu("Ada", 24, 300, 121),
    "l40s": Gpu("Ada", 48, 864, 362),
    "a10": Gpu("Ampere", 24, 600, 125),
    "a100": Gpu("Ampere", 80, 2039, 312),
    "b200": Gpu("Blackwell", 180, 8000, 2250),
}

# Multiply-adds a second, against bfloat16. INT4 weights are widened to bfloat16 first.
SPEED_UP: Mapping[Precision, float] = {
    "bf16": 1.0,
    "int4_awq": 1.0,
    "int8_sq": 2.0,
    "fp8": 2.0,
    "nvfp4": 4.0,
}

_NO_FP8 = "FP8 needs FP8 tensor cores, which came with Ada"
_NO_FP4 = "NVFP4 needs FP4 tensor cores, which came with Blackwell"
_ONLY_FLOAT = "TensorRT-LLM's support matrix lists only floating-point formats for Blackwell"
_REFUSED: Mapping[Architecture, Mapping[Precision, str]] = {
    "Ampere": {"fp8": _NO_FP8, "nvfp4": _NO_FP4},
    "Ada": {"nvfp4": _NO_FP4},
    "Hopper": {"nvfp4": _NO_FP4},
    "Blackwell": {"int4_awq": _ONLY_FLOAT, "int8_sq": _ONLY_FLOAT},
}
_PREFERRED: Mapping[Architecture, tuple[Precision, str]] = {
    "Ampere": (
        "int4_awq",
        "it has no FP8 tensor cores, and one answer at a time is bound by reading the weights: "
        "four bits a weight is the least it can read",
    ),
    "Ada": ("fp8", "its FP8 tensor cores halve what is read and double the arithmetic"),
    "Hopper": ("fp8", "its FP8 tensor cores halve what is read and double the arithmetic"),
    "Blackwell": ("nvfp4", "its FP4 tensor cores read a quarter of bfloat16's bytes"),
}
_NO_TORCH_INT8 = (
    "TensorRT-LLM's PyTorch backend has no INT8 SmoothQuant; only the engine builder of 1.2.1 "
    "and older runs it: add --engine_checkpoint true, or use another precision"
)


def choose_precision(
    gpu: GpuName | None,
    asked: Precision | None,
    *,
    widths: Mapping[str, int],
    engine_checkpoint: bool,
) -> tuple[Precision, str]:
    """The weight format for a GPU, and why.

    `asked` is kept where the GPU, the model's `widths` (name to number of columns) and the
    kind of checkpoint allow it; None picks. Raises ValueError, with the reason and a remedy,
    for a format that cannot run.
    """
    uneven = [f"{name} {width}" for name, width in widths.items() if width % INT4_BLOCK]
    if asked is None:
        return _pick(gpu, uneven, engine_checkpoint)
    if gpu:
        architecture = GPUS[gpu].architecture
        refusal = _REFUSED[architecture].get(asked)
        if refusal:
            better, _ = _pick(gpu, uneven, engine_checkpoint)
            raise ValueError(
                f"{asked} does not run on {gpu} ({architecture}): {refusal}. Use {better}"
            )
    if asked == "int4_awq" and uneven:
        raise ValueError(f"{uneven[0]} is no multiple of {INT4_BLOCK}: use fp8 or bf16")
    if asked == "int8_sq" and not engine_checkpoint:
        raise ValueError(f"int8_sq: {_NO_TORCH_INT8}")
    return asked, "asked for" + (f"; {gpu} runs it" if gpu else "; no GPU was named")


def _pick(gpu: GpuName | None, uneven: list[str], engine_checkpoint: bool) -> tuple[Precision, str]:
    if gpu is None:
        return "fp8", "the default, for Ada, Hopper and Blackwell; name a --gpu to choose for it"
    architecture = GPUS[gpu].architecture
    precision, reason = _PREFERRED[architecture]
    if precision == "int4_awq" and uneven:
        instead: Precision = "int8_sq" if engine_checkpoint else "bf16"
        why = f"INT4 does not fit: {uneven[0]} is no multiple of {INT4_BLOCK}"
        if not engine_checkpoint:
            why += "; INT8 SmoothQuant would need --engine_checkpoint true"
        return instead, f"{gpu} is {architecture}; {why}"
    return precision, f"{gpu} is {architecture}: {reason}"
