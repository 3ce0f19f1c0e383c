"""How many servers keep a promise at each rate of arrivals, by simulation.

python -m benchmarks.fleet.size --service artifacts/simulation/service.json
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from benchmarks.client import arrivals_for
from benchmarks.fleet.service import Service
from benchmarks.fleet.simulation import Fleet, simulate, summarise
from benchmarks.run import EXPECTED, describe_machine, write_results
from curt.config import Config, run

logger = logging.getLogger(__name__)

WARM_UP_SHARE = 0.5  # of a trial's length, simulated before anything counts
SEED = 0  # of simulated arrivals and draws
MOST_DOUBLINGS = 8  # of the servers that would always be busy, before a size is given up


class SizeConfig(Config):
    """What a fleet has to keep, and what it is made of."""

    service: Path = Path("artifacts/simulation/service.json")
    """Service times, from `benchmarks.fleet.validate`."""
    rates: list[float] = Field([1.0, 100.0, 10_000.0], min_length=1)
    """Arrivals a second."""
    workers: int = Field(1, ge=1)
    """Of a server, each on a core of its own."""
    fallback: bool = True
    """Whether servers have a classifier."""
    deadline_ms: float = 400.0
    """Of every request."""
    answered_share: float = Field(0.999, ge=0, le=1)
    """Target of the share that the model answers within the deadline, which p99 keeps too."""
    uncut_share: float = Field(0.95, ge=0, le=1)
    """Target of the share that thinks as long as the model wants: a fleet that keeps its deadlines
    by thinking too little costs accuracy."""
    requests: int = Field(10_000, ge=100)
    """Simulated for each number of servers tried."""
    cell: int = Field(8, ge=1)
    """Servers simulated at most; a larger fleet is judged by so large a part of it."""
    report: Path = Path("benchmarks/results/simulation_sizes.json")
    """File of results."""


def work(config: SizeConfig) -> None:
    """Report the servers needed at each rate."""
    try:
        service = Service.model_validate_json(config.service.read_bytes())
    except ValidationError as error:
        raise ValueError(
            f"{config.service} holds no service times: make it with benchmarks.fleet.validate"
        ) from error
    sizes = [find_size(config, service, rate) for rate in config.rates]
    settings = config.model_dump(mode="json", exclude={"report"})
    results = {"machine": describe_machine(), "mean_ms": service.mean_ms, "settings": settings}
    write_results(config.report, results | {"sizes": sizes})
    for row in sizes:
        logger.info("%g/s: %d servers", row["rate_per_s"], row["replicas"])


def find_size(config: SizeConfig, service: Service, rate_per_s: float) -> dict[str, Any]:
    """The summary of the smallest fleet that meets the targets.

    Raises ValueError when none does, where even a request alone misses them.
    """

    @cache
    def row_of(replicas: int) -> dict[str, Any]:
        return try_fleet(config, service, replicas, rate_per_s)

    busiest = max(1, math.ceil(rate_per_s * service.mean_ms / 1e3 / config.workers))
    tried = [busiest << doublings for doublings in range(MOST_DOUBLINGS + 1)]
    high = next((each for each in tried if row_of(each)["met"]), None)
    if high is None:
        raise ValueError(
            f"{tried[-1]} servers miss the target at {rate_per_s:g} a second: a quicker machine, a "
            "smaller model, a longer deadline or a fit on a machine without other work is needed"
        )
    smaller = range(1, high) if high == busiest else range(high // 2 + 1, high)
    return row_of(
        bisect_left([*smaller, high], True, key=lambda each: row_of(each)["met"]) + smaller.start
    )


def try_fleet(
    config: SizeConfig, service: Service, replicas: int, rate_per_s: float
) -> dict[str, Any]:
    """What clients get of a fleet at a rate of arrivals, and whether it meets the targets.

    A large fleet is judged by a part of it with its share of the arrivals, as if it were made of
    cells with a balancer each: a little worse than one balancer over all.
    """
    simulated = min(replicas, config.cell)
    fleet = Fleet(simulated, config.workers, config.fallback, config.deadline_ms)
    rate = rate_per_s * simulated / replicas
    seconds = config.requests / rate
    filling_s = WARM_UP_SHARE * seconds  # servers that start empty look better than they are
    requests, busy = simulate(
        service, fleet, arrivals_for(rate, SEED, filling_s + seconds), seed=SEED
    )
    row = summarise([each for each in requests if each.at_s >= filling_s], seconds, busy)
    met = (
        row["latency_ms"]["p99"] <= config.deadline_ms
        and row["answered_share"] >= config.answered_share
        and row["uncut_share"] >= config.uncut_share
    )
    size = {"replicas": replicas, "workers": replicas * config.workers}
    return {"rate_per_s": rate_per_s, **size, "simulated_replicas": simulated, "met": met, **row}


if __name__ == "__main__":
    run(SizeConfig, work, expected=EXPECTED)
