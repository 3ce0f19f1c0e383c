"""How many servers a rate of arrivals needs, by simulating them."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

from pydantic import Field

from benchmarks.client import arrivals_for
from benchmarks.fleet.service import Service
from benchmarks.fleet.simulation import Fleet, simulate, summarise
from curt.config import FrozenModel

logger = logging.getLogger(__name__)

WARM_UP_SHARE = 0.5  # as much again is simulated before anything counts
MOST_REPLICAS = 1_000_000  # more than that is no plan, but a mistake


class Target(FrozenModel):
    """What has to hold.

    The model answers `answered_share` of all requests within the deadline, and in
    `uncut_share` of all its thinking is not ended for want of time: a promise kept by thinking
    too little would cost accuracy.
    """

    p99_ms: float = 400.0
    """Of everything that is answered or refused."""
    answered_share: float = Field(default=0.999, ge=0, le=1)
    """Answered by the model within the deadline."""
    uncut_share: float = Field(default=0.95, ge=0, le=1)
    """Answered with as much thinking as the model wanted."""

    def met_by(self, row: dict[str, Any]) -> bool:
        """Whether a summary of requests keeps all of it."""
        return bool(
            row["latency_ms"]["p99"] <= self.p99_ms
            and row["answered_share"] >= self.answered_share
            and row["uncut_share"] >= self.uncut_share
        )


class Effort(FrozenModel):
    """How much is simulated for each number of servers tried."""

    requests: int = Field(default=10_000, ge=100)
    """Simulated for each trial."""
    cell: int = Field(default=8, ge=1)
    """Servers simulated at most; a larger fleet is judged by so large a part of it."""
    seed: int = 0
    """Of arrivals and draws."""


def try_fleet(service: Service, fleet: Fleet, rate_per_s: float, effort: Effort) -> dict[str, Any]:
    """What clients get of a fleet at a rate of arrivals.

    A large fleet is judged by a part of it with its share of the arrivals: cells of that size, each
    with a balancer of its own, which is a little worse than one balancer over all.
    """
    part = replace(fleet, replicas=min(fleet.replicas, effort.cell))
    part_rate = rate_per_s * part.replicas / fleet.replicas
    seconds = effort.requests / part_rate
    filling_s = WARM_UP_SHARE * seconds
    arrivals = arrivals_for(part_rate, effort.seed, filling_s + seconds)
    requests, busy = simulate(service, part, arrivals, seed=effort.seed)
    # Servers that start empty look better than they are: queues of a busy fleet fill slowly.
    row = summarise([each for each in requests if each.at_s >= filling_s], seconds, busy)
    return {
        "rate_per_s": rate_per_s,
        "replicas": fleet.replicas,
        "simulated_replicas": part.replicas,
        "simulated_rate_per_s": part_rate,
        **row,
    }


def size(
    service: Service, fleet: Fleet, rate_per_s: float, target: Target, effort: Effort
) -> dict[str, Any]:
    """The summary of the smallest fleet that meets the target, with all that were tried.

    `fleet.replicas` is not looked at. Raises ValueError when no number of servers would do:
    when a request alone misses the target too.
    """
    tried: dict[int, dict[str, Any]] = {}

    def meets(replicas: int) -> bool:
        row = try_fleet(service, replace(fleet, replicas=replicas), rate_per_s, effort)
        tried[replicas] = row | {"met": target.met_by(row)}
        logger.info(
            "%g/s, %d servers: p99 %.0f ms, answered %.2f%%, uncut %.2f%%",
            rate_per_s,
            replicas,
            row["latency_ms"]["p99"],
            100 * row["answered_share"],
            100 * row["uncut_share"],
        )
        return bool(tried[replicas]["met"])

    apart_s = 2 * fleet.deadline_ms / 1e3  # no request ever meets another
    count = min(effort.requests, 2_000)
    arrivals = (apart_s * number for number in range(count))
    requests, busy = simulate(service, replace(fleet, replicas=1), arrivals, effort.seed)
    alone = summarise(requests, apart_s * count, busy)
    if not target.met_by(alone):
        raise ValueError(
            "requests that come one at a time miss the target "
            f"(p99 {alone['latency_ms']['p99']:.0f} ms, answered "
            f"{alone['answered_share']:.2%}, uncut {alone['uncut_share']:.2%}): a "
            "quicker machine, a smaller model or a longer deadline is needed, or a fit taken on a "
            "machine without other work"
        )
    most_busy = rate_per_s * service.mean_ms() / 1e3 / fleet.shape.workers
    low, high = 0, max(1, math.ceil(most_busy))
    while not meets(high):
        low, high = high, high * 2
        if high > MOST_REPLICAS:
            raise ValueError(f"{rate_per_s:g} a second: over {MOST_REPLICAS} servers")
    while high - low > max(1, high // 50):  # to 2%
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    kept = ("replicas", "met", "answered_share", "uncut_share", "workers_busy")
    in_short = [
        {name: tried[replicas][name] for name in kept}
        | {"p99_ms": tried[replicas]["latency_ms"]["p99"]}
        for replicas in sorted(tried)
    ]
    return {**tried[high], "workers": high * fleet.shape.workers, "tried": in_short}
