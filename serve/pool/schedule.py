"""Earliest-deadline-first arithmetic: who is late, and how long one may take. Pure functions.

All instants are `time.monotonic()` seconds. The least a request takes (zero thinking) decides
who fits: under load everyone's reasoning is shortened before anyone is refused.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

# Of the workers, if all thought as long as is usual. The queue shortens thinking by itself: a lower
# target would cut it while there is room for it, which costs answers and saves nobody.
TARGET_UTILISATION = 1.1


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request needs, with zero thinking.

    `least_s` is what to allow for it so that it is in time nearly always, the front's part
    included; `work_s` how long it is expected to hold a worker. One request is judged by the
    first, a queue of many by the second.
    """

    deadline_s: float
    least_s: float
    work_s: float

    @property
    def latest_start_s(self) -> float:
        """After this instant it can't be met any more."""
        return self.deadline_s - self.least_s


def start_times(free_at_s: Sequence[float], demands: Sequence[Demand]) -> list[float]:
    """When each demand starts if the workers take them in the order given, with zero thinking."""
    workers = list(free_at_s)
    heapq.heapify(workers)
    starts = []
    for demand in demands:
        start = heapq.heappop(workers)
        heapq.heappush(workers, start + demand.work_s)
        starts.append(start)
    return starts


def admits(free_at_s: Sequence[float], waiting: Sequence[Demand], new: Demand) -> bool:
    """Whether a new demand can be met without making a waiting one late.

    `waiting` must be ordered by deadline. Those that are late anyway don't count against it.
    """
    if not free_at_s:
        return False
    place = sum(demand.deadline_s <= new.deadline_s for demand in waiting)
    with_new = [*waiting[:place], new, *waiting[place:]]
    starts = start_times(free_at_s, with_new)
    if starts[place] > new.latest_start_s:
        return False
    return count_late(free_at_s, with_new) <= count_late(free_at_s, waiting)


def count_late(free_at_s: Sequence[float], demands: Sequence[Demand]) -> int:
    """How many of the demands, taken in the order given, start too late for their deadlines."""
    starts = start_times(free_at_s, demands)
    return sum(s > demand.latest_start_s for s, demand in zip(starts, demands, strict=True))


def shared_room_s(
    now_s: float,
    own: Demand,
    waiting: Sequence[Demand],
    workers: int,
    arrivals_per_s: float,
    usual_s: float,
) -> float:
    """How long a request about to run may think for the sake of others, whatever its deadline.

    So that those waiting behind it can still be met: the k-th of them runs in round k // workers
    after this one, and what time is to spare until it must start is shared evenly by all whose
    reasoning it pays for. And where requests that hold a worker for `usual_s` each are more, at
    the present rate of arrivals, than the workers can do: so that they stay at
    `TARGET_UTILISATION`. Infinite where there are no others, never negative.
    """
    shares = []
    for position, demand in enumerate(waiting):
        rounds_between = position // workers
        spare_s = demand.latest_start_s - now_s - own.work_s - rounds_between * demand.work_s
        if spare_s >= 0:  # who is lost anyway shortens nobody
            shares.append(spare_s / (rounds_between + 2))
    if arrivals_per_s * usual_s > TARGET_UTILISATION * workers:
        shares.append(TARGET_UTILISATION * workers / arrivals_per_s - own.work_s)
    return max(0.0, min(shares, default=math.inf))


def seconds_until_free(
    now_s: float, free_at_s: Sequence[float], waiting: Sequence[Demand]
) -> float:
    """When a client may try again: once what waits now is done. Whole seconds, at least 1."""
    if not free_at_s:
        return 1.0
    starts = start_times(free_at_s, waiting)
    ends = [start + demand.work_s for start, demand in zip(starts, waiting, strict=True)]
    return float(max(1, math.ceil(max(*ends, *free_at_s, now_s) - now_s)))
