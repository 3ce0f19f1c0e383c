"""Simulate a fleet of servers, fitted to measured replies and checked against real replicas.

    python -m benchmarks.fleet validate --model artifacts/demo/ort-w8a8
    python -m benchmarks.fleet size --service artifacts/simulation/service.json

`validate` runs two real replicas on this machine and the simulation of them (about seven minutes),
and keeps the fit; `size` says how many servers rates of arrivals need. Each has `--help`.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from benchmarks.fleet.accuracy import ValidateConfig, describe, validate
from benchmarks.fleet.service import Service
from benchmarks.fleet.simulation import Fleet, Shape
from benchmarks.fleet.sizing import Effort, Target, size, try_fleet
from benchmarks.run import EXPECTED, describe_machine, write_results
from curt.config import Config, run
from curt.files import write_json

logger = logging.getLogger(__name__)


class SizeConfig(Config):
    """What a fleet has to keep, and what it is made of."""

    service: Path = Path("artifacts/simulation/service.json")
    """Service times, from `validate`."""
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
    balancer: Literal["round_robin", "least_outstanding"] = "least_outstanding"
    """Before the servers."""
    deadline_ms: float = 400.0
    """Of every request."""
    target: Target = Target()
    """What has to hold."""
    effort: Effort = Effort()
    """How much is simulated."""
    report: Path = Path("benchmarks/results/simulation_sizes.json")
    """File of results; a picture goes beside it."""


def main(argv: list[str] | None = None) -> None:
    """Do what the first argument says; exits with a message where it can't be done."""
    verb, *options = (sys.argv[1:] if argv is None else argv) or [""]
    if verb == "validate":
        run(ValidateConfig, work_validate, options, expected=EXPECTED)
    elif verb == "size":
        run(SizeConfig, work_size, options, expected=EXPECTED)
    else:
        sys.exit("error: say what to do: validate or size; `size --help` shows its options")


def work_validate(config: ValidateConfig) -> None:
    """Real replicas against the simulation of them."""
    from benchmarks.fleet.plot import draw_validation

    results, service, rows = validate(config)
    write_json(config.service, service.model_dump(mode="json"))
    write_results(config.report, results, rows=rows, picture=draw_validation(results, rows))
    for row in results["rates"]:
        logger.info("%g/s: real %s, error %s", row["rate_per_s"], row["real_ms"], row["error"])
    logger.info("%s: passed %s", config.report, results["passed"])


def work_size(config: SizeConfig) -> None:
    """Servers needed at each rate, and what one server gives as its rate rises."""
    from benchmarks.fleet.plot import draw_sizes

    try:
        service = Service.model_validate_json(config.service.read_bytes())
    except ValidationError as error:
        raise ValueError(
            f"{config.service} holds no service times: make it with `validate`"
        ) from error
    shape = Shape(config.workers, config.queue_size, config.margin_ms, config.fallback)
    fleet = Fleet(1, shape, config.balancer, deadline_ms=config.deadline_ms)
    most = 1e3 * config.workers / service.mean_ms()
    shares = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)
    sizes = [size(service, fleet, rate, config.target, config.effort) for rate in config.rates]
    results = {
        "machine": describe_machine(),
        "service": describe(service),
        "settings": config.model_dump(mode="json", exclude={"report"}),
        "target": config.target.model_dump(),
        "one_server": [try_fleet(service, fleet, each * most, config.effort) for each in shares],
        "sizes": sizes,
    }
    write_results(config.report, results, picture=draw_sizes(results))
    for row in sizes:
        logger.info("%g/s: %d servers", row["rate_per_s"], row["replicas"])


if __name__ == "__main__":
    main()
