"""Load a server at one rate after another for the highest that keeps the promise."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loadtest.capacity._rates import next_rate
from loadtest.capacity._step import Ask, RateStep, StepPlan, run_step

logger = logging.getLogger(__name__)

KNEE = 2.0  # times the p99 at the lowest rate


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a search found, or has found so far."""

    steps: tuple[RateStep, ...]
    finished: bool

    @property
    def best(self) -> RateStep | None:
        """The step at the highest rate that kept the promise."""
        return max((s for s in self.steps if s.kept), key=lambda s: s.rate_per_s, default=None)

    @property
    def rate_per_s(self) -> float:
        """The highest rate that kept the promise, 0 when none did."""
        return self.best.rate_per_s if self.best else 0.0

    @property
    def broken_at_per_s(self) -> float | None:
        """The lowest rate above that one that broke it, None when none did."""
        return min(
            (s.rate_per_s for s in self.steps if s.rate_per_s > self.rate_per_s), default=None
        )

    @property
    def goodput_per_s(self) -> float:
        """Good answers a second at that rate."""
        return self.best.goodput_per_s if self.best else 0.0

    @property
    def peak_goodput_per_s(self) -> float:
        """The most good answers a second at any rate that ran to its end."""
        return max((s.goodput_per_s for s in self.steps if not s.stopped_early), default=0.0)

    @property
    def knee_per_s(self) -> float | None:
        """The highest rate up to which p99 stays within twice that of the lowest rate.

        None when the lowest rate already has no p99, or nothing was measured.
        """
        knee, limit_ms = None, math.inf
        for step in sorted(self.steps, key=lambda step: step.rate_per_s):
            p99_ms = step.quantile_ms(0.99)
            if p99_ms is None or p99_ms > limit_ms:
                break
            if knee is None:
                limit_ms = KNEE * p99_ms
            knee = step.rate_per_s
        return knee

    @property
    def note(self) -> str:
        """The result in a sentence."""
        if not self.steps:
            return "nothing was measured"
        best, broken = self.best, self.broken_at_per_s
        if best is None:
            found = f"no rate kept the promise, down to {broken:.3g}/s"
        elif broken is None:
            found = f"{best.rate_per_s:.4g}/s kept the promise and none higher was tried"
        else:
            found = f"{best.rate_per_s:.4g}/s kept the promise and {broken:.4g}/s broke it"
        return found if self.finished else f"{found}; interrupted"

    def to_json(self) -> dict[str, Any]:
        """Figures and steps without raw rows; see `write_rows`."""
        return {
            "rate_per_s": self.rate_per_s,
            "broken_at_per_s": self.broken_at_per_s,
            "goodput_per_s": self.goodput_per_s,
            "peak_goodput_per_s": self.peak_goodput_per_s,
            "knee_per_s": self.knee_per_s,
            "knee_is": f"highest rate up to which p99 stays within {KNEE:g} x the lowest rate's",
            "finished": self.finished,
            "note": self.note,
            "steps": [step.summary() for step in self.steps],
        }


async def search(
    ask: Ask,
    plan: StepPlan,
    on_step: Callable[[RateStep], None] = lambda _: None,
) -> Capacity:
    """Find the highest rate at which p99 and misses keep `plan`'s promise.

    `on_step` hears of each step, in time to save it.
    """
    steps: list[RateStep] = []
    asked = 0
    while (rate := next_rate(plan, steps)) is not None:
        step = await run_step(ask, rate, plan, number=len(steps), first_index=asked)
        asked += step.asked
        steps.append(step)
        logger.info("%s", tell(step))
        on_step(step)
        await asyncio.sleep(plan.settle_s)
    return Capacity(tuple(steps), finished=True)


def tell(step: RateStep) -> str:
    """A step in a line of a log."""
    p99_ms = step.quantile_ms(0.99)
    return (
        f"{step.rate_per_s:.4g}/s {'kept' if step.kept else 'broken'}: "
        f"p99 {'none' if p99_ms is None else f'{p99_ms:.0f} ms'}, "
        f"{step.misses} misses in {len(step.rows)} requests"
        f"{', stopped early' if step.stopped_early else ''}"
    )
