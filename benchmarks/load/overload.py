"""Ask a server for several times what it can do, and see what its clients get.

    python -m benchmarks.load.overload --url http://127.0.0.1:8000 --seconds 120

First the capacity: open-loop Poisson arrivals at rising rates, until the good answers (full
verdicts of the model within the deadline) a second fall behind the arrivals and rise no more; the
most there were is the capacity. Then arrivals at a multiple of it. Clients are timed from their
scheduled instant, on raw sockets, and the report says how late this program itself was: the loop's
timers alone are up to a millisecond; where it is many, the figures are its own, not the server's.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import urlsplit

from benchmarks.client import (
    PATIENCE_S,
    Client,
    Exchange,
    arrivals_for,
    quantiles,
    read_address,
    send_on_time,
    write_body,
)
from benchmarks.run import describe_machine
from curt.config import Config, load_config
from curt.files import write_json
from curt.logs import configure_logging
from loadtest._arrivals import load_facts, number_fact

logger = logging.getLogger(__name__)

LATE_MS = 10.0  # an admitted answer may be this much later than its deadline
REFUSAL_MS = 50.0
BETTER = 1.05  # times the most so far; less is noise
KEPT_UP = 0.9  # of the arrivals answered well; below it the rate is beyond the capacity


class OverloadConfig(Config):
    """What to load and how much."""

    url: str = "http://127.0.0.1:8000"
    """The server; only plain HTTP."""
    multiple: float = 5.0
    """Arrivals, as a multiple of the capacity."""
    seconds: float = 120.0
    """How long to overload."""
    capacity: float | None = None
    """Good answers a second the server can give; measured first when left out."""
    ramp_start: float = 4.0
    """First rate of the measurement of the capacity."""
    ramp_factor: float = 1.5
    """Each rate to the one before."""
    ramp_seconds: float = 6.0
    """How long each rate lasts."""
    settle_seconds: float = 3.0
    """Between two rates, so that one's queue is not the other's."""
    deadline_ms: int = 400
    """Of every request."""
    chars: int = 300
    """Length facts are cut to."""
    seed: int = 1
    """Of the arrivals."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """Where the facts come from."""
    report: Path = Path("benchmarks/results/overload.json")
    """File of results."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What one client got. `status` is 0 when nothing came.

    `lag_ms` is how late this program sent the request; `latency_ms` counts from the scheduled
    instant, `service_ms` from the instant it was sent.
    """

    status: int
    good: bool
    degraded: bool
    lag_ms: float
    latency_ms: float
    service_ms: float
    thinking_tokens: int = 0


def main() -> None:
    """Measure and write the results; exits with a message on bad input."""
    config = load_config(OverloadConfig)
    configure_logging()
    try:
        results = asyncio.run(measure(config))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    write_json(config.report, results)
    logger.info("%s: passed %s", config.report, results["passed"])


async def measure(config: OverloadConfig) -> dict[str, Any]:
    """Find the capacity, overload, and judge."""
    facts = [fact[: config.chars] for fact in load_facts(config.cases)]
    ramp: list[dict[str, Any]] = []
    capacity = config.capacity
    if capacity is None:
        ramp = await find_capacity(config, facts)
        capacity = max(row["goodput_per_s"] for row in ramp)
    if capacity <= 0:
        raise ValueError(f"a capacity of {capacity} a second at {config.url}: is it ready?")
    rate = capacity * config.multiple
    logger.info("capacity %.1f/s; now %.1f/s for %.0f s", capacity, rate, config.seconds)
    replies = await load(config, facts, rate, config.seconds)
    row = summarise(replies, rate, config.seconds, config.deadline_ms)
    share = row["goodput_per_s"] / capacity
    return {
        "url_host_is_local": urlsplit(config.url).hostname in ("127.0.0.1", "localhost"),
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


async def find_capacity(config: OverloadConfig, facts: Sequence[str]) -> list[dict[str, Any]]:
    """Summaries at rising rates, up to two beyond what the server keeps up with and no better.

    Raises ValueError when it does not even keep up with the first: then nothing was measured.
    """
    rows: list[dict[str, Any]] = []
    rate, most, worse = config.ramp_start, 0.0, 0
    while worse < 2:
        replies = await load(config, facts, rate, config.ramp_seconds)
        row = summarise(replies, rate, config.ramp_seconds, config.deadline_ms)
        rows.append(row)
        logger.info("%.1f/s: %.1f good answers a second", rate, row["goodput_per_s"])
        behind = row["goodput_per_s"] < KEPT_UP * row["arrived"] / config.ramp_seconds
        if behind and not rows[1:]:
            raise ValueError(
                f"{row['goodput_per_s']:.1f} good answers a second at {rate:.1f}/s: the server "
                "falls behind at the first rate; is it ready, is the machine busy with other work? "
                "Else give a lower --ramp_start"
            )
        better = row["goodput_per_s"] > BETTER * most
        worse = worse + 1 if behind and not better else 0
        most = max(most, row["goodput_per_s"])
        rate *= config.ramp_factor
        await asyncio.sleep(config.settle_seconds)
    return rows


async def load(
    config: OverloadConfig, facts: Sequence[str], rate: float, seconds: float
) -> list[Reply]:
    """Send Poisson arrivals for so long, whatever the server does, and wait for every reply."""
    client = Client(*read_address(config.url), config.deadline_ms / 1e3 + PATIENCE_S)
    run = time.time_ns() // 1_000_000
    # Written once: at five times the capacity even this would be felt.
    bodies = [
        write_body(number_fact(fact, run, -1), config.deadline_ms).split(b"-1", 1) for fact in facts
    ]

    def make_body(index: int) -> bytes:
        before, after = bodies[index % len(bodies)]
        return before + str(index).encode() + after

    exchanges = await send_on_time(client, arrivals_for(rate, config.seed, seconds), make_body)
    return [judge(exchange, config.deadline_ms) for exchange in exchanges]


def judge(exchange: Exchange, deadline_ms: float) -> Reply:
    """What an exchange was worth to its client."""
    answer = exchange.answer
    degraded = bool(answer.get("degraded"))
    return Reply(
        exchange.got.status,
        good=bool(answer) and not degraded and exchange.latency_ms <= deadline_ms,
        degraded=degraded,
        lag_ms=exchange.lag_ms,
        latency_ms=exchange.latency_ms,
        service_ms=exchange.service_ms,
        thinking_tokens=answer["thinking"]["tokens"] if answer else 0,
    )


def summarise(
    replies: Sequence[Reply], rate: float, seconds: float, deadline_ms: float
) -> dict[str, Any]:
    """Figures of one rate. A miss is whatever is no full verdict within the deadline."""
    answers = [reply for reply in replies if reply.status == 200]
    refusals = [reply for reply in replies if reply.status == 503]
    good = sum(reply.good for reply in replies)
    return {
        "rate_per_s": rate,
        "seconds": seconds,
        "arrived": len(replies),
        "statuses": dict(Counter(str(reply.status) for reply in replies)),
        "goodput_per_s": good / seconds,
        "misses": len(replies) - good,
        "miss_share": (len(replies) - good) / len(replies) if replies else 0.0,
        "mean_thinking_tokens": fmean(r.thinking_tokens for r in answers) if answers else None,
        "degraded": sum(reply.degraded for reply in answers),
        "later_than_deadline": sum(reply.service_ms > deadline_ms for reply in answers),
        "later_than_allowed": sum(reply.service_ms > deadline_ms + LATE_MS for reply in answers),
        "answer_ms": quantiles([reply.latency_ms for reply in answers]),
        "answer_from_sending_ms": quantiles([reply.service_ms for reply in answers]),
        "refusal_ms": quantiles([reply.service_ms for reply in refusals]),
        "refusals_of_50_ms_or_more": sum(reply.service_ms >= REFUSAL_MS for reply in refusals),
        "client_lag_ms": quantiles([reply.lag_ms for reply in replies]),
    }


if __name__ == "__main__":
    main()
