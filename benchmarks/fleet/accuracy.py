"""How far the simulation is from real replicas.

Real servers are asked at several rates, in rounds; between two rounds' worth of it come slices at
other rates, with other cases, from which alone service times are fitted. So a machine that grows
slower or quicker meanwhile does so for both. The simulation then meets the arrivals that the
servers met, several times with other draws.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.client import quantiles
from benchmarks.fleet.replicas import Asked, ask, fit_replies, read_samples, running
from benchmarks.fleet.service import Service
from benchmarks.fleet.simulation import Fleet, Shape, simulate, summarise
from benchmarks.run import ServedConfig, describe_machine
from loadtest._arrivals import load_facts

logger = logging.getLogger(__name__)

TARGET_ERROR = 0.15
PAUSE_S = 1.0  # between the rounds of one rate, as the simulation sees them
SETTLE_S = 1.0
WARM_UP_PER_S, WARM_UP_S = 10.0, 3.0
RESAMPLES = 1_000


class ValidateConfig(ServedConfig):
    """What is run for real and how long."""

    workers: int = 1
    """Of each server."""
    replicas: int = 2
    """Servers, all on this machine."""
    rates: list[float] = [5.0, 10.0, 20.0]
    """Arrivals a second to compare at."""
    requests: int = 900
    """Of each rate, in all rounds together."""
    rounds: int = 5
    """Into which they are divided."""
    fit_rates: list[float] = [4.0, 12.0, 30.0]
    """Arrivals a second that service times are fitted from."""
    fit_seconds: float = 4.0
    """Of each of them in each round."""
    fit_deadlines_ms: tuple[int, int] = (25, 1_000)
    """Between which deadlines are drawn for the fit; half have the longer."""
    chars: int = 300
    """Length facts are cut to."""
    fit_cases: Path = Path("artifacts/demo/corpus/dev.jsonl")
    """Facts for the fit."""
    repeats: int = 10
    """Simulations of each rate."""
    report: Path = Path("benchmarks/results/simulation.json")
    """File of results; raw rows and a picture go beside it."""
    service: Path = Path("artifacts/simulation/service.json")
    """Where the fitted service times are kept, for `size`."""


Rounds = dict[float, list[list[Asked]]]
"""Requests compared, by rate and round."""


async def measure(config: ValidateConfig, urls: Sequence[str]) -> tuple[Rounds, list[Asked]]:
    """Ask real replicas: at each rate by round, and for the fit."""
    facts, fit_facts = (
        [fact[: config.chars] for fact in load_facts(path)]
        for path in (config.cases, config.fit_cases)
    )
    asked: Rounds = {rate: [] for rate in config.rates}
    to_fit: list[Asked] = []

    async def ask_and_settle(
        about: Sequence[str], rate: float, seconds: float, seed: int, deadlines_ms: tuple[int, int]
    ) -> list[Asked]:
        got = await ask(
            urls, about, rate_per_s=rate, seconds=seconds, seed=seed, deadlines_ms=deadlines_ms
        )
        await asyncio.sleep(SETTLE_S)
        return got

    own_ms = (config.deadline_ms, config.deadline_ms)
    await ask_and_settle(fit_facts, WARM_UP_PER_S, WARM_UP_S, 0, own_ms)
    for turn in range(config.rounds):
        for index, rate in enumerate(config.rates):
            seed = config.seed + 10 * turn + index
            fit_rate = config.fit_rates[(index + turn) % len(config.fit_rates)]
            to_fit += await ask_and_settle(
                fit_facts, fit_rate, config.fit_seconds, seed + 1_000, config.fit_deadlines_ms
            )
            seconds = config.requests / config.rounds / rate
            got = await ask_and_settle(facts, rate, seconds, seed, own_ms)
            asked[rate].append(got)
            latency_ms = quantiles([each.exchange.latency_ms for each in got])
            logger.info("round %d, %g/s: %s", turn + 1, rate, latency_ms)
    return asked, to_fit


def validate(config: ValidateConfig) -> tuple[dict[str, Any], Service, list[dict[str, Any]]]:
    """Measure, simulate the same, and say how far apart they are: report, fit and raw rows."""
    machine = describe_machine()
    settings = {"workers": config.workers, "spares": 0, "fallback": config.fallback}
    with running(config.model, config.replicas, **settings) as urls:
        asked, to_fit = asyncio.run(measure(config, urls))
    service = fit_replies(config.model, load_facts(config.fit_cases), to_fit)
    shape = Shape(config.workers, fallback=config.fallback is not None)
    fleet = Fleet(config.replicas, shape, one_machine=True, deadline_ms=config.deadline_ms)
    raw: list[dict[str, Any]] = [
        {"kind": "fitted_from", **sample.model_dump()} for sample in read_samples(to_fit)
    ]
    rates = []
    for rate, rounds in asked.items():
        row, latencies_ms = compare(
            service, fleet, rate, rounds, repeats=config.repeats, seed=config.seed
        )
        rates.append(row)
        raw += [
            {"kind": kind, "rate_per_s": rate, "latency_ms": round(ms, 2)}
            for kind, values in latencies_ms.items()
            for ms in values
        ]
    worst = max(abs(row["error"]["p99"]) for row in rates)
    results = {
        "machine": machine,
        "replicas": config.replicas,
        "deadline_ms": config.deadline_ms,
        "service": describe(service),
        "rates": rates,
        "worst_p99_error": worst,
        "passed": {f"p99_within_{TARGET_ERROR:.0%}": worst <= TARGET_ERROR},
    }
    return results, service, raw


def compare(
    service: Service,
    fleet: Fleet,
    rate_per_s: float,
    rounds: Sequence[Sequence[Asked]],
    *,
    repeats: int,
    seed: int,
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Real and simulated figures of one rate, and the latencies behind them.

    Errors are simulated / real - 1.
    """
    arrivals_s = join_rounds(rounds)
    every = [each for part in rounds for each in part]
    real_ms = [each.exchange.latency_ms for each in every]
    source = random.Random(seed)
    simulated = []
    simulated_ms: list[float] = []
    for _ in range(repeats):
        requests, busy = simulate(service, fleet, arrivals_s, seed=source.getrandbits(32))
        simulated.append(summarise(requests, arrivals_s[-1] - arrivals_s[0] + PAUSE_S, busy))
        simulated_ms += [each.latency_ms for each in requests]
    real = quantiles(real_ms)
    # The median of repeats: what one run as long as the real one would typically show.
    told = {name: median(row["latency_ms"][name] for row in simulated) for name in real}
    p99s_ms = [row["latency_ms"]["p99"] for row in simulated]
    drawn = sorted(
        quantiles(source.choices(real_ms, k=len(real_ms)))["p99"] for _ in range(RESAMPLES)
    )
    thinking = [each.reply["thinking"] for each in every if each.answered]
    in_time = [each.full and each.exchange.latency_ms <= fleet.deadline_ms for each in every]
    row = {
        "rate_per_s": rate_per_s,
        "requests": len(real_ms),
        "real_ms": real,
        "real_p99_interval_ms": [drawn[int(0.025 * RESAMPLES)], drawn[int(0.975 * RESAMPLES)]],
        "simulated_ms": told,
        "simulated_p99_range_ms": [min(p99s_ms), max(p99s_ms)],
        "error": {name: told[name] / real[name] - 1 for name in ("p50", "p95", "p99")},
        "full_share": {
            "real": fmean(in_time),
            "simulated": fmean(row["full_share"] for row in simulated),
        },
        "thinking_used": {
            "real": quantiles([each["tokens"] for each in thinking]),
            "simulated": simulated[0]["thinking_used"],
        },
        "thinking_allowed": {
            "real": quantiles([each["allowed"] for each in thinking]),
            "simulated": simulated[0]["thinking_allowed"],
        },
        "workers_busy_simulated": fmean(row["workers_busy"] for row in simulated),
    }
    return row, {"real": real_ms, "simulated": sorted(simulated_ms)[::repeats]}


