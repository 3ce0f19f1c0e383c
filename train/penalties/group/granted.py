"""Granted: a budget is used up where thinking helps."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import ClassVar, Literal

from pydantic import Field

from train.penalties.base import NO_HISTORY, Group, History, Invariant, LengthPenalty, clip, shrink


class GrantedPenalty(LengthPenalty):
    """Right answers are to use the stated budget n where it is the longer ones that are right.

    c x (1 - weight x help x (1 - min(L / n, 1))), help = 2 x P(a right completion is longer than a
    wrong one) - 1, at least 0 (ties count half). Running over costs nothing: enforce budgets. Ours;
    LCPO-Exact (arXiv 2503.04697) asks for n where it does not help and of wrong answers too.

    >>> GrantedPenalty(weight=0.4)(Group((1, 1, 0), (64, 32, 8), 64))
    [1.0, 0.8, 0]
    """

    type: Literal["granted"] = "granted"
    breaks: ClassVar[Mapping[Invariant, str]] = {
        "prefers_shorter": "within n a longer right answer is worth more where length helps",
    }
    weight: float = Field(0.4, ge=0, lt=1)

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness in [0, 1]."""
        wrong = [n for ok, n in zip(group.right, group.lengths, strict=True) if not ok]
        wins = [(r > w) - (r < w) for r in group.right_lengths() for w in wrong]
        weight = self.weight * clip(fmean(wins or [0]))
        left = [clip(1 - length / max(group.budget, 1)) for length in group.lengths]
        return [shrink(c, 1 - weight * n) for c, n in zip(group.correct, left, strict=True)]
