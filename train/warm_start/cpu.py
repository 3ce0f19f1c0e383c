"""A training step on a CPU, where moving memory costs more than arithmetic."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from typing import Any

import torch
from torch.func import functional_call
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next one: clean pages cost a fifth of a step."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
        libc.mallopt(_M_MMAP_MAX, 0)


class _Work(torch.nn.Module):
    """What `functional_call` can call: work that uses parts of a module."""

    def __init__(self, module: torch.nn.Module, work: Callable[[], torch.Tensor]) -> None:
        super().__init__()
        self.module, self.work = module, work

    def forward(self) -> torch.Tensor:
        return self.work()


def call_in_bf16(module: torch.nn.Module, work: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Run `work`, which calls parts of `module`, with the module's weights rounded to bf16.

    Gradients reach the weights themselves, which stay in float32. Unlike under autocast, all that
    lies between the matrix products is in bf16 too, and each weight is rounded only once.
    """
    weights = {f"module.{name}": p.to(torch.bfloat16) for name, p in module.named_parameters()}
    result: torch.Tensor = functional_call(_Work(module, work), weights, ())
    return result


def attend_by_products(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as two plain matrix products, for `(B, H, T, D)` and a boolean mask.

    torch's fused kernel for CPUs takes four times as long backwards under a mask. Heads that share
    keys and values are rows of one product.
    """
    batch, heads, length, width = query.shape
    if attention_mask is None or dropout or key.shape[2] != length:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return output, None
    groups = batch * key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    rows = (query * scale).reshape(groups, -1, width)
    scores = rows @ key.reshape(groups, length, width).transpose(1, 2)
    unseen = torch.zeros_like(attention_mask, dtype=scores.dtype)
    unseen.masked_fill_(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.view(batch, heads, length, length).add_(unseen).softmax(-1)
    output = weights.view(groups, -1, length) @ value.reshape(groups, length, width)
    return output.view(batch, heads, length, width).transpose(1, 2), None


AttentionInterface.register("products", attend_by_products)
