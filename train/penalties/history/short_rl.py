"""Short-RL: Kimi's reward with a tolerance, switched off while accuracy is down."""

from __future__ import annotations

from statistics import fmean
from typing import ClassVar, Literal

from pydantic import Field

from train.penalties.base import NO_HISTORY, Group, History, LengthPenalty


class ShortRlPenalty(LengthPenalty):
    """Short-RL (arXiv 2505.12284).

    A right completion gains weight x 0.5 where L <= min + tolerance, else weight x Kimi's
    lambda = 0.5 - (L - min) / (max - min), min and max over the right completions; a wrong one
    gains nothing. Plain correctness while accuracy lies more than `drop` below its best so far.
    Accuracy is a mean over `window` steps: of single small batches, the best is a lucky one.
    Held to the authors' code (lblankl/Short-RL, deepscaler/deepscaler/rewards/ShortRL.py).

    >>> ShortRlPenalty(tolerance=5)(Group((1, 1, 1, 0), (10, 15, 30, 30), 128))
    [1.5, 1.5, 0.5, 0]
    """

    type: Literal["short-rl"] = "short-rl"
    needs_history: ClassVar[bool] = True
    weight: float = Field(1.0, ge=0, le=1)
    tolerance: int = Field(8, ge=0)
    """Tokens above the shortest that cost nothing (paper: 200)."""
    drop: float = Field(0.05, ge=0)
    """How far accuracy may fall below its best before the penalty rests (paper: 0.05)."""
    window: int = Field(10, ge=1)
    """Steps that accuracy is averaged over (paper: single, far larger batches)."""

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness in [0, 1 + weight/2]."""
        right = group.right_lengths()
        if not right or not self.applies(history):
            return list(group.correct)
        shortest, spread = min(right), max(max(right) - min(right), 1)
        shaped = []
        for c, length in zip(group.correct, group.lengths, strict=True):
            near = length <= shortest + self.tolerance
            bonus = 0.5 if near else 0.5 - (length - shortest) / spread
            shaped.append(c + self.weight * bonus if c > 0 else c)
        return shaped

    def applies(self, history: History) -> bool:
        """Whether accuracy is within `drop` of its best, both over whole windows."""
        steps = history.accuracies()
        ends = range(self.window, len(steps) + 1)
        means = [fmean(steps[end - self.window : end]) for end in ends]
        return not means or means[-1] >= max(means) - self.drop
