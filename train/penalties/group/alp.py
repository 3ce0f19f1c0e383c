"""ALP: an adaptive length penalty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from train.penalties.base import NO_HISTORY, Group, History, Invariant, LengthPenalty


class AlpPenalty(LengthPenalty):
    """Adaptive Length Penalty (arXiv 2506.05256): c - (beta / scale) x max(p, 1/K) x L.

    p is the group's pass rate and K its size: easy prompts pay for tokens, hard ones hardly.
    Ungated: wrong completions pay as well, and a right one may pay more than it earned.

    >>> AlpPenalty(beta=0.5, scale=100)(Group((1, 1, 0, 0), (100, 40, 100, 20), 128))
    [0.75, 0.9, -0.25, -0.05]
    """

    type: Literal["alp"] = "alp"
    breaks: ClassVar[Mapping[Invariant, str]] = {
        "ranks_right_first": "unconditional: a right answer may pay more than 1",
        "separates_right": "as above",
        "spares_wrong": "unconditional: where some are right, failing fast beats failing slowly",
        "keeps_sign": "unconditional: a long right answer falls below 0",
    }
    beta: float = Field(0.3, ge=0)
    """Cost of `scale` tokens on a prompt that is always solved (tuned to the scale)."""
    scale: int = Field(100, ge=1)
    """The paper's N: the length in tokens that lengths are measured in (paper: thousands)."""

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness, at most 1; falls with length."""
        rate = max(group.pass_rate, 1 / len(group.correct))
        return [
            c - self.beta * rate * length / self.scale
            for c, length in zip(group.correct, group.lengths, strict=True)
        ]
