"""Compare the simulation of a fleet with real servers, and keep the service times it is fitted to.

    python -m benchmarks.fleet.validate --model artifacts/demo/ort-w8a8

Runs two real servers on this machine and the simulation of them (about seven minutes).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.client import Exchange, load, quantiles
from benchmarks.fleet.service import Service, fit_service, read_samples
from benchmarks.fleet.simulation import Fleet, simulate, summarise
from benchmarks.run import EXPECTED, ServedConfig, describe_machine, write_results
from curt.artifact import load_manifest
from curt.config import run
from curt.files import write_json
from loadtest._arrivals import load_facts

logger = logging.getLogger(__name__)

TARGET_ERROR = 0.15


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
    """Where the fitted service times are kept, for `benchmarks.fleet.size`."""


def work(config: ValidateConfig) -> None:
    """Measure real servers, simulate the same arrivals, and report how far apart they are."""
    facts, fit_facts = (
        [fact[: config.chars] for fact in load_facts(path)]
        for path in (config.cases, config.fit_cases)
    )
    machine, samples, measured = describe_machine(), [], []
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(config.serve(spares=0)) for _ in range(config.replicas)]
        urls = [server.url for server in servers]
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


if __name__ == "__main__":
    run(ValidateConfig, work, expected=EXPECTED)
