"""LCPO-Max: a reward for thinking no longer than the prompt says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from train.penalties.base import NO_HISTORY, Group, History, Invariant, LengthPenalty, clip, shrink


class LcpoMaxPenalty(LengthPenalty):
    """LCPO-Max (L1, arXiv 2503.04697): reward for staying under the stated budget n.

    Two forms. "released": c x (clip(alpha x (n - L), -1, 1) + 1) / 2 (cmu-l3/l1, deepscaler/
    rewards/math_reward.py, read in the copy troy12x/deepscaler). "paper", equation 2: c x
    clip(alpha x (n - L) + 1/2, 0, 1). Both end at 0: a right completion that overruns n far
    enough is worth as little as a wrong one. `gated` keeps them apart.

    >>> LcpoMaxPenalty(alpha=0.01)(Group((1, 1, 1, 0), (32, 12, 132, 5), 32))
    [0.5, 0.6, 0.0, 0]
    >>> LcpoMaxPenalty(alpha=0.01, form="paper")(Group((1, 1, 1, 0), (32, 12, 82, 5), 32))
    [0.5, 0.7, 0.0, 0]
    """

    type: Literal["lcpo-max"] = "lcpo-max"
    needs_group: ClassVar[bool] = False
    breaks: ClassVar[Mapping[Invariant, str]] = {
        "separates_right": "a right answer far enough over the budget ties with a wrong one",
        "reduces_to_grpo": "as above, when all completions overrun that far",
    }
    alpha: float = Field(0.01, gt=0)
    """Slope in a token (released: 1/500, paper: 0.0003, for budgets of 100 to 4,000)."""
    form: Literal["released", "paper"] = "released"
    """The authors' code, or equation 2 of their paper."""

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness in [0, 1]."""
        slope = self.alpha / (2 if self.form == "released" else 1)
        return [
            shrink(c, clip(slope * (group.budget - length) + 0.5))
            for c, length in zip(group.correct, group.lengths, strict=True)
        ]
