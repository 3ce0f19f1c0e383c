"""Simulate a fleet of servers, fitted to measured replies and checked against real replicas.

    python -m benchmarks.fleet validate --model artifacts/demo/ort-w8a8
    python -m benchmarks.fleet fit --model artifacts/demo/ort-w8a8
    python -m benchmarks.fleet size --service artifacts/simulation/service.json

`validate` runs two real replicas on this machine and the simulation of them (about seven minutes),
and keeps the fit; `fit` makes a fit alone; `size` says how many servers rates of arrivals need.
Each has `--help`.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from benchmarks.fleet.accuracy import ValidateConfig, describe, validate
from benchmarks.fleet.collect import Replicas, ask, read_facts, warm_up
from benchmarks.fleet.fleet import Balancer, Fleet
from benchmarks.fleet.plot import draw_sizes, draw_validation
from benchmarks.fleet.replica import Shape
from benchmarks.fleet.service import Service
from benchmarks.fleet.sizing import Effort, Target, size, try_fleet
from benchmarks.run import describe_machine
from curt.config import Config, load_config
from curt.files import write_atomic, write_json
from curt.logs import configure_logging

logger = logging.getLogger(__name__)


class FitConfig(Config):
    """What to measure for service times."""

    model: Path = Path("artifacts/demo/ort-w8a8")
    """Model folder to serve."""
    fallback: Path | None = Path("artifacts/demo/fallback")
    """Its classifier."""
    replicas: int = 1
    """Servers of one worker each on this machine."""
    first_port: int = 8310
    """Port of the first."""
    rate: float = 8.0
    """Arrivals a second."""
    seconds: float = 60.0
    """How long."""
    deadlines_ms: tuple[int, int] = (25, 1_000)
    """Between which deadlines are drawn; half of the requests have the longer."""
    chars: int = 300
    """Length facts are cut to."""
    cases: Path = Path("artifacts/demo/corpus/dev.jsonl")
    """Where the facts come from."""
    seed: int = 1
    """Of arrivals and deadlines."""
    service: Path = Path("artifacts/simulation/service.json")
    """File to write."""


class SizeConfig(Config):
    """What a fleet has to keep, and what it is made of."""

    service: Path = Path("artifacts/simulation/service.json")
    """Service times, from `fit` or `validate`."""
    rates: list[float] = Field([1.0, 100.0, 10_000.0], min_length=1)
    """Arrivals a second."""
    workers: int = Field(1, ge=1)
    """Of a server, on cores of their own as far as the fit's contention says."""
    queue_size: int = 64
    """As CURT_QUEUE_SIZE."""
    margin_ms: float = 15.0
    """As CURT_MARGIN_MS."""
    fallback: bool = True
    """Whether servers have a classifier."""
    balancer: Balancer = "least_outstanding"
    """Before the servers."""
    deadline_ms: float = 400.0
    """Of every request."""
    target: Target = Target()
    """What has to hold."""
    effort: Effort = Effort()
    """How much is simulated."""
    report: Path = Path("benchmarks/results/simulation_sizes.json")
    """File of results."""
    figure: Path = Path("benchmarks/results/simulation_sizes.png")
    """Picture of them."""


def main(argv: list[str] | None = None) -> None:
    """Do what the first argument says; exits with a message where it can't be done."""
    verb, *options = sys.argv[1:] if argv is None else argv
    commands = {"validate": run_validate, "fit": run_fit, "size": run_size}
    if verb not in commands:
        sys.exit(f"error: say what to do: {', '.join(commands)}; `fit --help` shows its options")
    configure_logging()
    try:
        commands[verb](options)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


def run_validate(options: list[str]) -> None:
    """Real replicas against the simulation of them."""
    config = load_config(ValidateConfig, options)
    results, service = validate(config)
    write_json(config.service, service.model_dump(mode="json"))
    write_json(config.report, results)
    write_atomic(config.figure, draw_validation(results))
    for row in results["rates"]:
        logger.info("%g/s: real %s, error %s", row["rate_per_s"], row["real_ms"], row["error"])
    logger.info("%s: passed %s", config.report, results["passed"])


def run_fit(options: list[str]) -> None:
    """Service times of a model on this machine."""
    config = load_config(FitConfig, options)
    facts = read_facts(config.cases, config.chars)
    running = Replicas.running(
        config.model,
        replicas=config.replicas,
        first_port=config.first_port,
        facts=facts,
        workers=1,
        spares=0,
        fallback=config.fallback,
    )
    with running as replicas:
        warm_up(replicas, facts)
        asked = ask(
            replicas,
            facts,
            rate_per_s=config.rate,
            seconds=config.seconds,
            seed=config.seed,
            deadlines_ms=config.deadlines_ms,
        )
        service = replicas.fit(asked)
    write_json(config.service, service.model_dump(mode="json"))
    logger.info("%s: %s", config.service, describe(service))


def run_size(options: list[str]) -> None:
    """Servers needed at each rate, and what one server gives as its rate rises."""
    config = load_config(SizeConfig, options)
    try:
        service = Service.model_validate_json(config.service.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{config.service} holds no service times: make it with `fit`") from error
    shape = Shape(config.workers, config.queue_size, config.margin_ms, config.fallback)
    fleet = Fleet(1, shape, config.balancer, deadline_ms=config.deadline_ms)
    most = 1e3 * config.workers / service.mean_ms()
    one: list[dict[str, Any]] = [
        try_fleet(service, fleet, share * most, config.effort)
        for share in (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)
    ]
    sizes = [size(service, fleet, rate, config.target, config.effort) for rate in config.rates]
    results = {
        "machine": describe_machine(),
        "service": describe(service),
        "settings": config.model_dump(mode="json"),
        "target": config.target.model_dump(),
        "one_server": one,
        "sizes": sizes,
    }
    write_json(config.report, results)
    write_atomic(config.figure, draw_sizes(results))
    for row in sizes:
        logger.info("%g/s: %d servers", row["rate_per_s"], row["replicas"])


if __name__ == "__main__":
    main()
