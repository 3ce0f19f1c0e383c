"""Several continuations of one text in one sequence, so that the text is computed once.

A row holds the shared text, then its branches. A branch sees the text and itself, never another
branch, and its positions count on from the text: its logits are those it would have alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class PackedBranches:
    """Rows for one forward pass."""

    input_ids: torch.Tensor  # (B, T)
    position_ids: torch.Tensor  # (B, T)
    attention_mask: torch.Tensor  # (B, 1, T, T), query by key
    starts: list[list[int]]
    """Position of each branch's first token in the flattened `input_ids`, by row."""


def pack_branches(
    shared: Sequence[Sequence[int]],
    branches: Sequence[Sequence[Sequence[int]]],
    *,
    pad_id: int,
    device: torch.device | str = "cpu",
) -> PackedBranches:
    """Pack token ids: row i is `shared[i]` and then every one of `branches[i]`."""
    sizes = [len(text) + sum(map(len, own)) for text, own in zip(shared, branches, strict=True)]
    width = max(sizes)
    input_ids = torch.full((len(sizes), width), pad_id, device=device)
    position_ids = torch.zeros_like(input_ids)
    branch_of = torch.full_like(input_ids, -1)  # 0: the shared text, 1..: branches, -1: padding
    starts: list[list[int]] = []
    for row, (text, own) in enumerate(zip(shared, branches, strict=True)):
        starts.append([])
        start = 0
        for number, ids in enumerate([text, *own]):
            end = start + len(ids)
            first = len(text) if number else 0
            input_ids[row, start:end] = torch.tensor(ids, dtype=input_ids.dtype)
            position_ids[row, start:end] = torch.arange(first, first + len(ids))
            branch_of[row, start:end] = number
            if number:
                starts[row].append(row * width + start)
            start = end
    return PackedBranches(input_ids, position_ids, branch_mask(branch_of), starts)


def branch_mask(branch_of: torch.Tensor) -> torch.Tensor:
    """Who sees whom: `(B, T)` branch numbers to a boolean mask `(B, 1, T, T)`, query by key.

    A token sees itself, and what stands before it in the shared text (0) or in its own branch.
    """
    length = branch_of.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=branch_of.device).tril()
    query, key = branch_of[:, :, None], branch_of[:, None, :]
    return (causal & ((query == key) | (key == 0)))[:, None]
