"""What a device holds and how fast it is, from its maker's data sheet."""

from __future__ import annotations

import re

from curt.config import FrozenModel
from curt.hardware import GPUS

GIB = 2**30


class Device(FrozenModel):
    """One accelerator."""

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
