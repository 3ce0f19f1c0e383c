"""How far a model is from its parent: next-token distributions compared at the same tokens.

Shapes: T positions, V vocabulary. Everything is in nats a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # settings are read before a framework is needed
    from torch import Tensor

MAX_KL = 0.05
"""From further away, in nats a token, an export is refused unless its settings say otherwise."""


def kl_divergence(parent: Tensor, child: Tensor) -> Tensor:
    """KL(p ‖ q) with p = softmax(parent), q = softmax(child): (..., V) logits to (...) nats."""
    p, q = parent.log_softmax(-1), child.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


class Distance:
    """Sums over the positions at which a child was compared with its parent."""

    def __init__(self) -> None:
        self.positions = self.sequences = 0
        self._kl = self._agreed = self._nll = self._largest_gap = 0.0

    def add(self, parent: Tensor, child: Tensor, targets: Sequence[int] | None = None) -> None:
        """Compare logits (T, V) of one sequence; `targets` are the T tokens that they predict."""
        parent, child = parent.double(), child.double()
        self.sequences += 1
        self.positions += len(parent)
        self._kl += float(kl_divergence(parent, child).sum())
        self._agreed += float((parent.argmax(-1) == child.argmax(-1)).sum())
        self._largest_gap = max(self._largest_gap, float((parent - child).abs().max()))
        if targets is not None:
            gap = parent.log_softmax(-1) - child.log_softmax(-1)
            self._nll += float(gap[list(range(len(targets))), list(targets)].sum())

    def to_row(self) -> dict[str, float]:
        """Means: `kl`, the mean KL(parent ‖ child), and `argmax_agreement` from 0 to 1."""
        return {"kl": self._kl / self.positions, "argmax_agreement": self._agreed / self.positions}

    def to_full_row(self) -> dict[str, float]:
        """The same with the largest gap between logits, likelihood and counts.

        `nll_difference` is child minus parent on the targets.
        """
        return {
            "max_logit_difference": self._largest_gap,
            **self.to_row(),
            "nll_difference": self._nll / self.positions,
            "compared_prompts": float(self.sequences),
            "compared_positions": float(self.positions),
        }


def compare_on(parent: Any, child: Any, examples: Sequence[Sequence[int]]) -> Distance:
    """Compare two PyTorch models at every position of token sequences."""
    import torch

    distance = Distance()
    with torch.inference_mode():
        for ids in examples:
            whole = torch.tensor([list(ids)])
            distance.add(parent(whole).logits[0], child(whole).logits[0])
    return distance


def compare_along_parent(
    parent: Any,
    read_child: Callable[[list[int], list[int]], Tensor],
    prompts: Sequence[list[int]],
    continuation_tokens: int,
    context_tokens: int | None = None,
) -> Distance:
    """Compare along the parent's own greedy continuation of each prompt.

    Args:
        parent: a causal language model of transformers.
        read_child: from a prompt and its continuation to the child's logits before each token of
            the continuation, (T, V).
        prompts: token ids.
        continuation_tokens: length limit of a continuation.
        context_tokens: the shortest context of the two; the parent's when left out.

    Raises ValueError without prompts, and when one of them fills the context.
    """
    import torch

    if not prompts:
        raise ValueError("no prompts to compare on: give at least one")
    distance = Distance()
    for prompt in prompts:
        continuation = continue_greedily(
            parent, prompt, continuation_tokens, context_tokens, pad_token_id=0
        )
        with torch.inference_mode():
            whole = torch.tensor([[*prompt, *continuation]])
            logits = parent(whole).logits[0, len(prompt) - 1 : -1]
        distance.add(logits, read_child(prompt, continuation), continuation)
    return distance


def continue_greedily(
    model: Any,
    prompt: Sequence[int],
    most_tokens: int,
    context_tokens: int | None = None,
    **settings: Any,
) -> list[int]:
    """The likeliest tokens after a prompt, one by one; `settings` go to transformers' `generate`.

    Raises ValueError when the prompt leaves no room in the context.
    """
    import torch

    ids = torch.tensor([list(prompt)])
    context = context_tokens or model.config.max_position_embeddings
    if (room := context - len(prompt)) < 1:
        raise ValueError(f"a prompt of {len(prompt)} tokens fills the context of {context}")
    with torch.inference_mode():
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=min(most_tokens, room),
            **settings,
        )
    written: list[int] = whole[0, len(prompt) :].tolist()
    return written
