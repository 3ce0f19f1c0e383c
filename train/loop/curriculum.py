"""Which thinking budget a training prompt states over a run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated

from pydantic import AfterValidator, Field

from curt.config import FrozenModel
from curt.dialogue import BUDGET_LEVELS


def _check_levels(levels: list[int]) -> list[int]:
    unknown = sorted(set(levels) - set(BUDGET_LEVELS))
    if unknown or not levels:
        raise ValueError(f"budgets {unknown or levels}: use levels of {BUDGET_LEVELS}")
    return levels


Levels = Annotated[list[int], AfterValidator(_check_levels)]


class Curriculum(FrozenModel):
    """Wide budgets first, then all of them: learn to be right before being brief.

    At share p of the way to `until`, a budget comes from `levels` with probability p and from
    `start_levels` with 1 - p. A level listed twice is drawn twice as often.
    """

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


def draw_budget(rng: random.Random, step: int, steps: int, settings: Curriculum) -> int:
    """The budget, in thinking tokens, that one prompt of a step states.

    Takes exactly one `rng.random()`: runs with the same seed differ in budgets alone. `step` counts
    from 0. Raises ValueError when the step lies outside a run of `steps`.
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
