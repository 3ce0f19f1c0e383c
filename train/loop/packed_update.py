"""The update's forward pass with every prompt computed once, not once a completion.

Facts are several times longer than short reasoning, so most of an update goes into computing the
same prompt for each of its group's completions. Here a group is one sequence: the prompt, then
the completions as its branches (`train.branches`). The log-probabilities are those of TRL's own
pass to rounding.
"""

from __future__ import annotations

from typing import Any

import torch

from train.branches import branch_logits, pack_branches


def packed_log_probs(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_length: int,
    *,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies of completion tokens at a temperature, both `(B, C)`.

    `input_ids` and `attention_mask` are `(B, P + C)`: prompts padded on the left, completions on
    the right; rows of one prompt may come in any order. Padding gets zeros.
    """
    rows, width = input_ids.shape
    prompt_width = width - completion_length
    prompts, masks = input_ids[:, :prompt_width], attention_mask[:, :prompt_width].bool()
    completions = input_ids[:, prompt_width:]
    filled = attention_mask[:, prompt_width:].bool()
    tokens = [row[mask].tolist() for row, mask in zip(completions, filled, strict=True)]
    groups: dict[tuple[int, ...], list[int]] = {}  # rows of each prompt; TRL shuffles them
    for row in range(rows):
        groups.setdefault(tuple(prompts[row][masks[row]].tolist()), []).append(row)
    packed = pack_branches(
        list(groups),
        # A completion's last token predicts nothing.
        [[tokens[row][:-1] for row in members] for members in groups.values()],
        pad_id=0,
        device=input_ids.device,
    )
    sources = torch.zeros_like(completions)  # flat positions whose logits predict each token
    parts = zip(groups.items(), packed.starts, strict=True)
    for number, ((prompt, members), starts) in enumerate(parts):
        # The prompt's last token predicts the first of every completion.
        last = number * packed.input_ids.shape[1] + len(prompt) - 1
        for row, start in zip(members, starts, strict=True):
            size = max(0, len(tokens[row]) - 1)
            sources[row, 0] = last
            sources[row, 1 : size + 1] = torch.arange(start, start + size)
    logits = branch_logits(  # (N, V)
        model, packed.input_ids, sources[filled], packed.position_ids, packed.attention_mask
    )
    logits = logits.float() / temperature
    spread = torch.log_softmax(logits, dim=-1)  # (N, V)
    chosen = spread.gather(1, completions[filled][:, None])[:, 0]
    log_probs = chosen.new_zeros(completions.shape).masked_scatter(filled, chosen)
    with torch.no_grad():
        entropy = -(spread.exp() * spread).sum(-1)
        entropies = torch.zeros_like(log_probs).masked_scatter(filled, entropy)
    return log_probs, entropies
