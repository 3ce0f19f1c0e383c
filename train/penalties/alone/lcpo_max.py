"""LCPO-Max: a reward for thinking no longer than the prompt says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from train.penalties.base import NO_HISTORY, Group, History, Invariant, LengthPenalty, clip, shrink


class LcpoMaxPenalty(LengthPenalty):
    """LCPO-Max (L1, arXiv 2503.04697, equation 2): reward for staying under the stated budget n.

    c x (clip(alpha x (n - L), -1, 1) + 1) / 2. As published it ends at 0: a right completion
    that overruns n by 1 / alpha tokens is worth as little as a wrong one. `gated` keeps them
    apart.

    >>> LcpoMaxPenalty(alpha=0.01)(Group((1, 1, 1, 0), (32, 12, 132, 5), 32))
    [0.5, 0.6, 0.0, 0]
    """

    type: Literal["lcpo-max"] = "lcpo-max"
    needs_group: ClassVar[bool] = False
    breaks: ClassVar[Mapping[Invariant, str]] = {
        "separates_right": "a right answer 1 / alpha tokens over the budget ties with a wrong one",
        "reduces_to_grpo": "as above, when all completions overrun that far",
    }
    alpha: float = Field(0.01, gt=0)
    """Slope in a token (paper: 0.0003 for budgets of 100 to 4,000)."""

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness in [0, 1]."""
        return [
            shrink(c, (clip(self.alpha * (group.budget - length), -1, 1) + 1) / 2)
            for c, length in zip(group.correct, group.lengths, strict=True)
        ]
