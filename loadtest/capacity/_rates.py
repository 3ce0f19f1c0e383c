"""Which rate to try next: bracket the highest that keeps a promise, then bisect.

Knows nothing of servers: every benchmark that looks for a highest rate uses it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """Where to begin, how far to step, when to stop.

    A rate that broke is tried `attempts` times in all: more than one forgives a hiccup of the
    machine. The search ends when the broken rate is within `precision` of the kept one.
    """

    start_per_s: float = 2.0
    factor: float = 2.0
    precision: float = 0.05
    min_per_s: float = 0.05
    max_per_s: float = 10_000.0
    max_steps: int = 40
    attempts: int = 1

    def __post_init__(self) -> None:
        for name in ("start_per_s", "precision", "attempts"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} of {getattr(self, name)}: use more than 0")
        if not self.factor > 1:
            raise ValueError(f"factor of {self.factor}: use more than 1")
        if not 0 < self.min_per_s <= self.start_per_s <= self.max_per_s:
            raise ValueError(
                f"start_per_s of {self.start_per_s}: use {self.min_per_s} to {self.max_per_s}"
            )


class Tried(Protocol):
    """A rate and whether it kept the promise."""

    @property
    def rate_per_s(self) -> float:
        """Arrivals a second."""

    @property
    def kept(self) -> bool:
        """Whether the promise was kept at it."""


@dataclass(frozen=True, slots=True)
class _Trial:
    rate_per_s: float
    kept: bool


def next_rate(plan: SearchPlan, tried: Sequence[Tried]) -> float | None:
    """The rate to try after these, None when the search is over.

    Up by `factor` while the promise is kept, down by it while it is broken; between the two,
    the geometric mean, until they are within `precision` of each other. A rate counts as kept
    once it was kept, and as broken once it was broken `attempts` times.
    """
    if len(tried) >= plan.max_steps:
        return None
    if not tried:
        return plan.start_per_s
    kept = max((each.rate_per_s for each in tried if each.kept), default=None)
    above = Counter(each.rate_per_s for each in tried if kept is None or each.rate_per_s > kept)
    again = [rate for rate, count in above.items() if count < plan.attempts]
    if again:
        return again[0]
    broken = min(above, default=None)
    if broken is None:
        assert kept is not None
        return min(kept * plan.factor, plan.max_per_s) if kept < plan.max_per_s else None
    if kept is None:
        return max(broken / plan.factor, plan.min_per_s) if broken > plan.min_per_s else None
    if broken <= kept * (1 + plan.precision):
        return None
    return math.sqrt(kept * broken)


async def find_highest(keeps: Callable[[float], Awaitable[bool]], plan: SearchPlan) -> float:
    """The highest rate tried that `keeps` says is kept, 0 when none was."""
    tried: list[_Trial] = []
    while (rate := next_rate(plan, tried)) is not None:
        tried.append(_Trial(rate, await keeps(rate)))
    return max((each.rate_per_s for each in tried if each.kept), default=0.0)
