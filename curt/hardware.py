"""GPUs by their makers' data sheets: what each holds, how fast it reads and what it multiplies.

The one table that training plans, TensorRT-LLM exports and the sizing table derive from. And
whether this machine multiplies in bf16.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

logger = logging.getLogger(__name__)

Architecture = Literal["Ampere", "Ada", "Hopper", "Blackwell"]
Arithmetic = Literal["bf16", "fp8", "fp4"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as its data sheet describes it."""

    name: str
    architecture: Architecture
    memory_gb: float
    """As sold, 10^9 bytes."""
    memory_gib: float
    """As its driver reports it, 2^30 bytes."""
    bandwidth_gb_s: float
    """Of its own memory, 10^9 bytes a second."""
    tflops: Mapping[Arithmetic, float]
    """Dense matrix products (no sparsity), 10^12 operations a second, by the number formats that
    its tensor cores multiply."""
    link_gb_s: float = 25.0
    """To the other GPUs of its machine, one direction, 10^9 bytes a second."""


HOPPER: Mapping[Arithmetic, float] = {"bf16": 989, "fp8": 1979}
BLACKWELL: Mapping[Arithmetic, float] = {"bf16": 2250, "fp8": 4500, "fp4": 9000}

GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("H100", "Hopper", 80, 79.6, 3350, HOPPER, 450),
        Gpu("H200", "Hopper", 141, 140.4, 4800, HOPPER, 450),
        Gpu("B200", "Blackwell", 180, 179.0, 8000, BLACKWELL, 900),
        Gpu("A100", "Ampere", 80, 80.0, 2039, {"bf16": 312}, 300),
        Gpu("A100-40G", "Ampere", 40, 39.6, 1555, {"bf16": 312}, 300),
        Gpu("L40S", "Ada", 48, 45.0, 864, {"bf16": 362, "fp8": 733}),
        Gpu("A10", "Ampere", 24, 22.5, 600, {"bf16": 125}),
        Gpu("L4", "Ada", 24, 22.5, 300, {"bf16": 121, "fp8": 242}),
        Gpu("RTX4090", "Ada", 24, 24.0, 1008, {"bf16": 165, "fp8": 330}),
    )
}


def find_gpu(name: str) -> Gpu:
    """The GPU of a name, however its letters are cased. Raises ValueError on an unknown one."""
    found = {known.lower(): gpu for known, gpu in GPUS.items()}.get(name.lower())
    if found is None:
        raise ValueError(f"GPU {name!r} is not in the table: use one of {', '.join(GPUS)}")
    return found


@cache
def choose_bf16(wanted: bool) -> bool:
    """Whether to multiply in bf16: where it is wanted and this machine has such products.

    Without them (x86 before AMX and AVX-512 BF16) torch emulates each, ten times slower than fp32.
    """
    import torch

    if not wanted or torch.cuda.is_available():
        return wanted
    has = torch.cpu.get_capabilities()
    if any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):  # the last is Arm's
        return True
    logger.info("bf16 set aside for fp32: %s has no products in it", has.get("cpu_name", "the CPU"))
    return False
