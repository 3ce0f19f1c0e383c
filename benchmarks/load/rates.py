"""What clients get at fixed rates of arrivals, from quiet to far beyond the capacity, and at
deadlines from hardly enough to ample ones.

    python -m benchmarks.load.rates --model artifacts/demo/ort-w8a8
    python -m benchmarks.load.rates --rates '[800]' --deadlines '[]'   # five times the capacity

Poisson arrivals of whole cases, no two the same, for so long at each rate and then, at the first
rate, under each deadline, against a server started for it. Load and short deadlines both shorten
the reasoning; the share of exact verdicts says what that costs. A miss is whatever is no full
verdict of the model within the deadline, counted from the scheduled instant; one whose answer could
not be read is told apart from those that had no time.

`front_cpu_ms` is the processor time of the front for each arrival: its event loop runs on one core,
so at a quiet rate 1000 / front_cpu_ms is the most requests a second that one front can answer,
however many workers it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmarks.client import Exchange, exact_share, load, quantiles, thinking_of
from benchmarks.run import EXPECTED, RunningServer, ServedConfig, write_results
from curt.config import run
from curt.law.verdict import Verdict
from curt.scores.statistics import wilson

logger = logging.getLogger(__name__)

WARM_UP = 20  # requests before the first rate: the server learns how quick it is


class RatesConfig(ServedConfig):
    """What to ask of what, and how often."""

    rates: list[float] = Field([2.0, 5.0, 8.0, 12.0], min_length=1)
    """Arrivals a second; `deadline_ms` is that of every request."""
    deadlines: list[int] = [30, 50, 100, 200, 400, 800]
    """Milliseconds; each is asked at the first of `rates`."""
    seconds: float = Field(120.0, gt=0)
    """How long each rate and each deadline lasts."""
    settle_seconds: float = Field(6.0, ge=0)
    """Between two: arrivals of the last few seconds shorten everyone's reasoning."""
    report: Path = Path("benchmarks/results/rates.json")
    """File of results; raw rows and a picture go beside it."""


def work(config: RatesConfig) -> None:
    """Measure, write and draw."""
    from benchmarks.pictures import draw_rates

    with config.serve() as server:
        results, rows = asyncio.run(measure(config, server))
    write_results(config.report, results, rows=rows, picture=draw_rates(results))
    logger.info("%s is ready", config.report)


async def measure(
    config: RatesConfig, server: RunningServer
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """A summary of each rate and of each deadline, and the latency of every request."""
    cases = config.read_cases()
    facts, verdicts = [case.fact for case in cases], [case.verdict for case in cases]
    described, url = config.describe(), server.url
    rows: list[dict[str, float]] = []

    async def measure_one(rate: float, deadline_ms: int) -> dict[str, Any]:
        await asyncio.sleep(config.settle_seconds)
        cpu_s = server.cpu_s()
        exchanges = await load(url, facts, rate, config.seconds, deadline_ms, config.seed)
        cpu_ms = (server.cpu_s() - cpu_s) * 1e3 / max(1, len(exchanges))
        own = {"rate_per_s": rate, "deadline_ms": deadline_ms}
        rows.extend(
            own | {"latency_ms": round(each.latency_ms, 2)} for each in exchanges if each.got.status
        )
        row = summarise(exchanges, verdicts, deadline_ms, config.seconds)
        logger.info(
            "%d ms at %g/s: %d misses, %.3f exact, front %.2f ms, %s",
            deadline_ms,
            rate,
            row["misses"]["all"],
            row["exact_share"] or 0.0,
            cpu_ms,
            row["latency_ms"],
        )
        return {**own, "seconds": config.seconds, **row, "front_cpu_ms": round(cpu_ms, 3)}

    await load(url, facts, WARM_UP / 2, 2, config.deadline_ms, config.seed)
    return {
        **described,
        "deadline_ms": config.deadline_ms,
        "rates": [await measure_one(rate, config.deadline_ms) for rate in config.rates],
        "deadlines": [await measure_one(config.rates[0], each) for each in config.deadlines],
    }, rows


def summarise(
    exchanges: Sequence[Exchange], verdicts: Sequence[Verdict], deadline_ms: float, seconds: float
) -> dict[str, Any]:
    """Latencies of whatever came, misses by kind, thinking and right verdicts of so many seconds.

    Latencies hold every request that had a reply, refusals too; a request has one kind of miss.
    """
    kinds = Counter(why_missed(exchange, deadline_ms) for exchange in exchanges)
    good = kinds.pop("", 0)
    arrived, missed = len(exchanges), sum(kinds.values())
    answers = [each for each in exchanges if each.got.status == 200]
    return {
        "arrived": arrived,
        "good": good,
        "goodput_per_s": good / seconds,
        "misses": {"all": missed, **kinds},
        "miss_share": missed / arrived if arrived else None,
        "miss_share_interval": wilson(missed / arrived, arrived) if arrived else None,
        "latency_ms": quantiles([e.latency_ms for e in exchanges if e.got.status]),
        "answer_ms": quantiles([each.latency_ms for each in answers]),
        "later_than_deadline_ms": quantiles([each.service_ms - deadline_ms for each in answers]),
        "refusal_ms": quantiles([e.service_ms for e in exchanges if e.got.status == 503]),
        "exact_share": exact_share(exchanges, verdicts),
        **thinking_of(exchanges),
        "client_lag_ms": quantiles([e.lag_ms for e in exchanges]),
    }


def why_missed(exchange: Exchange, deadline_ms: float) -> str:
    """Why a request is a miss; empty where it is none."""
    status = exchange.got.status
    if status == 0:
        return "lost"
    if status == 503:
        return "refused"
    if status != 200:
        return "error"
    answer = exchange.answer
    if answer["degraded"]:
        return f"degraded: {answer['degraded_reason']}"
    return "late" if exchange.latency_ms > deadline_ms else ""


if __name__ == "__main__":
    run(RatesConfig, work, expected=EXPECTED)
