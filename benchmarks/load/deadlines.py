"""Measure how latency and accuracy change with the deadline and with the load.

    python -m benchmarks.load.deadlines --model artifacts/demo/ort-w8a8

The same cases, as they are, are asked at every deadline at one rate below the capacity, then at
rising rates under one deadline, where load shortens everyone's reasoning. Arrivals are Poisson.

Accuracy is over all requests, where one without a verdict is wrong and the classifier's verdict
counts as what it says. Intervals are Wilson's at 95% over different cases, not over their
repetitions. An answer is late where it comes more than 10 ms after its deadline, counted from
sending.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from benchmarks.client import (
    Exchange,
    quantiles,
    read_verdict,
    send_on_time,
    thinking_of,
    write_body,
)
from benchmarks.run import EXPECTED, ServedConfig, write_results
from curt.config import run
from curt.corpus.case import Case
from curt.scores.metrics import score_verdicts
from curt.scores.statistics import wilson
from loadtest._arrivals import arrival_times_s
from loadtest._http import PATIENCE_S, HttpClient

logger = logging.getLogger(__name__)

LATE_MS = 10.0  # an admitted answer may be this much later than its deadline, at p99.9
SCORES = ("exact", "charge_accuracy", "article_accuracy", "term_accuracy")
WARM_UP = 20  # requests before the first measurement


class DeadlinesConfig(ServedConfig):
    """What to ask of what, how soon and how often. `deadline_ms` is that under load."""

    deadlines: list[int] = [30, 50, 100, 200, 400, 800]
    """Milliseconds; each is asked at `rate`."""
    rate: float = Field(8.0, gt=0)
    """Arrivals a second at every deadline; below the capacity."""
    rates: list[float] = [5.0, 20.0, 40.0, 60.0, 80.0]
    """Arrivals a second under load; each is asked at `deadline_ms`."""
    repeats: int = Field(2, ge=1)
    """How often each case is asked at each deadline and rate, in another order each time."""
    least_seconds: float = Field(15.0, ge=0)
    """Cases are repeated more often at rates that would be over sooner."""
    settle_seconds: float = Field(6.0, ge=0)
    """Before each: arrivals of the last few seconds shorten everyone's reasoning."""
    report: Path = Path("benchmarks/results/deadlines.json")
    """File of results; raw rows and a picture go beside it."""


class AskedCase(NamedTuple):
    """A case and what came of asking it."""

    case: Case
    exchange: Exchange


def work(config: DeadlinesConfig) -> None:
    """Measure, write and draw."""
    from benchmarks.pictures import draw_deadlines

    with config.serve() as server:
        results, rows = asyncio.run(measure(config, server.url))
    write_results(config.report, results, rows=rows, picture=draw_deadlines(results))
    logger.info("%s is ready: %s", config.report, results["passed"])


