"""LCPO-Exact: a reward for thinking as long as the prompt says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from train.penalties.base import NO_HISTORY, Group, History, Invariant, LengthPenalty


class LcpoExactPenalty(LengthPenalty):
    """LCPO-Exact (L1, arXiv 2503.04697, equation 1): c - alpha x abs(n - L), n the stated budget.

    Teaches to follow the stated length, not to be short; without a gate, so a wrong answer of
    the right length can beat a right answer of the wrong length.

    >>> LcpoExactPenalty(alpha=0.01)(Group((1, 1, 0), (64, 14, 64), 64))
    [1.0, 0.5, 0.0]
    """

    type: Literal["lcpo-exact"] = "lcpo-exact"
    needs_group: ClassVar[bool] = False
    breaks: ClassVar[Mapping[Invariant, str]] = {
        "ranks_right_first": "unconditional: far from n a right answer loses more than 1",
        "separates_right": "as above",
        "prefers_shorter": "below n the longer is worth more",
        "spares_wrong": "unconditional",
        "keeps_sign": "unconditional: a right answer far from n falls below 0",
    }
    alpha: float = Field(0.01, gt=0)
    """Cost of a token (paper: 0.0003, released code: 1/3000, for budgets of 100 to 4,000)."""

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness, at most 1; falls with the distance from the budget."""
        return [
            c - self.alpha * abs(group.budget - length)
            for c, length in zip(group.correct, group.lengths, strict=True)
        ]
