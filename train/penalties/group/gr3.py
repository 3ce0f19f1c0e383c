"""GR3: the reward rescaled by relative length."""

from __future__ import annotations

from statistics import fmean
from typing import Literal

from pydantic import Field

from train.penalties.base import NO_HISTORY, Group, History, LengthPenalty, shrink


class Gr3Penalty(LengthPenalty):
    """GR3 (arXiv 2603.10535): c / (1 + alpha x L / mean), the mean over the whole group.

    Only a positive c is divided: a long wrong answer must not lose less than a short one.

    >>> Gr3Penalty(alpha=0.5)(Group((1, 1, 0), (0, 60, 30), 128))
    [1.0, 0.5, 0]
    """

    type: Literal["gr3"] = "gr3"
    alpha: float = Field(0.33, ge=0)
    """Paper: about 0.33; free of scale."""

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness in [0, 1]."""
        mean = fmean(group.lengths)
        return [
            shrink(c, 1 / (1 + self.alpha * (length / mean if mean else 1.0)))
            for c, length in zip(group.correct, group.lengths, strict=True)
        ]
