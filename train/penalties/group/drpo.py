"""DRPO: right completions weighed against each other only."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from train.penalties.base import NO_HISTORY, Group, History, LengthPenalty, clip


class DrpoPenalty(LengthPenalty):
    """Decoupled Reward Policy Optimization (arXiv 2510.04474), as a shaped reward.

    The paper weighs each right completion by exp(r / temperature), r = 1 - L / limit, normalised
    over the right ones: the closed form of the best distribution near the policy. Here c is
    multiplied by that weight with mean 1: the length terms of a group sum to 0 and leave its mean
    as it is, so that after the baseline they are centred over the right completions. The paper's
    own loss differs (discriminative, not GRPO's), and keeps every right one's sign positive.

    >>> DrpoPenalty()(Group((1, 1, 0), (30, 30, 9), 64))
    [1.0, 1.0, 0]
    >>> [round(v, 3) for v in DrpoPenalty(limit=100)(Group((1, 1, 0), (20, 80, 9), 64))]
    [1.291, 0.709, 0]
    """

    type: Literal["drpo"] = "drpo"
    temperature: float = Field(1.0, ge=0.1)
    """The paper's lambda: lower presses harder (tuned there; free of scale)."""
    limit: int = Field(128, ge=1)
    """Longest length in tokens, where r is 0 (paper: the generation limit, thousands)."""

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness in [0, exp(1 / temperature)]."""
        weights = [
            math.exp((1 - clip(length / self.limit)) / self.temperature) if ok else 0.0
            for ok, length in zip(group.right, group.lengths, strict=True)
        ]
        mean = sum(weights) / max(sum(group.right), 1)
        return [
            c * weight / mean if weight else c
            for c, weight in zip(group.correct, weights, strict=True)
        ]
