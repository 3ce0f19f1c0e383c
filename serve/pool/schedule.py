"""Earliest-deadline-first scheduling: who can be admitted, and how long one may think.

Pure functions; all instants are `time.monotonic()` seconds. Requests are admitted by the time they
take with zero thinking: under load all reasoning is shortened before any request is refused.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

# Share of the workers' time that requests may take if all think as long as usual. Above 1, because
# the queue itself shortens thinking: a lower target would cut it while there is room for it.
TARGET_UTILISATION = 1.1


@dataclass(frozen=True, slots=True)
class Demand:
    """The time a request needs with zero thinking.

    `least_s` is a cautious estimate that nearly always suffices and includes the front's work;
    it decides whether this request can still be met. `work_s` is how long the request holds a
    worker on average; it predicts when a queue of many is done.
    """

    deadline_s: float
    least_s: float
    work_s: float

    @property
    def latest_start_s(self) -> float:
        """The last instant at which its work can begin and still meet the deadline."""
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


def admits(
    free_at_s: Sequence[float], waiting: Sequence[Demand], new: Demand, place: int | None = None
) -> bool:
    """Whether a new demand can be met without making a waiting one late.

    `waiting` must be in the order it is served in, with the new one before the one at `place`: by
    deadline, where that is not given. Demands that are late in any case are left out.
    """
    if not free_at_s:
        return False
    if place is None:
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
    admitted_per_s: float,
    usual_s: float,
    allotted: float | None = None,
) -> float:
    """Cap thinking so that queued requests meet their deadlines and the workers keep up.

    The queue: the k-th waiting request runs in round k // workers after this one. The time to
    spare until it must start is shared evenly by this request, one in each round between, and
    the waiting request itself. The rate: where those admitted, which hold a worker for `usual_s`
    each, are more than the workers can serve, each gets the time that keeps them at what is
    allotted to them, in workers' seconds a second: all of `TARGET_UTILISATION` by default.

    Returns seconds of thinking, never negative; infinite where neither cap applies.
    """
    shares = []
    for position, demand in enumerate(waiting):
        rounds_between = position // workers
        spare_s = demand.latest_start_s - now_s - own.work_s - rounds_between * demand.work_s
        if spare_s >= 0:  # a request that is late in any case shortens no other
            shares.append(spare_s / (rounds_between + 2))
    if allotted is None:
        allotted = TARGET_UTILISATION * workers
    if admitted_per_s * usual_s > allotted:
        shares.append(allotted / admitted_per_s - own.work_s)
    return max(0.0, min(shares, default=math.inf))


def seconds_until_free(
    now_s: float, free_at_s: Sequence[float], waiting: Sequence[Demand]
) -> float:
    """Whole seconds, at least 1, until all that waits now is done and a client may try again."""
    if not free_at_s:
        return 1.0
    starts = start_times(free_at_s, waiting)
    ends = [start + demand.work_s for start, demand in zip(starts, waiting, strict=True)]
    return float(max(1, math.ceil(max(*ends, *free_at_s, now_s) - now_s)))
