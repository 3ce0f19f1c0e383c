"""How latency and accuracy change with the deadline, and under load: the graded trade.

    python -m benchmarks.load.deadlines --model artifacts/demo/ort-w8a8 \
        --fallback artifacts/demo/fallback

The same cases, as they are, are asked at every deadline at one rate below the capacity, then at
rising rates under one deadline, where load shortens everyone's reasoning. Open-loop Poisson
arrivals; a server is started for it with the result cache off. A running one (`--url`) must have
its cache off too, since the cases repeat.

Accuracy is given over all requests, where one without a verdict is wrong and the classifier's
verdict counts as what it says, and over full verdicts of the model alone. Intervals are Wilson's
at 95% over different cases, not over their repetitions. An answer is late where it comes more than
10 ms after its deadline, counted from sending.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import Field

from benchmarks.client import (
    PATIENCE_S,
    Client,
    Exchange,
    quantiles,
    read_address,
    send_on_time,
    write_body,
)
from benchmarks.load.plots import draw_deadlines
from benchmarks.run import describe_machine, reach
from curt.config import Config, load_config
from curt.corpus.case import Case
from curt.corpus.store import read_cases
from curt.dialogue import ParseFailure
from curt.files import write_atomic, write_json
from curt.law.verdict import Term, Verdict
from curt.logs import configure_logging
from curt.scores.metrics import score_verdicts
from curt.scores.statistics import wilson
from loadtest._arrivals import arrival_times_s

logger = logging.getLogger(__name__)

LATE_MS = 10.0  # an admitted answer may be this much later than its deadline, at p99.9
SCORES = ("exact", "charge_accuracy", "article_accuracy", "term_accuracy")
WARM_UP = 20  # requests before the first measurement


class DeadlinesConfig(Config):
    """What to ask of what, how soon and how often."""

    model: Path = Path("artifacts/demo/ort-w8a8")
    """Model folder to serve; not looked at with `url`."""
    fallback: Path | None = None
    """Its classifier folder; without one, what can't be met is refused."""
    url: str | None = None
    """A running server to use instead, its result cache off; only plain HTTP."""
    port: int = 0
    """Of the server started here; 0 takes a free one."""
    workers: int | None = Field(None, ge=1)
    """Of the server started here; one per core when left out."""
    deadlines: list[int] = [30, 50, 100, 200, 400, 800]
    """Milliseconds; each is asked at `rate`."""
    rate: float = Field(8.0, gt=0)
    """Arrivals a second at every deadline; below the capacity."""
    rates: list[float] = [5.0, 20.0, 40.0, 60.0, 80.0]
    """Arrivals a second under load; each is asked at `deadline_ms`."""
    deadline_ms: int = 400
    """Under load."""
    repeats: int = Field(2, ge=1)
    """How often each case is asked at each deadline and rate, in another order each time."""
    least_seconds: float = Field(15.0, ge=0)
    """Cases are repeated more often at rates that would be over sooner."""
    settle_seconds: float = Field(6.0, ge=0)
    """Before each: arrivals of the last few seconds shorten everyone's reasoning."""
    limit: int | None = Field(None, ge=1)
    """Use only the first so many cases."""
    seed: int = 1
    """Of arrivals and order."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """Cases with their verdicts."""
    report: Path = Path("benchmarks/results/deadlines.json")
    """File of results."""
    figure: Path = Path("benchmarks/results/deadlines.png")
    """Picture of them."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A case and what came of asking it."""

    case: Case
    exchange: Exchange

    @property
    def verdict(self) -> Verdict | ParseFailure:
        """What the client was told."""
        return read_verdict(self.exchange.answer)

    @property
    def full(self) -> bool:
        """Whether the model gave a full verdict."""
        answer = self.exchange.answer
        return bool(answer) and not answer["degraded"]


def main(argv: list[str] | None = None) -> None:
    """Measure, write and draw; exits with a message on bad input."""
    config = load_config(DeadlinesConfig, argv)
    configure_logging()
    try:
        settings = {"fallback": config.fallback, "workers": config.workers}
        with reach(config.url, config.model, port=config.port, **settings) as url:
            results = asyncio.run(measure(config, url))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    write_json(config.report, results)
    write_atomic(config.figure, draw_deadlines(results))
    logger.info("%s and %s are ready: %s", config.report, config.figure, results["passed"])


async def measure(config: DeadlinesConfig, url: str) -> dict[str, Any]:
    """Rows by deadline and by rate. Raises ValueError when there is no case."""
    machine = describe_machine()
    cases = list(read_cases(config.cases, config.limit))
    if not cases:
        raise ValueError(f"{config.cases} holds no case")
    await _ask(url, cases[:WARM_UP], config.rate, 800, config.seed)
    by_deadline: list[dict[str, Any]] = []
    lateness_ms: list[float] = []
    for deadline_ms in config.deadlines:
        asked = await _ask_all(config, url, cases, config.rate, deadline_ms)
        lateness_ms += lateness(asked, deadline_ms)
        by_deadline.append(summarise(asked, config.rate, deadline_ms))
        _tell(by_deadline[-1])
    by_rate = []
    for rate in config.rates:
        asked = await _ask_all(config, url, cases, rate, config.deadline_ms)
        by_rate.append(summarise(asked, rate, config.deadline_ms))
        _tell(by_rate[-1])
    later_ms = quantiles(lateness_ms)
    return {
        "machine": machine,
        "model": config.model.name if config.url is None else None,
        "workers": config.workers,
        "fallback": config.fallback is not None,
        "cases": len(cases),
        "rate_per_s": config.rate,
        "deadline_ms": config.deadline_ms,
        "deadlines": by_deadline,
        "rates": by_rate,
        "answers_below_capacity": len(lateness_ms),
        "later_than_deadline_ms": later_ms,
        "passed": {
            f"p999_at_most_{LATE_MS:.0f}_ms_after_the_deadline": later_ms["p999"] <= LATE_MS
            if later_ms
            else None
        },
    }


