"""Earliest-deadline-first arithmetic: who is late, and how long one may take. Pure functions.

All instants are `time.monotonic()` seconds. The least a request takes (zero thinking) decides
who fits: under load everyone's reasoning is shortened before anyone is refused.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

TARGET_UTILISATION = 0.75  # of the workers; above it queues grow faster than budgets shrink


@dataclass(frozen=True, slots=True)
class Demand:
    """What a waiting request needs: its deadline and the least time it takes."""

    deadline_s: float
    least_s: float

    @property
    def latest_start_s(self) -> float:
        """After this instant it can't be met any more."""
        return self.deadline_s - self.least_s


def finish_times(free_at_s: Sequence[float], demands: Sequence[Demand]) -> list[float]:
    """When each demand ends if the workers take them in the order given, at their least."""
    workers = list(free_at_s)
    heapq.heapify(workers)
    finishes = []
    for demand in demands:
        finish = heapq.heappop(workers) + demand.least_s
        heapq.heappush(workers, finish)
        finishes.append(finish)
    return finishes


def admits(free_at_s: Sequence[float], waiting: Sequence[Demand], new: Demand) -> bool:
    """Whether a new demand can be met without making a waiting one late.

    `waiting` must be ordered by deadline. Those that are late anyway don't count against it.
    """
    if not free_at_s:
        return False
    late_before = sum(
        finish > demand.deadline_s
        for finish, demand in zip(finish_times(free_at_s, waiting), waiting, strict=True)
    )
    place = sum(demand.deadline_s <= new.deadline_s for demand in waiting)
    with_new = [*waiting[:place], new, *waiting[place:]]
    finishes = finish_times(free_at_s, with_new)
    late_after = sum(
        finish > demand.deadline_s for finish, demand in zip(finishes, with_new, strict=True)
    )
    return finishes[place] <= new.deadline_s and late_after <= late_before


def latest_finish(
    now_s: float, own: Demand, waiting: Sequence[Demand], workers: int, arrivals_per_s: float
) -> float:
    """The instant by which a request about to run should end.

    At most its own deadline; short enough that, at the present rate of arrivals, the workers
    stay below `TARGET_UTILISATION`; and such that those waiting behind it can still be met. The
    k-th of them runs in round k // workers after this one, and what time is to spare until it
    must start is shared evenly by all whose reasoning it pays for. Never less than the least.
    """
    limits = [own.deadline_s]
    for position, demand in enumerate(waiting):
        rounds_between = position // workers
        spare_s = demand.latest_start_s - now_s - own.least_s - rounds_between * demand.least_s
        if spare_s >= 0:  # who is lost anyway shortens nobody
            limits.append(now_s + own.least_s + spare_s / (rounds_between + 2))
    if arrivals_per_s > 0:
        limits.append(now_s + TARGET_UTILISATION * workers / arrivals_per_s)
    return max(min(limits), min(own.deadline_s, now_s + own.least_s))


def seconds_until_free(
    now_s: float, free_at_s: Sequence[float], waiting: Sequence[Demand]
) -> float:
    """When a client may try again: once what waits now is done. Whole seconds, at least 1."""
    finishes = [*finish_times(free_at_s, waiting), *free_at_s] if free_at_s else [now_s]
    return float(max(1, math.ceil(max(finishes) - now_s)))
