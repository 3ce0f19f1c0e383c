"""The update's forward pass with every prompt computed once, not once a completion.

Facts are several times longer than short reasoning, so most of an update goes into computing the
same prompt for each of its group's completions. Here a group is one sequence: the prompt, then
the completions as branches that see the prompt and themselves
(`train.warm_start.loss.branch_mask`). The log-probabilities are those of TRL's own pass to
rounding.
"""

from __future__ import annotations

from typing import Any

import torch

from train.warm_start.loss import branch_mask


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
    lengths = attention_mask[:, prompt_width:].sum(1).tolist()
    groups: dict[tuple[int, ...], list[int]] = {}  # rows of each prompt; TRL shuffles them
    for row in range(rows):
        groups.setdefault(tuple(prompts[row][masks[row]].tolist()), []).append(row)
    sizes = [len(p) + sum(max(0, lengths[r] - 1) for r in rs) for p, rs in groups.items()]
    packed = input_ids.new_zeros(len(sizes), max(sizes))
    positions = torch.zeros_like(packed)
    branch_of = torch.full_like(packed, -1)
    sources = torch.zeros_like(completions)  # flat positions whose logits predict each token
    for number, (prompt, members) in enumerate(groups.items()):
        facts, base = len(prompt), number * packed.shape[1]
        packed[number, :facts] = torch.tensor(prompt)
        positions[number, :facts] = torch.arange(facts)
        branch_of[number, :facts] = 0
        start = facts
        for branch, row in enumerate(members, start=1):
            # The prompt's last token predicts a completion's first; its last predicts nothing.
            size = max(0, lengths[row] - 1)
            end = start + size
            packed[number, start:end] = completions[row, :size]
            positions[number, start:end] = torch.arange(facts, facts + size)
            branch_of[number, start:end] = branch
            sources[row, 0] = base + facts - 1
            sources[row, 1 : size + 1] = torch.arange(base + start, base + end)
            start = end
    hidden = model.get_decoder()(  # (groups, T, H)
        input_ids=packed,
        position_ids=positions,
        attention_mask=branch_mask(branch_of),
        use_cache=False,
    ).last_hidden_state
    filled = attention_mask[:, prompt_width:].bool()
    wanted = hidden.flatten(0, 1)[sources[filled]]  # (N, H)
    logits = model.get_output_embeddings()(wanted).float() / temperature
    spread = torch.log_softmax(logits, dim=-1)  # (N, V)
    chosen = spread.gather(1, completions[filled][:, None])[:, 0]
    log_probs = torch.zeros(completions.shape, device=packed.device).masked_scatter(filled, chosen)
    with torch.no_grad():
        entropy = -(spread.exp() * spread).sum(-1)
        entropies = torch.zeros_like(log_probs).masked_scatter(filled, entropy)
    return log_probs, entropies
