"""Which thinking budget a training prompt states.

Every curriculum is a distribution over the levels a prompt can state, so one draw of the random
generator picks a budget whatever the curriculum: runs with the same seed differ in budgets alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from curt.config import FrozenModel
from curt.dialogue import BUDGET_LEVELS, state_budget


def _check_levels(levels: list[int]) -> list[int]:
    unknown = sorted(set(levels) - set(BUDGET_LEVELS))
    if unknown or not levels:
        raise ValueError(f"budgets {unknown or levels}: use levels of {BUDGET_LEVELS}")
    return levels


Levels = Annotated[list[int], AfterValidator(_check_levels)]


class FixedBudgets(FrozenModel):
    """The same levels all along, each as likely."""

    type: Literal["fixed"] = "fixed"
    levels: Levels = [16, 32, 64, 128]
    """Budgets in thinking tokens; a level listed twice is drawn twice as often."""

    def shares(self, progress: float) -> dict[int, float]:
        """Probability of each level. `progress` is the finished share of the run."""
        return _uniform(self.levels)


class ShiftingBudgets(FrozenModel):
    """Wide budgets first, then all of them: learn to be right before being brief.

    At share p of the way to `until`, a budget comes from `levels` with probability p and from
    `start_levels` with 1 - p.
    """

    type: Literal["shift"] = "shift"
    start_levels: Levels = [64, 128]
    """Budgets of the first step."""
    levels: Levels = [16, 32, 64, 128]
    """Budgets from `until` on."""
    until: float = Field(0.5, gt=0, le=1)
    """Share of the run after which the shift is over."""

    def shares(self, progress: float) -> dict[int, float]:
        """Probability of each level. `progress` is the finished share of the run."""
        shifted = min(1.0, progress / self.until)
        start, end = _uniform(self.start_levels), _uniform(self.levels)
        return {
            level: (1 - shifted) * start.get(level, 0.0) + shifted * end.get(level, 0.0)
            for level in start | end
        }


class BudgetRange(FrozenModel):
    """LCPO (L1, arXiv 2503.04697): n drawn uniformly from a range, both ends included.

    The prompt states levels only, so n counts as the level it is stated as: the next one below.
    """

    type: Literal["range"] = "range"
    low: int = Field(16, ge=0)
    """Smallest budget, in thinking tokens."""
    high: int = Field(128, ge=0)
    """Largest budget, in thinking tokens."""

    @model_validator(mode="after")
    def _ordered(self) -> BudgetRange:
        if self.low > self.high:
            raise ValueError(f"budgets from {self.low} to {self.high}: give the smaller one as low")
        return self

    def shares(self, progress: float) -> dict[int, float]:
        """Probability of each level. `progress` is the finished share of the run."""
        return _uniform([state_budget(n) for n in range(self.low, self.high + 1)])


CURRICULA: dict[str, type[FrozenModel]] = {
    "fixed": FixedBudgets,
    "shift": ShiftingBudgets,
    "range": BudgetRange,
}
Curriculum = Annotated[FixedBudgets | ShiftingBudgets | BudgetRange, Field(discriminator="type")]


def draw_budget(rng: random.Random, step: int, steps: int, settings: Curriculum) -> int:
    """The budget, in thinking tokens, that one prompt of a step states.

    Takes exactly one `rng.random()`. `step` counts from 0.

    Raises ValueError when the step lies outside a run of `steps`.
    """
    if not 0 <= step < steps:
        raise ValueError(f"step {step} of a run of {steps}: use 0 to {steps - 1}")
    shares = sorted(settings.shares(step / steps).items())
    drawn = rng.random()
    likely = [(level, share) for level, share in shares if share > 0]
    sums = accumulate(share for _, share in likely)
    for (level, _), total in zip(likely, sums, strict=True):
        if drawn < total:
            return level
    return likely[-1][0]  # the shares may add up to a little less than 1


def _uniform(levels: Sequence[int]) -> dict[int, float]:
    return {level: levels.count(level) / len(levels) for level in dict.fromkeys(levels)}
