"""Several continuations of one text in one sequence, so that the text is computed once.

A row holds the shared text, then its branches. A branch sees the text and itself, never another
branch, and its positions count on from the text: its logits are those it would have alone. Whether
a model does read rows so is tried on it (`can_pack`), not guessed from its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_LONGEST_PROBE = 1024  # tokens of a sliding window that is tried out; wider ones are believed
_TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.2, torch.float16: 0.1}  # nats


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


def branch_logits(
    model: Any,
    input_ids: torch.Tensor,
    sources: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits `(N, V)` at the flat positions `sources` of packed rows; of plain rows without a mask.

    By the model's own forward pass, so that whatever scales or caps its logits does so here; only
    the output layer is held to the positions wanted.
    """
    inputs: dict[str, Any] = {"input_ids": input_ids}
    if attention_mask is not None:
        inputs["position_ids"] = position_ids
        inputs["attention_mask"] = _fit_mask(model, attention_mask, position_ids)
    choose = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, given: (given[0].flatten(0, 1)[sources],)
    )
    try:
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
    finally:
        choose.remove()
    return logits


@torch.no_grad()
def can_pack(model: Any) -> bool:
    """Whether branches have the logits in one row that they have alone, in this very model.

    A model with layers that are no attention has not; of the others two branches are tried.
    """
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ())
    if (
        getattr(model, "_is_stateful", False)
        or kinds - {"full_attention", "sliding_attention"}
        or config._attn_implementation not in ("sdpa", "eager", "products")
    ):
        return False
    window = _window(config)
    count = 24 + (window if window <= _LONGEST_PROBE else 0)
    generator = torch.Generator().manual_seed(0)
    shared, *own = (
        torch.randint(config.vocab_size, (size,), generator=generator).tolist()
        for size in (count, 6, 9)
    )
    was_training = model.training
    model.eval()
    found = []
    for texts, branches in (([shared], [own]), ([shared] * 2, [[branch] for branch in own])):
        rows = pack_branches(texts, branches, pad_id=0, device=model.device)
        starts = [start for row in rows.starts for start in row]
        sources = [
            start + i for start, branch in zip(starts, own, strict=True) for i in range(len(branch))
        ]
        packed = (rows.position_ids, rows.attention_mask) if len(texts) == 1 else ()
        logits = branch_logits(model, rows.input_ids, torch.tensor(sources), *packed)
        found.append(logits.float().log_softmax(-1))
    model.train(was_training)
    return bool((found[0] - found[1]).abs().max() < _TOLERANCE.get(model.dtype, 0.2))


def _window(config: Any) -> int:
    """Tokens that the model's sliding attention reaches back, 0 where it has none."""
    kinds = getattr(config, "layer_types", None)
    if kinds and "sliding_attention" not in kinds:
        return 0
    return getattr(config, "sliding_window", None) or 0


def _fit_mask(model: Any, mask: torch.Tensor, positions: torch.Tensor | None) -> Any:
    """A mask of branches in the form that the model's layers read."""
    config = model.config
    assert positions is not None
    masks = {"full_attention": mask}
    if window := _window(config):
        near = positions[:, None, :, None] - positions[:, None, None, :] < window
        masks["sliding_attention"] = mask & near
    if config._attn_implementation == "eager":  # which adds the mask to the scores
        lowest = torch.finfo(model.dtype).min
        masks = {
            kind: torch.zeros_like(seen, dtype=model.dtype).masked_fill(~seen, lowest)
            for kind, seen in masks.items()
        }
    if getattr(config, "layer_types", None) and window:
        return masks
    return masks["sliding_attention" if window else "full_attention"]