def join_rounds(rounds: Sequence[Sequence[Asked]]) -> list[float]:
    """Arrivals of all rounds one after the other, in seconds from the first."""
    due_s = [[each.exchange.due_s for each in part] for part in rounds]
    starts = accumulate((part[-1] - part[0] + PAUSE_S for part in due_s), initial=0.0)
    return [
        start + at_s - part[0] for start, part in zip(starts, due_s, strict=False) for at_s in part
    ]


def describe(service: Service) -> dict[str, Any]:
    """The fitted lines, with how large the remainders and how long the thoughts are."""
    widest = service.thoughts[max(service.thoughts)]
    own_lengths = [float(each.tokens) for each in widest if each.tokens is not None]
    return {
        **service.model_dump(exclude={"noises", "thoughts", "chars"}),
        "mean_ms": service.mean_ms(),
        "answer_passes": service.answer_passes,
        "samples": len(service.noises),
        "chars": quantiles([float(chars) for chars in service.chars]),
        "worker_remainder_ms": quantiles([n.prefill_ms + n.decode_ms for n in service.noises]),
        "front_ms": quantiles([n.front_ms for n in service.noises]),
        "outside_ms": quantiles([n.outside_ms for n in service.noises]),
        "thoughts_by_budget": {level: len(found) for level, found in service.thoughts.items()},
        "widest_thinking_tokens": quantiles(own_lengths),
        "widest_cut": sum(t.tokens is None for t in widest),
    }
