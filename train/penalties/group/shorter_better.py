"""ShorterBetter: rewards for matching the shortest right completion."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import ClassVar, Literal

from pydantic import Field

from train.penalties.base import NO_HISTORY, Group, History, Invariant, LengthPenalty


class ShorterBetterPenalty(LengthPenalty):
    """ShorterBetter (arXiv 2504.21370): alpha x c - beta x abs(best - L).

    best is the length of the shortest right completion, or the mean length of all where none is
    right, which keeps a group of failures from drifting anywhere.

    >>> ShorterBetterPenalty(alpha=2, beta=0.02)(Group((1, 1, 0), (30, 80, 20), 128))
    [2.0, 1.0, -0.2]
    """

    type: Literal["shorter-better"] = "shorter-better"
    breaks: ClassVar[Mapping[Invariant, str]] = {
        "ranks_right_first": "unconditional: far above the best a right answer pays all",
        "separates_right": "as above",
        "prefers_shorter": "a wrong answer shorter than the best gains by growing",
        "spares_wrong": "unconditional",
        "keeps_sign": "unconditional",
    }
    alpha: float = Field(2.0, gt=0)
    """Value of a right answer (paper: 2)."""
    beta: float = Field(0.02, ge=0)
    """Cost of a token of distance (paper: 0.001, for thousands of tokens)."""

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness, at most alpha; falls with the distance from the best length."""
        right = group.right_lengths()
        best = min(right) if right else fmean(group.lengths)
        return [
            self.alpha * c - self.beta * abs(best - length)
            for c, length in zip(group.correct, group.lengths, strict=True)
        ]
