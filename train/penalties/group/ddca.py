"""DDCA: a length term centred over the right completions only."""

from __future__ import annotations

from statistics import fmean
from typing import Literal

from pydantic import Field

from train.penalties.base import NO_HISTORY, Group, History, LengthPenalty, standings


class DdcaPenalty(LengthPenalty):
    """Dynamic Decoupled Conditional Advantage (arXiv 2602.02099).

    A right completion gains beta x p / 2 x (mean(s) - s), s = sigmoid of its length's z-score
    among the right ones, the mean over them too, p the pass rate. The terms of a group sum to 0,
    so a group-mean baseline leaves them as they are: accuracy advantage plus length advantage,
    and wrong completions neither feel nor dilute the second. Use it with an estimator that does
    not divide by the group's std.

    Published without the half, beside an accuracy term divided by the group's std, at most 1/2,
    which such an estimator leaves out: half the published advantages, exactly so at p = 1/2 and 1
    (alphadl/DDCA, dca/advantage.py; it does not say whose code it is).

    >>> DdcaPenalty(beta=0.5)(Group((1, 1, 0), (30, 30, 9), 64))
    [1.0, 1.0, 0]
    >>> [round(v, 3) for v in DdcaPenalty(beta=0.2)(Group((1, 1, 0, 0), (20, 80, 9, 9), 64))]
    [1.012, 0.988, 0, 0]
    """

    type: Literal["ddca"] = "ddca"
    beta: float = Field(0.2, ge=0, le=1)
    """Size of the length term, as published (paper: 0.2; free of scale)."""

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness in [0, 1 + beta / 2]."""
        values = standings(group.right_lengths())
        centre = fmean(values) if values else 0.0
        scale = self.beta * group.pass_rate / 2
        remaining = iter(values)
        return [
            c + scale * (centre - next(remaining)) if ok else c
            for c, ok in zip(group.correct, group.right, strict=True)
        ]
