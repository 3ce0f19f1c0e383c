"""What a device holds and how fast it is, from its maker's data sheet or from a measurement."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from curt.hardware import GPUS

if TYPE_CHECKING:
    from collections.abc import Callable

GIB = 2**30


class Device(BaseModel):
    """One accelerator, or this machine's processor."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    memory_gib: float
    """As its driver reports it."""
    teraflops: float
    """Dense bf16 matrix products, without sparsity, 10^12 a second."""
    bandwidth_gb_s: float
    """Of its own memory, 10^9 bytes a second."""
    link_gb_s: float = 25.0
    """To the other devices, one direction."""
    host_gb_s: float = 25.0
    """To the host's memory, one direction."""
    dispatch_us: float = 5.0
    """Host time to launch one operation outside a captured graph."""


DEVICES = {
    name: Device(
        memory_gib=gpu.memory_gib,
        teraflops=gpu.tflops["bf16"],
        bandwidth_gb_s=gpu.bandwidth_gb_s,
        link_gb_s=gpu.link_gb_s,
    )
    for name, gpu in GPUS.items()
}


def parse_gpus(text: str, own: Device | None = None) -> tuple[int, str, Device]:
    """Count, name and figures of "8xH100"; `own` stands for a name that isn't in the table.

    Raises ValueError on another form, or an unknown name without figures of its own.
    """
    match = re.fullmatch(r"(\d+)\s*[x×]\s*([\w.-]+)", text.strip())
    if not match or int(match[1]) < 1:
        raise ValueError(f"gpus {text!r}: write a count and a name, such as 8xH100")
    known = {name.lower(): (name, device) for name, device in DEVICES.items()}
    if own is not None:
        return int(match[1]), match[2], own
    if match[2].lower() not in known:
        raise ValueError(
            f"gpus {text!r}: know {', '.join(DEVICES)}; give the figures of others with --device"
        )
    return int(match[1]), *known[match[2].lower()]


def measure_cpu(memory_gib: float, *, bf16: bool = False) -> Device:
    """This machine's processor: the best of several short runs of each kind, about two seconds.

    Matrix products at the shape of a small model's update, copies larger than the cache, and
    launches of a linear layer and a norm on one row.
    """
    import torch

    dtype = torch.bfloat16 if bf16 else torch.float32
    rows, inner = 4096, 256
    left, right = torch.randn(rows, inner).to(dtype), torch.randn(inner, inner).to(dtype)
    product_s = _best_seconds(lambda: left @ right)
    block = torch.zeros(32 * 2**20)  # 128 MiB
    copy_s = _best_seconds(block.clone, repeats=5)
    row = torch.randn(1, inner)
    layer, norm = torch.nn.Linear(inner, inner), torch.nn.RMSNorm(inner)
    with torch.no_grad():
        launch_s = _best_seconds(lambda: norm(layer(row)))
    operations = 8  # aten operations of the two, as the dispatcher sees them
    return Device(
        memory_gib=memory_gib,
        teraflops=2 * rows * inner**2 / product_s / 1e12,
        bandwidth_gb_s=2 * block.nbytes / copy_s / 1e9,
        dispatch_us=launch_s / operations * 1e6,
    )


def _best_seconds(work: Callable[[], object], repeats: int = 50) -> float:
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best