async def measure(
    config: DeadlinesConfig, url: str
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Summaries by deadline and by rate, and every answer's latency.

    Raises ValueError when there is no case.
    """
    cases = config.read_cases()
    described = config.describe()
    await _ask(url, cases[:WARM_UP], config.rate, 800, config.seed)
    rows: list[dict[str, float]] = []

    async def measure_one(rate: float, deadline_ms: int) -> tuple[dict[str, Any], list[float]]:
        asked = await _ask_all(config, url, cases, rate, deadline_ms)
        summary = summarise(asked, rate, deadline_ms)
        rows.extend(
            {
                "deadline_ms": deadline_ms,
                "rate_per_s": rate,
                "latency_ms": round(each.exchange.latency_ms, 2),
            }
            for each in asked
            if each.exchange.got.status == 200
        )
        logger.info(
            "%d ms at %g/s: %s; exact %.3f, %s thinking tokens allowed",
            deadline_ms,
            rate,
            json.dumps(summary["latency_ms"]),
            summary["of_requests"]["exact"]["share"],
            summary["thinking_allowed"].get("p50"),
        )
        return summary, lateness(asked, deadline_ms)

    by_deadline = [await measure_one(config.rate, each) for each in config.deadlines]
    lateness_ms = [ms for _, own in by_deadline for ms in own]
    by_rate = [await measure_one(each, config.deadline_ms) for each in config.rates]
    later_ms = quantiles(lateness_ms)
    return {
        **described,
        "cases": len(cases),
        "rate_per_s": config.rate,
        "deadline_ms": config.deadline_ms,
        "deadlines": [summary for summary, _ in by_deadline],
        "rates": [summary for summary, _ in by_rate],
        "answers_below_capacity": len(lateness_ms),
        "later_than_deadline_ms": later_ms,
        "passed": {
            f"p999_at_most_{LATE_MS:.0f}_ms_after_the_deadline": later_ms["p999"] <= LATE_MS
            if later_ms
            else None
        },
    }, rows


def summarise(asked: Sequence[AskedCase], rate: float, deadline_ms: int) -> dict[str, Any]:
    """Latency, thinking and accuracy of one deadline at one rate."""
    answers = [each.exchange.answer for each in asked]
    answered = [each for each, answer in zip(asked, answers, strict=True) if answer]
    in_time = sum(each.exchange.full and each.exchange.latency_ms <= deadline_ms for each in asked)
    return {
        "deadline_ms": deadline_ms,
        "rate_per_s": rate,
        "requests": len(asked),
        "statuses": dict(Counter(str(each.exchange.got.status) for each in asked)),
        "degraded": dict(Counter(a["degraded_reason"] for a in answers if a and a["degraded"])),
        "full_in_time_share": in_time / len(asked),
        "latency_ms": quantiles([each.exchange.latency_ms for each in answered]),
        "from_sending_ms": quantiles([each.exchange.service_ms for each in answered]),
        "later_than_deadline_ms": quantiles(lateness(asked, deadline_ms)),
        **thinking_of([each.exchange for each in asked]),
        "of_requests": score(asked),
        "client_lag_ms": quantiles([each.exchange.lag_ms for each in asked]),
    }


def lateness(asked: Sequence[AskedCase], deadline_ms: float) -> list[float]:
    """Milliseconds from the deadline to each answer, negative where it came before."""
    return [e.exchange.service_ms - deadline_ms for e in asked if e.exchange.got.status == 200]


def score(asked: Sequence[AskedCase]) -> dict[str, dict[str, float]]:
    """Shares of right charges, articles, terms and all three, with 95% intervals."""
    scores = score_verdicts(
        [read_verdict(each.exchange.answer) for each in asked],
        [each.case.verdict for each in asked],
    )
    different = len({each.case.id for each in asked})
    rows = {}
    for name in SCORES:
        low, high = wilson(scores[name], different)
        rows[name] = {"share": scores[name], "low": low, "high": high, "cases": different}
    return rows


async def _ask_all(
    config: DeadlinesConfig, url: str, cases: Sequence[Case], rate: float, deadline_ms: int
) -> list[AskedCase]:
    await asyncio.sleep(config.settle_seconds)
    source = random.Random(config.seed)
    order: list[Case] = []
    while len(order) < max(config.repeats * len(cases), config.least_seconds * rate):
        order += source.sample(cases, len(cases))
    return await _ask(url, order, rate, deadline_ms, config.seed)


async def _ask(
    url: str, cases: Sequence[Case], rate: float, deadline_ms: int, seed: int
) -> list[AskedCase]:
    client = HttpClient(url, deadline_ms / 1e3 + PATIENCE_S)
    offsets_s = islice(arrival_times_s(rate, seed), len(cases))
    exchanges = await send_on_time(
        client, offsets_s, lambda index: write_body(cases[index].fact, deadline_ms)
    )
    return [AskedCase(case, each) for case, each in zip(cases, exchanges, strict=True)]


if __name__ == "__main__":
    run(DeadlinesConfig, work, expected=EXPECTED)
