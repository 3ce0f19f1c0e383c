"""Rollouts for small models: one prefill a group, and finished rows leave the batch.

Within a group lengths differ a lot, on purpose; `generate` carries every row to the end of the
longest. Dropping finished rows from the key-value cache halves the time of a rollout step on a CPU.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import torch

COMPACT_SHARE = 0.125  # of the rows: below that, copying the cache costs more than it saves


@torch.no_grad()
def sample_completions(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    group: int,
    max_new_tokens: int,
    temperature: float,
    eos_ids: Sequence[int],
    pad_id: int,
    uniforms: torch.Tensor | None = None,
) -> list[list[int]]:
    """Sample one completion for every row of `prompts`, end token included; greedily at 0.

    `prompts` holds token ids, each prompt `group` times in a row. `uniforms` (rows, max_new_tokens)
    decide the draws, as `row_uniforms` makes them; torch's generator does without. Raises
    ValueError when prompts come otherwise, or when the temperature is negative.
    """
    if temperature < 0:
        raise ValueError(f"a temperature of {temperature}: use 0, the likeliest token, or more")
    unique = [list(p) for p in prompts[::group]]
    if [p for p in unique for _ in range(group)] != [list(p) for p in prompts]:
        raise ValueError(f"prompts do not come in groups of {group}")
    device = model.device
    longest = max(len(p) for p in unique)
    ids = torch.tensor([[pad_id] * (longest - len(p)) + p for p in unique], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in unique], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    # The class's forward pass, not the model's own: accelerate wraps that in autocast, and casting
    # every weight at every token costs more on a CPU than bf16 saves.
    forward = functools.partial(type(model).forward, model, use_cache=True, logits_to_keep=1)
    output = forward(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
    )
    cache = output.past_key_values
    cache.batch_repeat_interleave(group)
    logits = output.logits[:, -1].repeat_interleave(group, 0)  # (R, V), R live rows
    mask = mask.repeat_interleave(group, 0)
    position = positions[:, -1:].repeat_interleave(group, 0)
    ends = torch.tensor(list(eos_ids), device=device)
    completions: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # which prompt each live row belongs to
    finished = torch.zeros(len(rows), dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        probabilities = torch.softmax(logits.float() / (temperature or 1), dim=-1)
        if not temperature:
            tokens = probabilities.argmax(-1, keepdim=True)  # (R, 1)
        elif uniforms is None:
            tokens = torch.multinomial(probabilities, 1)
        else:
            tokens = pick_tokens(probabilities, uniforms[rows, step].to(device))
        for row, token, over in zip(rows, tokens[:, 0].tolist(), finished.tolist(), strict=True):
            if not over:
                completions[row].append(token)
        finished |= torch.isin(tokens[:, 0], ends)
        if bool(finished.all()) or step == max_new_tokens - 1:
            break
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        position = position + 1
        if int(finished.sum()) >= COMPACT_SHARE * len(rows):
            live = torch.nonzero(~finished)[:, 0]
            cache.batch_select_indices(live)
            tokens, mask, position = tokens[live], mask[live], position[live]
            rows = [rows[i] for i in live.tolist()]
            finished = finished[live]
        output = forward(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
        )
        cache = output.past_key_values
        logits = output.logits[:, -1]
    return completions


def pick_tokens(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Tokens `(R, 1)` at which the cumulated probabilities `(R, V)` pass `uniforms` in [0, 1)."""
    cumulated = probabilities.double().cumsum(-1)
    marks = uniforms.double()[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, marks, right=True)


def row_uniforms(seed: int, step: int, rows: Sequence[int], length: int) -> torch.Tensor:
    """Uniform draws in [0, 1), `(rows, length)`: a random stream for every row of a step's batch.

    They depend on the row's place in the whole batch only, not on the process that holds it.
    """
    draws = torch.empty(len(rows), length)
    for index, row in enumerate(rows):
        digest = hashlib.sha256(f"{seed} {step} {row}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        draws[index] = torch.rand(length, generator=generator)
    return draws
