"""What clients get at fixed rates of arrivals, from quiet to busy.

    python -m benchmarks.load.rates --model artifacts/demo/ort-w8a8 \
        --fallback artifacts/demo/fallback

Open-loop Poisson arrivals of facts of one length, no two the same, at each rate for so long,
against a server started for it (result cache off) or a running one (`--url`). A miss is whatever
is no full verdict of the model within the deadline, counted from the scheduled instant; one whose
answer could not be read is told apart from those that had no time. Facts that are too short are
told again up to the length.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmarks.client import (
    PATIENCE_S,
    Client,
    Exchange,
    arrivals_for,
    fill_up,
    quantiles,
    read_address,
    send_on_time,
    write_body,
)
from benchmarks.load.plots import draw_rates
from benchmarks.run import describe_machine, reach
from curt.config import Config, load_config
from curt.files import write_atomic, write_json
from curt.logs import configure_logging
from curt.scores.statistics import wilson
from loadtest._arrivals import load_facts, number_fact

logger = logging.getLogger(__name__)

WARM_UP = 20  # requests before the first rate: the server learns how quick it is


class RatesConfig(Config):
    """What to ask of what, and how often."""

    model: Path = Path("artifacts/demo/ort-w8a8")
    """Model folder to serve; not looked at with `url`."""
    fallback: Path | None = None
    """Its classifier folder; without one, what can't be met is refused."""
    url: str | None = None
    """A running server to use instead; only plain HTTP."""
    port: int = 0
    """Of the server started here; 0 takes a free one."""
    workers: int | None = Field(None, ge=1)
    """Of the server started here; one per core when left out."""
    rates: list[float] = Field([2.0, 5.0, 8.0, 12.0], min_length=1)
    """Arrivals a second."""
    seconds: float = Field(120.0, gt=0)
    """How long each rate lasts."""
    settle_seconds: float = Field(6.0, ge=0)
    """Between two rates: arrivals of the last few seconds shorten everyone's reasoning."""
    deadline_ms: int = 400
    """Of every request."""
    chars: int = Field(300, ge=40)
    """Length of every fact."""
    seed: int = 1
    """Of the arrivals."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """Where the facts come from."""
    report: Path = Path("benchmarks/results/rates.json")
    """File of results."""
    figure: Path = Path("benchmarks/results/rates.png")
    """Picture of them."""


def main(argv: list[str] | None = None) -> None:
    """Measure, write and draw; exits with a message on bad input."""
    config = load_config(RatesConfig, argv)
    configure_logging()
    try:
        settings = {"fallback": config.fallback, "workers": config.workers}
        with reach(config.url, config.model, port=config.port, **settings) as url:
            results = asyncio.run(measure(config, url))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    write_json(config.report, results)
    write_atomic(config.figure, draw_rates(results))
    logger.info("%s and %s are ready", config.report, config.figure)


async def measure(config: RatesConfig, url: str) -> dict[str, Any]:
    """A row for each rate, with every request's latency."""
    machine = describe_machine()
    facts = load_facts(config.cases)
    run = time.time_ns() // 1_000_000
    await _load(config, url, facts, run, rate=WARM_UP / 2, seconds=2)
    rows = []
    for place, rate in enumerate(config.rates, start=1):
        await asyncio.sleep(config.settle_seconds)
        exchanges = await _load(config, url, facts, run + place, rate=rate, seconds=config.seconds)
        row = summarise(exchanges, config.deadline_ms)
        rows.append({"rate_per_s": rate, "seconds": config.seconds, **row})
        logger.info("%g/s: %d misses, %s", rate, row["misses"]["all"], row["latency_ms"])
    return {
        "machine": machine,
        "model": config.model.name if config.url is None else None,
        "workers": config.workers,
        "fallback": config.fallback is not None,
        "deadline_ms": config.deadline_ms,
        "fact_chars": config.chars,
        "rates": rows,
    }


def summarise(exchanges: Sequence[Exchange], deadline_ms: float) -> dict[str, Any]:
    """Latencies of whatever came, misses by kind, and thinking tokens of one rate.

    Latencies hold every request that had a reply, refusals too; a request has one kind of miss.
    """
    kinds = Counter(why_missed(exchange, deadline_ms) for exchange in exchanges)
    good = kinds.pop("", 0)
    arrived, missed = len(exchanges), sum(kinds.values())
    thinking = [e.answer["thinking"] for e in exchanges if e.answer.get("source") == "model"]
    latencies_ms = [e.latency_ms for e in exchanges if e.got.status]
    return {
        "arrived": arrived,
        "good": good,
        "misses": {"all": missed, **kinds},
        "miss_share": missed / arrived if arrived else None,
        "miss_share_interval": wilson(missed / arrived, arrived) if arrived else None,
        "latency_ms": quantiles(latencies_ms),
        "thinking_used": quantiles([row["tokens"] for row in thinking]),
        "thinking_allowed": quantiles([row["allowed"] for row in thinking]),
        "thinking_allowed_least": min((row["allowed"] for row in thinking), default=None),
        "thinking_cut_share": sum(row["cut"] for row in thinking) / len(thinking)
        if thinking
        else None,
        "client_lag_ms": quantiles([e.lag_ms for e in exchanges]),
        "latencies_ms": [round(ms, 2) for ms in latencies_ms],
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


async def _load(
    config: RatesConfig, url: str, facts: Sequence[str], run: int, *, rate: float, seconds: float
) -> list[Exchange]:
    def make_body(index: int) -> bytes:
        number = number_fact("", run, index)
        fact = fill_up(facts[index % len(facts)], config.chars - len(number))
        return write_body(number + fact, config.deadline_ms)

    client = Client(*read_address(url), config.deadline_ms / 1e3 + PATIENCE_S)
    return await send_on_time(client, arrivals_for(rate, config.seed, seconds), make_body)


if __name__ == "__main__":
    main()
