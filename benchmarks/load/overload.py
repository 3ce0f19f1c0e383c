"""Load a server at a multiple of its capacity and record what its clients get.

    python -m benchmarks.load.overload --model artifacts/demo/ort-w8a8

First the capacity: Poisson arrivals at rising rates, until fewer than nine in ten get a good answer
(a full verdict of the model within the deadline) at a rate twice; the most good answers a second
at any rate are the capacity. Then arrivals at a multiple of it. Clients are timed from their
scheduled instant, and the report says how late this program itself was: the loop's timers alone
are up to a millisecond; where it is many, the figures are its own, not the server's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.client import Exchange, load, quantiles
from benchmarks.run import EXPECTED, ServedConfig, describe_machine, write_results
from curt.config import run
from loadtest._arrivals import load_facts
from loadtest.capacity._rates import SearchPlan, find_highest

logger = logging.getLogger(__name__)

LATE_MS = 10.0  # an admitted answer may be this much later than its deadline
REFUSAL_MS = 50.0
KEPT_UP = 0.9  # of the arrivals answered well; below it the rate is beyond the capacity


class RampConfig(ServedConfig):
    """How the capacity is measured, for whoever loads a server at a multiple of it."""

    capacity: float | None = None
    """Good answers a second the server can give; measured first when left out."""
    ramp_start: float = 8.0
    """First rate of the measurement of the capacity."""
    ramp_factor: float = 1.5
    """Each rate to the one before."""
    ramp_seconds: float = 6.0
    """How long each rate lasts."""
    settle_seconds: float = 3.0
    """Between two rates, so that one's queue is not the other's."""
    chars: int = 300
    """Length facts are cut to."""

    def load_facts(self) -> list[str]:
        """The facts of the cases, cut to their length."""
        return [fact[: self.chars] for fact in load_facts(self.cases)]


class OverloadConfig(RampConfig):
    """What to load and how much."""

    multiple: float = 5.0
    """Arrivals, as a multiple of the capacity."""
    seconds: float = 120.0
    """How long to overload."""
    report: Path = Path("benchmarks/results/overload.json")
    """File of results."""


def work(config: OverloadConfig) -> None:
    """Measure and write the results."""
    with config.serve() as server:
        results = asyncio.run(measure(config, server.url))
    write_results(config.report, results)
    logger.info("%s: passed %s", config.report, results["passed"])


async def measure(config: OverloadConfig, url: str) -> dict[str, Any]:
    """Find the capacity, overload, and judge. Raises ValueError where there is no capacity."""
    facts = config.load_facts()
    capacity, ramp = await find_capacity(config, url, facts)
    rate = capacity * config.multiple
    logger.info("capacity %.1f/s; now %.1f/s for %.0f s", capacity, rate, config.seconds)
    exchanges = await load([url], facts, rate, config.seconds, config.deadline_ms, config.seed)
    row = summarise(exchanges, rate, config.seconds, config.deadline_ms)
    share = row["goodput_per_s"] / capacity
    return {
        "machine": describe_machine(),
        "deadline_ms": config.deadline_ms,
        "capacity_per_s": capacity,
        "capacity_given": config.capacity is not None,
        "ramp": ramp,
        "multiple": config.multiple,
        "overload": row,
        "goodput_of_capacity": share,
        "passed": {
            "goodput_at_least_90_percent_of_capacity": share >= 0.9,
            f"every_refusal_under_{REFUSAL_MS:.0f}_ms": row["refusal_ms"].get("max", 0)
            < REFUSAL_MS,
            f"no_answer_later_than_deadline_and_{LATE_MS:.0f}_ms": row["later_than_allowed"] == 0,
            "nothing_lost": row["statuses"].get("0", 0) == 0,
        },
    }


async def find_capacity(
    config: RampConfig, url: str, facts: Sequence[str]
) -> tuple[float, list[dict[str, Any]]]:
    """The most good answers a second, and the summary of every rate that was tried.

    Raises ValueError when the server falls behind at the first rate: then nothing was measured.
    """
    if config.capacity is not None:
        return config.capacity, []
    rows: list[dict[str, Any]] = []

    async def keeps_up(rate: float) -> bool:
        seconds = config.ramp_seconds
        exchanges = await load([url], facts, rate, seconds, config.deadline_ms, config.seed)
        rows.append(summarise(exchanges, rate, seconds, config.deadline_ms))
        logger.info("%.1f/s: %.1f good answers a second", rate, rows[-1]["goodput_per_s"])
        await asyncio.sleep(config.settle_seconds)
        return 1 - float(rows[-1]["miss_share"]) >= KEPT_UP

    plan = SearchPlan(
        start_per_s=config.ramp_start,
        min_per_s=config.ramp_start,
        factor=config.ramp_factor,
        precision=config.ramp_factor,  # the ramp alone, without a bisection after it
        attempts=2,
    )
    if not await find_highest(keeps_up, plan):
        raise ValueError(
            f"{rows[-1]['goodput_per_s']:.1f} good answers a second at {config.ramp_start:.1f}/s: "
            "the server falls behind at the first rate; is it ready, is the machine busy with "
            "other work? Else give a lower --ramp_start"
        )
    return max(row["goodput_per_s"] for row in rows), rows


def summarise(
    exchanges: Sequence[Exchange], rate: float, seconds: float, deadline_ms: float
) -> dict[str, Any]:
    """Figures of one rate. A miss is whatever is no full verdict within the deadline."""
    answers = [(each, each.answer) for each in exchanges if each.got.status == 200]
    refusals_ms = [each.service_ms for each in exchanges if each.got.status == 503]
    services_ms = [each.service_ms for each, _ in answers]
    good = sum(each.full and each.latency_ms <= deadline_ms for each in exchanges)
    thinking = [answer["thinking"]["tokens"] for _, answer in answers]
    return {
        "rate_per_s": rate,
        "seconds": seconds,
        "arrived": len(exchanges),
        "statuses": dict(Counter(str(each.got.status) for each in exchanges)),
        "goodput_per_s": good / seconds,
        "misses": len(exchanges) - good,
        "miss_share": (len(exchanges) - good) / len(exchanges) if exchanges else 0.0,
        "mean_thinking_tokens": fmean(thinking) if thinking else None,
        "degraded": sum(answer["degraded"] for _, answer in answers),
        "later_than_deadline": sum(ms > deadline_ms for ms in services_ms),
        "later_than_allowed": sum(ms > deadline_ms + LATE_MS for ms in services_ms),
        "answer_ms": quantiles([each.latency_ms for each, _ in answers]),
        "answer_from_sending_ms": quantiles(services_ms),
        "refusal_ms": quantiles(refusals_ms),
        "refusals_of_50_ms_or_more": sum(ms >= REFUSAL_MS for ms in refusals_ms),
        "client_lag_ms": quantiles([each.lag_ms for each in exchanges]),
    }


if __name__ == "__main__":
    run(OverloadConfig, work, expected=EXPECTED)
