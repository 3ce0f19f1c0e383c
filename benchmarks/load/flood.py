"""One client that floods the server beside one that behaves, and what the second loses.

    python -m benchmarks.load.flood --minutes 10

Each has an API key of the same weight and no limit of its own, so nothing but fair shares holds the
flood back. Both send Poisson arrivals of whole cases, no two the same; the one that behaves is
asked to be served alone first. A loss is whatever is no full verdict of the model within the
deadline.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmarks.client import load
from benchmarks.load.rates import summarise
from benchmarks.run import EXPECTED, RunningServer, ServedConfig, write_results
from curt.config import run
from serve.edge.keys import add_key, make_key

logger = logging.getLogger(__name__)

MOST_LOST = 0.01  # of what the client that behaves asks


class FloodConfig(ServedConfig):
    """How hard, and how long."""

    calm_rate: float = Field(4.0, gt=0)
    """Arrivals a second of the client that behaves."""
    flood_rate: float = Field(300.0, gt=0)
    """Arrivals a second of the one that floods; twice what the demo's server answers."""
    minutes: float = Field(10.0, gt=0)
    """How long both ask."""
    alone_seconds: float = Field(30.0, gt=0)
    """How long the client that behaves asks alone before."""
    report: Path = Path("benchmarks/results/flood.json")
    """File of results."""


def work(config: FloodConfig) -> int:
    """Measure and write; 1 where the client that behaves lost too much."""
    with tempfile.TemporaryDirectory() as folder:
        file, keys = Path(folder, "keys.json"), {}
        for name in ("calm", "flood"):
            keys[name], record = make_key(name, "predict")
            add_key(file, record)
        with config.serve(keys_file=file) as server:
            results = asyncio.run(measure(config, server, keys["calm"], keys["flood"]))
    write_results(config.report, results)
    logger.info("%s: %s", config.report, results["passed"])
    return 0 if all(results["passed"].values()) else 1


async def measure(
    config: FloodConfig, server: RunningServer, calm: str, flood: str
) -> dict[str, Any]:
    """What became of the requests of both, by their keys."""
    cases = config.read_cases()
    described = config.describe()

    async def ask(key: str, rate: float, seconds: float) -> dict[str, Any]:
        facts = [case.fact for case in cases]
        got = await load(
            server.url, facts, rate, seconds, config.deadline_ms, config.seed, api_key=key
        )
        row = summarise(got, [case.verdict for case in cases], config.deadline_ms, seconds)
        return {"rate_per_s": rate, "seconds": seconds, **row}

    alone = await ask(calm, config.calm_rate, config.alone_seconds)
    seconds = config.minutes * 60
    beside, flooding = await asyncio.gather(
        ask(calm, config.calm_rate, seconds), ask(flood, config.flood_rate, seconds)
    )
    for name, row in (("alone", alone), ("beside the flood", beside), ("flood", flooding)):
        logger.info(
            "%s: %s, exact %s, %s", name, row["misses"], row["exact_share"], row["latency_ms"]
        )
    return {
        **described,
        "deadline_ms": config.deadline_ms,
        "alone": alone,
        "beside": beside,
        "flood": flooding,
        "passed": {"who_behaves_loses_under_1_percent": (beside["miss_share"] or 0) < MOST_LOST},
    }


if __name__ == "__main__":
    run(FloodConfig, work, expected=EXPECTED)
