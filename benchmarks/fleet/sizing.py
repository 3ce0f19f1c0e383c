"""How many servers a rate of arrivals needs, by simulating them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.fleet.fleet import (
    BURST_EVERY_S,
    Fleet,
    bursts,
    poisson,
    simulate,
    slice_of,
    summarise,
)
from benchmarks.fleet.service import Service

logger = logging.getLogger(__name__)

WARM_UP_SHARE = 0.5  # as much again is simulated before anything counts
MOST_REPLICAS = 1_000_000  # more than that is no plan, but a mistake


class Target(BaseModel):
    """What has to hold.

    The model answers `answered_share` of all requests within the deadline, and in
    `uncut_share` of all its thinking is not ended for want of time: a promise kept by thinking
    too little would cost accuracy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

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


class Effort(BaseModel):
    """How much is simulated for each number of servers tried."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    requests: int = Field(default=10_000, ge=100)
    """Simulated for each trial."""
    cell: int = Field(default=8, ge=1)
    """Servers simulated at most; a larger fleet is judged by so large a part of it."""
    burst_factor: float = Field(default=1.0, ge=1)
    """A second in ten so many times as busy as the rest; 1 for none."""
    seed: int = 0
    """Of arrivals and draws."""


def try_fleet(service: Service, fleet: Fleet, rate_per_s: float, effort: Effort) -> dict[str, Any]:
    """What clients get of a fleet, or of a part of a large one, at a rate of arrivals."""
    part, part_rate = slice_of(fleet, rate_per_s, effort.cell)
    seconds = effort.requests / part_rate
    filling_s = WARM_UP_SHARE * seconds
    if effort.burst_factor > 1:  # each period has one burst, at its beginning
        seconds, filling_s = (
            BURST_EVERY_S * math.ceil(each_s / BURST_EVERY_S) for each_s in (seconds, filling_s)
        )
    arrivals = _arrivals(part_rate, filling_s + seconds, effort)
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
    tried: list[dict[str, Any]] = []

    def meets(replicas: int) -> bool:
        row = try_fleet(service, replace(fleet, replicas=replicas), rate_per_s, effort)
        tried.append(row | {"met": target.met_by(row)})
        logger.info(
            "%g/s, %d servers: p99 %.0f ms, answered %.2f%%, uncut %.2f%%",
            rate_per_s,
            replicas,
            row["latency_ms"]["p99"],
            100 * row["answered_share"],
            100 * row["uncut_share"],
        )
        return bool(tried[-1]["met"])

    alone = summarise_alone(service, fleet, effort)
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
    best = next(row for row in tried if row["replicas"] == high)
    return {**best, "workers": high * fleet.shape.workers, "tried": _in_short(tried)}


def summarise_alone(service: Service, fleet: Fleet, effort: Effort) -> dict[str, Any]:
    """What clients get where no request ever meets another."""
    apart_s = 2 * fleet.deadline_ms / 1e3
    count = min(effort.requests, 2_000)
    alone = replace(fleet, replicas=1)
    requests, busy = simulate(service, alone, (apart_s * n for n in range(count)), effort.seed)
    return summarise(requests, apart_s * count, busy)


def _arrivals(rate_per_s: float, seconds: float, effort: Effort) -> Iterator[float]:
    if effort.burst_factor > 1:
        return bursts(rate_per_s, seconds, effort.seed, effort.burst_factor)
    return poisson(rate_per_s, seconds, effort.seed)


def _in_short(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = ("replicas", "met", "answered_share", "uncut_share", "workers_busy")
    return [
        {**{name: row[name] for name in kept}, "p99_ms": row["latency_ms"]["p99"]}
        for row in sorted(rows, key=lambda row: int(row["replicas"]))
    ]
