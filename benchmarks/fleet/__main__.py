"""Simulate a fleet of servers, fitted to measured replies and checked against real servers.

    python -m benchmarks.fleet validate --model artifacts/demo/ort-w8a8
    python -m benchmarks.fleet size --service artifacts/simulation/service.json

`validate` runs two real servers on this machine and the simulation of them (about seven minutes),
and keeps the fit; `size` says how many servers rates of arrivals need. Each has `--help`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from benchmarks.client import Exchange, arrivals_for, load, quantiles
from benchmarks.fleet.service import Sample, Service, fit_service
from benchmarks.run import EXPECTED, ServedConfig, describe_machine, serve, write_results
from curt.artifact import load_manifest
from curt.config import Config, run
from curt.files import write_json
from loadtest._arrivals import load_facts

if TYPE_CHECKING:
    from benchmarks.fleet.simulation import Fleet

logger = logging.getLogger(__name__)

TARGET_ERROR = 0.15
WARM_UP_SHARE = 0.5  # of a trial's length, simulated before anything counts
SEED = 0  # of simulated arrivals and draws
MOST_DOUBLINGS = 8  # of the servers that would always be busy, before a size is given up


class ValidateConfig(ServedConfig):
    """What is run for real and how long."""

    workers: int = 1
    """Of each server."""
    replicas: int = 2
    """Servers, all on this machine."""
    rates: list[float] = [5.0, 10.0, 20.0]
    """Arrivals a second to compare at."""
    requests: int = 900
    """Of each rate."""
    fit_rate: float = 12.0
    """Arrivals a second that service times are fitted from, before each of the rates."""
    fit_seconds: float = 20.0
    """How long each time."""
    chars: int = 300
    """Length facts are cut to."""
    fit_cases: Path = Path("artifacts/demo/corpus/dev.jsonl")
    """Facts for the fit."""
    repeats: int = 10
    """Simulations of each rate."""
    report: Path = Path("benchmarks/results/simulation.json")
    """File of results; raw rows go beside it."""
    service: Path = Path("artifacts/simulation/service.json")
    """Where the fitted service times are kept, for `size`."""


class SizeConfig(Config):
    """What a fleet has to keep, and what it is made of."""

    service: Path = Path("artifacts/simulation/service.json")
    """Service times, from `validate`."""
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


def read_samples(exchanges: Sequence[Exchange], facts: Sequence[str]) -> list[Sample]:
    """What whole answers took. One that a deadline cut does not tell how long it would have been.

    The n-th request was about the n-th fact, begun again at the end of the list.
    """
    samples = []
    for exchange in exchanges:
        reply = exchange.answer
        if not exchange.by_model or reply["thinking"]["cut"]:
            continue
        times = reply["timings_ms"]
        known_ms = times["queue"] + times["prefill"] + times["decode"]
        samples.append(
            Sample(
                chars=len(facts[exchange.index % len(facts)]),
                thinking_tokens=reply["thinking"]["tokens"],
                prefill_ms=times["prefill"],
                decode_ms=times["decode"],
                outside_ms=max(0.0, exchange.latency_ms - known_ms),
            )
        )
    return samples


def work_validate(config: ValidateConfig) -> None:
    """Measure real servers, simulate the same arrivals, and report how far apart they are."""
    from benchmarks.fleet.simulation import Fleet

    facts, fit_facts = (
        [fact[: config.chars] for fact in load_facts(path)]
        for path in (config.cases, config.fit_cases)
    )
    settings = {"workers": config.workers, "spares": 0, "fallback": config.fallback}
    machine, samples, measured = describe_machine(), [], []
    with contextlib.ExitStack() as stack:
        servers = [serve(config.model, **settings) for _ in range(config.replicas)]
        urls = [stack.enter_context(server).url for server in servers]
        asyncio.run(load(urls, fit_facts, 10.0, 3.0, config.deadline_ms, seed=0))  # warm up
        for seed, rate in enumerate(config.rates, config.seed):
            # Alternate, so that a machine that grows slower meanwhile does so for both.
            for_fit = load(
                urls, fit_facts, config.fit_rate, config.fit_seconds, 1_000, seed + 1_000
            )
            samples += read_samples(asyncio.run(for_fit), fit_facts)
            seconds = config.requests / rate
            compared = load(urls, facts, rate, seconds, config.deadline_ms, seed)
            measured.append((rate, asyncio.run(compared)))
    service = fit_service(samples, load_manifest(config.model).max_thinking_tokens)
    fleet = Fleet(config.replicas, config.workers, config.fallback is not None, config.deadline_ms)
    rates = [compare(service, fleet, rate, got, config.repeats) for rate, got in measured]
    worst = max(abs(row["error"]["p99"]) for row in rates)
    results = {
        "machine": machine,
        "replicas": config.replicas,
        "deadline_ms": config.deadline_ms,
        "service": service.model_dump(exclude={"samples"}) | {"mean_ms": service.mean_ms},
        "rates": rates,
        "worst_p99_error": worst,
        "passed": {f"p99_within_{TARGET_ERROR:.0%}": worst <= TARGET_ERROR},
    }
    rows = [
        {"rate_per_s": rate, "latency_ms": round(each.latency_ms, 2)}
        for rate, got in measured
        for each in got
    ]
    write_json(config.service, service.model_dump(mode="json"))
    write_results(config.report, results, rows=rows)
    for row in rates:
        logger.info("%g/s: real %s, error %s", row["rate_per_s"], row["real_ms"], row["error"])
    logger.info("%s: passed %s", config.report, results["passed"])


def compare(
    service: Service, fleet: Fleet, rate: float, exchanges: Sequence[Exchange], repeats: int
) -> dict[str, Any]:
    """Real and simulated figures of one rate; errors are simulated / real - 1.

    Simulated figures are medians over the repeats: what one run as long as the real one shows.
    """
    from benchmarks.fleet.simulation import simulate, summarise

    arrivals_s = [each.due_s - exchanges[0].due_s for each in exchanges]
    simulated = []
    for seed in range(repeats):
        requests, busy = simulate(service, fleet, arrivals_s, seed)
        simulated.append(summarise(requests, arrivals_s[-1] or 1.0, busy))
    real_ms = quantiles([each.latency_ms for each in exchanges])
    told_ms = {name: median(row["latency_ms"][name] for row in simulated) for name in real_ms}
    in_time = (each.latency_ms <= fleet.deadline_ms for each in exchanges if each.by_model)
    return {
        "rate_per_s": rate,
        "requests": len(exchanges),
        "real_ms": real_ms,
        "simulated_ms": told_ms,
        "error": {name: told_ms[name] / real_ms[name] - 1 for name in ("p50", "p95", "p99")},
        "answered_share": {
            "real": sum(in_time) / len(exchanges),
            "simulated": median(row["answered_share"] for row in simulated),
        },
    }


def work_size(config: SizeConfig) -> None:
    """Report the servers needed at each rate."""
    try:
        service = Service.model_validate_json(config.service.read_bytes())
    except ValidationError as error:
        raise ValueError(
            f"{config.service} holds no service times: make it with `validate`"
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
    from benchmarks.fleet.simulation import Fleet, simulate, summarise

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


def main(argv: list[str] | None = None) -> None:
    """Do what the first argument says; exits with a message where it can't be done."""
    verb, *options = (sys.argv[1:] if argv is None else argv) or [""]
    if verb == "validate":
        return run(ValidateConfig, work_validate, options, expected=EXPECTED)
    if verb == "size":
        return run(SizeConfig, work_size, options, expected=EXPECTED)
    sys.exit("error: say what to do: validate or size; `size --help` shows its options")


if __name__ == "__main__":
    main()
