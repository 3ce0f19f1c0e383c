"""LASER-D: LASER with a target length for each difficulty, renewed from history."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from train.penalties.alone.laser import add_bonus
from train.penalties.base import NO_HISTORY, Group, History, LengthPenalty

Bucket = Literal["easy", "medium", "hard"]


class LaserDPenalty(LengthPenalty):
    """LASER-D (arXiv 2505.15612): LASER with a target for each difficulty, renewed as it learns.

    Groups fall into buckets by pass rate: at least 2/3, at least 1/3, below. A bucket's target is
    the smallest length that covers 1 / max(1, floor(size x lower bound)) of its completions, so
    that a group is expected to hold one right completion within it (hkust-nlp/Laser, verl/utils/
    reward_score/length_penalty.py, by steps of 1,024 tokens). Measured on the rollouts of the last
    `refresh_steps` steps, where the paper samples 500 prompts anew; an empty bucket keeps `start`.

    >>> LaserDPenalty(start=40)(Group((1, 1, 0), (40, 41, 10), 64))
    [1.5, 1, 0]
    """

    type: Literal["laser-d"] = "laser-d"
    needs_history: ClassVar[bool] = True
    bonus: float = Field(0.5, ge=0)
    """Paper: 0.5."""
    start: int = Field(128, ge=0)
    """Target length in tokens of a bucket before there is evidence (paper: thousands)."""
    refresh_steps: int = Field(20, ge=1)
    """Steps between renewals, and the steps looked back on (paper: 20)."""

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness in [0, 1 + bonus]."""
        return add_bonus(group, self.bonus, self.target(bucket_of(group.pass_rate), history))

    def target(self, bucket: Bucket, history: History) -> float:
        """Target length in tokens of a bucket, from the last whole block of steps."""
        done = history.groups[-1].step if history.groups else 0
        last = done - done % self.refresh_steps
        block = [
            g
            for g in history.groups
            if last - self.refresh_steps < g.step <= last
            and bucket_of(sum(c > 0 for c in g.correct) / len(g.correct)) == bucket
        ]
        lengths = sorted(n for g in block for n in g.lengths)
        if not lengths:
            return self.start
        size = len(block[0].lengths)
        right = max(1, {"easy": 2 * size // 3, "medium": size // 3, "hard": 1}[bucket])
        return lengths[math.ceil(len(lengths) / right) - 1]


def bucket_of(pass_rate: float) -> Bucket:
    """Difficulty of a prompt from the share of right completions."""
    if pass_rate >= 2 / 3:
        return "easy"
    return "medium" if pass_rate >= 1 / 3 else "hard"
