"""One rate: open Poisson arrivals, each timed from its schedule, until there are enough."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from statistics import fmean
from typing import Any

from loadtest._arrivals import arrival_times_s, run_open_loop
from loadtest._reply import Outcome, Slo
from loadtest._slo import find_breaches, nearest_rank, rank_latency, state_confidence
from loadtest.capacity._rates import SearchPlan

OVER = "over the SLO"


@dataclass(frozen=True, slots=True)
class AskResult:
    """What came of one request, lateness apart.

    `miss` is the reason it is no whole, valid answer, None when it is one; `figures` are
    averaged over the good answers of a step.
    """

    miss: str | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


Ask = Callable[[int], Awaitable[AskResult]]
"""Send request number `index`, which never repeats within a search, and wait for the reply.

OSError and TimeoutError count as misses; any other exception ends the search.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan(SearchPlan):
    """The promise, and how thoroughly to look for the highest rate that keeps it.

    A step makes `min_requests` or lasts `min_s`, whichever is longer, but never longer than
    `max_s` (0 for no limit), after `warmup_requests` at the same rate that do not count.
    """

    slo_ms: float = 400.0
    max_miss_rate: float = 0.01
    min_requests: int = 1000
    min_s: float = 10.0
    max_s: float = 0.0
    warmup_requests: int = 20
    settle_s: float = 1.0
    patience_s: float = 10.0
    stop_early: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        SearchPlan.__post_init__(self)  # `super()` does not work in a dataclass with slots
        for name in ("slo_ms", "min_requests", "patience_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} of {getattr(self, name)}: use more than 0")
        if self.patience_s * 1000 < self.slo_ms:
            raise ValueError(f"patience_s of {self.patience_s}: use at least the SLO")

    @property
    def slo(self) -> Slo:
        """The promise to keep."""
        return Slo(self.slo_ms, self.max_miss_rate)

    def requests_at(self, rate_per_s: float) -> int:
        """How many requests a step at this rate makes."""
        wanted = max(self.min_requests, math.ceil(self.min_s * rate_per_s))
        if self.max_s:
            wanted = min(wanted, max(1, int(self.max_s * rate_per_s)))
        return wanted

    def misses_allowed(self, requests: int) -> int:
        """The most misses with which a step can still keep both parts of the promise."""
        behind_p99 = requests - math.ceil(0.99 * requests - 1e-9)
        return min(math.floor(self.max_miss_rate * requests + 1e-9), behind_p99)


@dataclass(frozen=True, slots=True)
class RateStep:
    """What one rate led to; `stopped_early` where nothing could rescue it any more."""

    number: int
    rate_per_s: float
    slo: Slo
    rows: tuple[Outcome, ...]
    stopped_early: bool = False
    figures: Mapping[str, float] = field(default_factory=dict)
    asked: int = 0

    @property
    def seconds(self) -> float:
        """From the first to the last counted arrival."""
        times = [row.at_s for row in self.rows]
        return max(times) - min(times) if len(times) > 1 else 0.0

    @property
    def misses(self) -> int:
        """Requests without a valid answer in time."""
        return sum(row.miss is not None for row in self.rows)

    def quantile_ms(self, quantile: float) -> float | None:
        """Exact rank; None where it falls on a request without a valid answer, or on none."""
        return rank_latency(self.rows, quantile)

    @property
    def kept(self) -> bool:
        """Whether the promise was kept at this rate."""
        p99_ms = self.quantile_ms(0.99)
        breaches = find_breaches(len(self.rows), self.misses, p99_ms, self.slo)
        return not (self.stopped_early or breaches)

    @property
    def goodput_per_s(self) -> float:
        """Good answers a second: the rate times the share that was good."""
        if not self.rows:
            return 0.0
        return self.rate_per_s * (1 - self.misses / len(self.rows))

    def summary(self) -> dict[str, Any]:
        """The step for a report, without its rows."""
        lags = [row.lag_ms for row in self.rows]
        seconds = self.seconds
        return {
            "number": self.number,
            "rate_per_s": self.rate_per_s,
            "kept": self.kept,
            "stopped_early": self.stopped_early,
            "requests": len(self.rows),
            "asked": self.asked,
            "seconds": round(seconds, 3),
            "arrived_per_s": (len(self.rows) - 1) / seconds if seconds else None,
            "misses": self.misses,
            "misses_by_reason": dict(Counter(row.miss for row in self.rows if row.miss)),
            "goodput_per_s": self.goodput_per_s,
            **{f"p{q * 100:g}_ms": self.quantile_ms(q) for q in (0.5, 0.9, 0.95, 0.99)},
            "lag_p99_ms": nearest_rank(lags, 0.99) if lags else None,
            "figures": dict(self.figures),
            "confidence": state_confidence(self.misses, len(self.rows), self.slo),
        }


async def run_step(
    ask: Ask, rate_per_s: float, plan: StepPlan, *, number: int = 0, first_index: int = 0
) -> RateStep:
    """Load at one rate and wait for every reply; `number` picks the schedule's seed.

    No more arrive once more requests have missed, or are still unanswered past the SLO, than
    a kept promise allows; what was sent by then is waited for and counts.
    """
    wanted = plan.requests_at(rate_per_s)
    allowed = plan.misses_allowed(wanted)
    seed = random.Random(f"{plan.seed} {number}").getrandbits(48)
    rows: list[Outcome] = []
    figures: list[Mapping[str, float]] = []
    waiting: dict[int, float] = {}  # when those were due that count and have no outcome yet
    started_s = time.monotonic()
    asked = missed = 0

    async def one(index: int, due_s: float) -> None:
        nonlocal asked, missed
        asked += 1
        if counts := index >= plan.warmup_requests:
            waiting[index] = due_s
        sent_s = time.monotonic()
        try:
            async with asyncio.timeout(plan.patience_s):
                answer = await ask(first_index + index)
        except TimeoutError:
            answer = AskResult("timeout")
        except OSError as error:
            answer = AskResult(f"connection: {type(error).__name__}")
        latency_ms = (time.monotonic() - due_s) * 1e3
        if not counts:
            return
        del waiting[index]
        miss = answer.miss or (OVER if latency_ms > plan.slo_ms else None)
        if miss is None:
            figures.append(answer.figures)
        missed += miss is not None
        rows.append(
            Outcome(
                latency_ms,
                miss,
                answered=answer.miss is None,
                lag_ms=(sent_s - due_s) * 1e3,
                at_s=due_s - started_s,
            )
        )

    def is_hopeless() -> bool:
        late_s = time.monotonic() - plan.slo_ms / 1e3
        late = sum(due_s <= late_s for due_s in waiting.values())
        return plan.stop_early and missed + late > allowed

    schedule_s = islice(arrival_times_s(rate_per_s, seed), plan.warmup_requests + wanted)
    stopped = await run_open_loop(schedule_s, one, is_hopeless)
    rows.sort(key=lambda row: row.at_s)
    names = sorted({name for each in figures for name in each})
    means = {name: fmean(each[name] for each in figures if name in each) for name in names}
    return RateStep(number, rate_per_s, plan.slo, tuple(rows), stopped, means, asked)
