"""Compare long and length-penalised reasoning on the same server, in one figure.

    python -m benchmarks.before_after

Both models come from the same warm start, exported by the same recipe to the same engine; only the
length penalty lies between them. Each gets a server of this checkout, both stay up and take turns,
case by case and round by round. Measured: latency, thinking tokens and accuracy with the deadline
off (reasoning as long as the model likes) and under it, and the highest rate of Poisson arrivals
whose 99th percentile stays under the deadline with reasoning uncut.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from pydantic import Field

from benchmarks.client import Exchange, ask, new_run, quantiles, read_verdict, write_body
from benchmarks.run import EXPECTED, ServedConfig, describe_machine, serve, write_results
from curt.artifact import load_manifest
from curt.config import run
from curt.corpus.case import Case
from curt.law.verdict import Verdict
from curt.scores.metrics import is_exact
from curt.scores.statistics import bootstrap_mean
from loadtest._arrivals import number_fact
from loadtest._http import HttpClient
from loadtest.capacity._search import search
from loadtest.capacity._step import AskResult, StepPlan

log = logging.getLogger(__name__)

BEFORE, AFTER = "warm_start", "penalised"
OFF_MS = 10_000  # a deadline that shortens nothing: the deadline off


class BeforeAfterConfig(ServedConfig):
    """What to compare and how long; `model` is that after the length penalty."""

    warm_start: Path = Path("artifacts/demo/ort-w8a8-warm-start")
    """Export of the model before the length penalty, by the same recipe."""
    fallback: Path | None = None
    """Classifier folder of both; a degraded answer counts as wrong."""
    rounds: int = Field(3, ge=0)
    """Searches for the highest rate, of each model; 0 for none."""
    seconds: float = Field(10.0, gt=0)
    """How long each rate lasts."""
    start_rate: float = Field(8.0, gt=0)
    """First rate of a search."""
    precision: float = Field(0.06, gt=0)
    """A search ends when the rate that broke is this close above the one that was kept."""
    pause_seconds: float = Field(1.0, ge=0)
    """Between two rates."""
    report: Path = Path("benchmarks/results/before_after.json")
    """File of results; raw rows and a picture go beside it."""


@dataclass(frozen=True, slots=True)
class Taken:
    """One case answered: when, after how much thinking, and whether rightly."""

    ms: float
    thinking_tokens: int
    exact: bool
    cut: bool


Runs = Mapping[str, Mapping[str, Sequence[Taken]]]
"""Answers by mode ("off" or "deadline") and model."""


def work(config: BeforeAfterConfig) -> None:
    """Measure, write and draw."""
    from benchmarks.pictures import draw_before_after

    result, runs = asyncio.run(measure(config))
    rows = [
        {
            "mode": mode,
            "model": name,
            "latency_ms": round(one.ms, 3),
            "thinking_tokens": one.thinking_tokens,
            "exact": int(one.exact),
        }
        for mode, models in runs.items()
        for name, own in models.items()
        for one in own
    ]
    write_results(config.report, result, rows=rows, picture=draw_before_after(result, runs))
    log.info("%s: %s", config.report, result["penalised_to_warm_start"])


async def measure(config: BeforeAfterConfig) -> tuple[dict[str, Any], Runs]:
    """The result and every answer behind it.

    Raises ArtifactError when a folder must not be loaded, ValueError when both do not have the same
    recipe, RuntimeError when a server does not come up.
    """
    folders = {BEFORE: config.warm_start, AFTER: config.model}
    check_same_recipe(config.warm_start, config.model)
    cases = config.read_cases()
    with ExitStack() as stack:
        urls = {
            name: stack.enter_context(
                serve(folder, fallback=config.fallback, workers=config.workers)
            ).url
            for name, folder in folders.items()
        }
        runs = {
            mode: await answer_all(urls, cases, deadline_ms)
            for mode, deadline_ms in (("off", OFF_MS), ("deadline", config.deadline_ms))
        }
        searches: dict[str, list[dict[str, Any]]] = {name: [] for name in urls}
        for turn in range(config.rounds):
            for name in (BEFORE, AFTER) if turn % 2 == 0 else (AFTER, BEFORE):
                found = await search_rate(config, urls[name], [case.fact for case in cases])
                searches[name].append(found)
                log.info("round %d, %s: %.1f/s", turn + 1, name, found["rate_per_s"])
    models = {
        name: {mode: summarise(runs[mode][name]) for mode in runs}
        | {"max_rate_per_s": _spread([found["rate_per_s"] for found in searches[name]])}
        for name in folders
    }
    return {
        "machine": describe_machine(),
        "settings": config.model_dump(
            mode="json", exclude={"model", "warm_start", "fallback", "cases", "report"}
        ),
        "models": models,
        "penalised_to_warm_start": compare(runs, models),
        "searches": searches,
    }, runs


def check_same_recipe(first: Path, second: Path) -> None:
    """Raises ValueError naming the settings in which two exports differ."""
    own = ("precision", "block_size", "device")
    left, right = (load_manifest(f, expect="ort-genai").config for f in (first, second))
    if differ := [name for name in own if left.get(name) != right.get(name)]:
        raise ValueError(
            f"{first} and {second} differ in {', '.join(differ)}: export both by one recipe"
        )


async def answer_all(
    urls: Mapping[str, str], cases: Sequence[Case], deadline_ms: int
) -> dict[str, list[Taken]]:
    """Every case to every server, one request at a time; who is first alternates."""
    taken: dict[str, list[Taken]] = {name: [] for name in urls}
    clients = {name: HttpClient(url, patience_s=90.0) for name, url in urls.items()}
    for case in cases[:3]:  # first requests open connections
        for client in clients.values():
            await client.exchange(write_body(case.fact, deadline_ms))
    for index, case in enumerate(cases):
        for name in list(clients) if index % 2 else list(clients)[::-1]:
            exchange = await ask(clients[name], write_body(case.fact, deadline_ms))
            taken[name].append(take(exchange, case.verdict))
    for client in clients.values():
        client.close()
    return taken


def take(exchange: Exchange, reference: Verdict) -> Taken:
    """What an answer was worth; a degraded one is wrong. Raises RuntimeError when there is none."""
    reply = exchange.require_answer()
    return Taken(
        exchange.service_ms,
        reply["thinking"]["tokens"],
        not reply["degraded"] and is_exact(read_verdict(reply), reference),
        reply["thinking"]["cut"],
    )


async def search_rate(config: BeforeAfterConfig, url: str, facts: Sequence[str]) -> dict[str, Any]:
    """The highest rate at which p99 keeps the deadline while reasoning is uncut, and its steps."""
    run, client = new_run(), HttpClient(url)

    async def ask_one(index: int) -> AskResult:
        fact = number_fact(facts[index % len(facts)], run, index)
        got = await client.exchange(write_body(fact, OFF_MS))
        return AskResult(None if got.status == 200 else f"status {got.status}")

    plan = StepPlan(
        slo_ms=config.deadline_ms,
        start_per_s=config.start_rate,
        factor=1.5,
        precision=config.precision,
        min_per_s=config.start_rate / 64,
        min_requests=1,
        min_s=config.seconds,
        warmup_requests=0,
        settle_s=config.pause_seconds,
        seed=config.seed,
    )
    found = await search(ask_one, plan)
    client.close()
    return found.to_json()


def summarise(taken: Sequence[Taken]) -> dict[str, Any]:
    """Figures of one model's answers."""
    exact = [float(one.exact) for one in taken]
    return {
        "n": len(taken),
        "latency_ms": quantiles([one.ms for one in taken]),
        "mean_ms": fmean(one.ms for one in taken),
        "thinking_tokens": quantiles([one.thinking_tokens for one in taken]),
        "mean_thinking_tokens": fmean(one.thinking_tokens for one in taken),
        "exact": fmean(exact),
        "exact_interval": bootstrap_mean(exact),
        "cut": sum(one.cut for one in taken),
    }


def compare(runs: Runs, models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The penalised model to the warm start: ratios by case, and the change in accuracy."""
    before, after = runs["off"][BEFORE], runs["off"][AFTER]
    change = [float(b.exact) - float(a.exact) for a, b in zip(before, after, strict=True)]
    rates = [models[name]["max_rate_per_s"]["median"] for name in (BEFORE, AFTER)]
    tokens = [models[name]["off"]["mean_thinking_tokens"] for name in (BEFORE, AFTER)]
    return {
        "latency": median(b.ms / a.ms for a, b in zip(before, after, strict=True)),
        "thinking_tokens": tokens[1] / tokens[0] if tokens[0] else None,
        "max_rate": rates[1] / rates[0] if rates[0] else None,
        "exact_change": fmean(change),
        "exact_change_interval": bootstrap_mean(change),
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"median": None, "low": None, "high": None}
    return {"median": median(values), "low": min(values), "high": max(values)}


if __name__ == "__main__":
    run(BeforeAfterConfig, work, expected=EXPECTED)