def summarise(asked: Sequence[Asked], rate: float, deadline_ms: int) -> dict[str, Any]:
    """Latency, thinking and accuracy of one deadline at one rate; with every answer's latency."""
    answers = [each.exchange.answer for each in asked]
    answered = [each for each, answer in zip(asked, answers, strict=True) if answer]
    thinking = [answer["thinking"] for answer in answers if answer.get("source") == "model"]
    full = [each for each in asked if each.full]
    in_time = sum(each.exchange.latency_ms <= deadline_ms for each in full)
    latencies_ms = [each.exchange.latency_ms for each in answered]
    return {
        "deadline_ms": deadline_ms,
        "rate_per_s": rate,
        "requests": len(asked),
        "statuses": dict(Counter(str(each.exchange.got.status) for each in asked)),
        "degraded": dict(Counter(a["degraded_reason"] for a in answers if a and a["degraded"])),
        "full_in_time_share": in_time / len(asked),
        "latency_ms": quantiles(latencies_ms),
        "from_sending_ms": quantiles([each.exchange.service_ms for each in answered]),
        "later_than_deadline_ms": quantiles(lateness(asked, deadline_ms)),
        "thinking_used": quantiles([row["tokens"] for row in thinking]),
        "thinking_used_mean": fmean(row["tokens"] for row in thinking) if thinking else None,
        "thinking_allowed": quantiles([row["allowed"] for row in thinking]),
        "thinking_allowed_mean": fmean(row["allowed"] for row in thinking) if thinking else None,
        "thinking_cut_share": fmean(row["cut"] for row in thinking) if thinking else None,
        "of_requests": score(asked),
        "of_full_answers": score(full) if full else None,
        "by_allowed_thinking": score_by_allowance(full),
        "client_lag_ms": quantiles([each.exchange.lag_ms for each in asked]),
        "latencies_ms": [round(ms, 2) for ms in latencies_ms],
    }


def lateness(asked: Sequence[Asked], deadline_ms: float) -> list[float]:
    """Milliseconds from the deadline to each answer, negative where it came before."""
    return [e.exchange.service_ms - deadline_ms for e in asked if e.exchange.got.status == 200]


def score(asked: Sequence[Asked]) -> dict[str, dict[str, float]]:
    """Shares of right charges, articles, terms and all three, with 95% intervals."""
    scores = score_verdicts([each.verdict for each in asked], [each.case.verdict for each in asked])
    different = len({each.case.id for each in asked})
    rows = {}
    for name in SCORES:
        low, high = wilson(scores[name], different)
        rows[name] = {"share": scores[name], "low": low, "high": high, "cases": different}
    return rows


def score_by_allowance(asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """Accuracy by the budget that was stated to the model: what load took and what it cost."""
    groups: dict[int, list[Asked]] = {}
    for each in asked:
        groups.setdefault(each.exchange.answer["thinking"]["stated_budget"], []).append(each)
    return [
        {"stated_budget": budget, "answers": len(group), "exact": score(group)["exact"]}
        for budget, group in sorted(groups.items())
    ]


def read_verdict(answer: Mapping[str, Any]) -> Verdict | ParseFailure:
    """The verdict in a reply of `POST /predict`, or that there is none."""
    if not answer.get("defendants"):
        return ParseFailure("no verdict")
    told = answer["defendants"][0]
    term = told["term"]
    return Verdict(
        charges=tuple(charge["name"] for charge in told["charges"]),
        articles=tuple(article["id"] for article in told["articles"]),
        term=Term(term["kind"], term["months"], term["probation_months"]),
        fine_yuan=told["fine_yuan"] or 0,
    )


async def _ask_all(
    config: DeadlinesConfig, url: str, cases: Sequence[Case], rate: float, deadline_ms: int
) -> list[Asked]:
    await asyncio.sleep(config.settle_seconds)
    source = random.Random(config.seed)
    order: list[Case] = []
    while len(order) < max(config.repeats * len(cases), config.least_seconds * rate):
        order += source.sample(cases, len(cases))
    return await _ask(url, order, rate, deadline_ms, config.seed)


async def _ask(
    url: str, cases: Sequence[Case], rate: float, deadline_ms: int, seed: int
) -> list[Asked]:
    client = Client(*read_address(url), deadline_ms / 1e3 + PATIENCE_S)
    offsets_s = islice(arrival_times_s(rate, seed), len(cases))
    exchanges = await send_on_time(
        client, offsets_s, lambda index: write_body(cases[index].fact, deadline_ms)
    )
    return [Asked(case, each) for case, each in zip(cases, exchanges, strict=True)]


def _tell(row: Mapping[str, Any]) -> None:
    logger.info(
        "%d ms at %g/s: %s; exact %.3f, %s thinking tokens allowed",
        row["deadline_ms"],
        row["rate_per_s"],
        json.dumps(row["latency_ms"]),
        row["of_requests"]["exact"]["share"],
        row["thinking_allowed_mean"],
    )


if __name__ == "__main__":
    main()
