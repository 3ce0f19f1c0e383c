"""Scale the length penalty down while accuracy is below its best.

Short-RL (see `train.penalties`) pays for short completions only while accuracy is within 0.05 of
its best; here the same idea scales any penalty, and fades instead of switching.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from pydantic import Field

from curt.config import FrozenModel
from train.penalties.base import History


class AccuracyGuard(FrozenModel):
    """Scale of the length penalty, from the accuracy of the run so far.

    With m the mean of exact accuracy over the newest `window` steps, and b the best such mean
    of the run, the shortfall is b - m. The scale is 1 up to a shortfall of `tolerance`, `floor`
    from twice that on, and linear between. It falls at once and rises by at most `recovery` a
    step, so that a policy that has just come back isn't pressed at full weight again.

    The state is replayed from the history, so a resumed run goes on with the same scale.
    """

    tolerance: float = Field(0.05, gt=0, le=1)
    """Loss of accuracy, as a share of completions, that changes nothing."""
    window: int = Field(20, ge=1)
    """Steps in the moving mean. The best of few steps is a lucky one, and makes any other look
    like a loss; docs/training.md has how much."""
    floor: float = Field(0.0, ge=0, le=1)
    """Least scale of the penalty."""
    recovery: float = Field(0.1, gt=0, le=1)
    """Most that the scale rises in one step."""

    def weight(self, history: History) -> float:
        """Scale of the penalty for the next step, in [floor, 1]; 1 before a whole window."""
        accuracies = history.accuracies()
        weight, best = 1.0, 0.0
        for end in range(self.window, len(accuracies) + 1):
            mean = fmean(accuracies[end - self.window : end])
            best = max(best, mean)
            weight = min(self.scale(best - mean), weight + self.recovery)
        return weight

    def scale(self, shortfall: float) -> float:
        """Scale that a shortfall of accuracy alone calls for, in [floor, 1]."""
        lost = min(1.0, max(0.0, (shortfall - self.tolerance) / self.tolerance))
        return 1 - lost * (1 - self.floor)


def weigh_penalty(shaped: Sequence[float], correct: Sequence[float], weight: float) -> list[float]:
    """Scale what the penalty did: c + weight x (shaped - c), one value a completion.

    Raises ValueError when `weight` is outside [0, 1] or the two are not of one length.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"a penalty weight of {weight}: use 0 (no penalty) to 1 (all of it)")
    if weight == 1:  # exactly, so that a run without a guard is not moved by rounding
        return list(shaped)
    return [c + weight * (s - c) for s, c in zip(shaped, correct, strict=True)]
