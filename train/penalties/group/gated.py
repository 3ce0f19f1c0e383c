"""Our own penalty: takes from right answers only, and less on hard prompts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from train.penalties.base import NO_HISTORY, Group, History, LengthPenalty, clip, shrink


class GatedPenalty(LengthPenalty):
    """Correctness-gated, multiplicative, scaled by the group's pass rate; no paper.

    c x (1 - weight x p x excess) x (1 - over_budget x overrun), where p is the share of right
    completions, excess = clip((L - shortest right - tolerance) / max(longest - shortest right,
    floor), 0, 1) and overrun = clip((L - n) / max(n, floor), 0, 1) against the stated budget n.

    The pass rate keeps the pressure off prompts the policy cannot solve yet; `tolerance` and
    `floor` keep a spread of a few tokens from being amplified into a full-size advantage.

    >>> GatedPenalty(weight=0.4, tolerance=0)(Group((1, 1), (10, 110), 128))
    [1.0, 0.6]
    """

    type: Literal["gated"] = "gated"
    weight: float = Field(0.4, ge=0, lt=1)
    over_budget: float = Field(0.5, ge=0, lt=1)
    """Largest share taken for running past the stated budget."""
    tolerance: int = Field(2, ge=0)
    """Tokens above the shortest right completion that cost nothing."""
    floor: int = Field(16, ge=1)
    """Smallest spread, in tokens, that counts as a full one."""

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness in [0, 1]."""
        right = group.right_lengths()
        if not right:
            return list(group.correct)
        shortest = min(right)
        spread = max(max(group.lengths) - shortest, self.floor)
        shaped = []
        for c, length in zip(group.correct, group.lengths, strict=True):
            excess = clip((length - shortest - self.tolerance) / spread)
            overrun = clip((length - group.budget) / max(group.budget, self.floor))
            factor = (1 - self.weight * group.pass_rate * excess) * (1 - self.over_budget * overrun)
            shaped.append(shrink(c, factor))
        return shaped
