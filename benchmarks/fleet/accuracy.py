"""How far the simulation is from real replicas.

Real servers are asked at several rates, in rounds; between two rounds' worth of it come slices at
other rates, with other cases, from which alone service times are fitted. So a machine that grows
slower or quicker meanwhile does so for both. The simulation then meets the arrivals that the
servers met, several times with other draws.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.client import quantiles
from benchmarks.fleet.collect import (
    SETTLE_S,
    Asked,
    Replicas,
    ask,
    read_facts,
    read_samples,
    warm_up,
)
from benchmarks.fleet.fleet import Fleet, simulate, summarise
from benchmarks.fleet.replica import Shape
from benchmarks.fleet.service import Service
from benchmarks.run import describe_machine
from curt.config import Config

logger = logging.getLogger(__name__)

TARGET_ERROR = 0.15
PAUSE_S = 1.0  # between the rounds of one rate, as the simulation sees them
RESAMPLES = 1_000


class ValidateConfig(Config):
    """What is run for real and how long."""

    model: Path = Path("artifacts/demo/ort-w8a8")
    """Model folder to serve."""
    fallback: Path | None = Path("artifacts/demo/fallback")
    """Its classifier."""
    replicas: int = 2
    """Servers of one worker each, all on this machine."""
    first_port: int = 8310
    """Port of the first; the others follow."""
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
    deadline_ms: int = 400
    """Of the requests compared."""
    chars: int = 300
    """Length facts are cut to."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """Facts of the requests compared."""
    fit_cases: Path = Path("artifacts/demo/corpus/dev.jsonl")
    """Facts for the fit."""
    repeats: int = 10
    """Simulations of each rate."""
    seed: int = 1
    """Of arrivals and draws."""
    report: Path = Path("benchmarks/results/simulation.json")
    """File of results, raw rows included."""
    service: Path = Path("artifacts/simulation/service.json")
    """Where the fitted service times are kept, for `size`."""
    figure: Path = Path("benchmarks/results/simulation.png")
    """Picture of them."""


def measure(
    config: ValidateConfig,
) -> tuple[dict[float, list[list[Asked]]], list[Asked], Service]:
    """Ask real replicas: at each rate by round, for the fit, and the fit."""
    facts = read_facts(config.cases, config.chars)
    fit_facts = read_facts(config.fit_cases, config.chars)
    asked: dict[float, list[list[Asked]]] = {rate: [] for rate in config.rates}
    to_fit: list[Asked] = []
    settings = {"workers": 1, "spares": 0, "fallback": config.fallback}
    running = Replicas.running(
        config.model,
        replicas=config.replicas,
        first_port=config.first_port,
        facts=fit_facts,
        **settings,
    )
    with running as replicas:
        warm_up(replicas, fit_facts)
        for turn in range(config.rounds):
            for index, rate in enumerate(config.rates):
                fit_rate = config.fit_rates[(index + turn) % len(config.fit_rates)]
                to_fit += ask(
                    replicas,
                    fit_facts,
                    rate_per_s=fit_rate,
                    seconds=config.fit_seconds,
                    seed=config.seed + 1_000 + 10 * turn + index,
                    deadlines_ms=config.fit_deadlines_ms,
                )
                time.sleep(SETTLE_S)
                got = ask(
                    replicas,
                    facts,
                    rate_per_s=rate,
                    seconds=config.requests / config.rounds / rate,
                    seed=config.seed + 10 * turn + index,
                    deadlines_ms=(config.deadline_ms, config.deadline_ms),
                )
                asked[rate].append(got)
                time.sleep(SETTLE_S)
                latencies = quantiles([each.latency_ms for each in got])
                logger.info("round %d, %g/s: %s", turn + 1, rate, latencies)
        return asked, to_fit, replicas.fit(to_fit)


def validate(config: ValidateConfig) -> tuple[dict[str, Any], Service]:
    """Measure, simulate the same, and say how far apart they are."""
    machine = describe_machine()
    asked, to_fit, service = measure(config)
    fleet = Fleet(
        config.replicas,
        Shape(fallback=config.fallback is not None),
        one_machine=True,
        deadline_ms=config.deadline_ms,
    )
    rows = [
        compare(service, fleet, rate, rounds, repeats=config.repeats, seed=config.seed)
        for rate, rounds in asked.items()
    ]
    worst = max(abs(row["error"]["p99"]) for row in rows)
    results = {
        "machine": machine,
        "replicas": config.replicas,
        "deadline_ms": config.deadline_ms,
        "service": describe(service),
        "fitted_from": [sample.model_dump() for sample in read_samples(to_fit)],
        "rates": rows,
        "worst_p99_error": worst,
        "passed": {f"p99_within_{TARGET_ERROR:.0%}": worst <= TARGET_ERROR},
    }
    return results, service


def compare(
    service: Service,
    fleet: Fleet,
    rate_per_s: float,
    rounds: Sequence[Sequence[Asked]],
    *,
    repeats: int,
    seed: int,
) -> dict[str, Any]:
    """Real and simulated figures of one rate; errors are simulated / real - 1."""
    arrivals_s = join_rounds(rounds)
    real_ms = [each.latency_ms for part in rounds for each in part]
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
    every = [each for part in rounds for each in part]
    answered = [each for each in every if each.answered]
    return {
        "rate_per_s": rate_per_s,
        "requests": len(real_ms),
        "real_ms": real,
        "real_p99_interval_ms": resampled(real_ms, lambda ms: quantiles(ms)["p99"], source),
        "simulated_ms": told,
        "simulated_p99_range_ms": [
            min(row["latency_ms"]["p99"] for row in simulated),
            max(row["latency_ms"]["p99"] for row in simulated),
        ],
        "error": {name: told[name] / real[name] - 1 for name in ("p50", "p95", "p99")},
        "full_share": {
            "real": fmean(each.full and each.latency_ms <= fleet.deadline_ms for each in every),
            "simulated": fmean(row["full_share"] for row in simulated),
        },
        "thinking_used": {
            "real": quantiles([each.reply["thinking"]["tokens"] for each in answered]),
            "simulated": simulated[0]["thinking_used"],
        },
        "thinking_allowed": {
            "real": quantiles([each.reply["thinking"]["allowed"] for each in answered]),
            "simulated": simulated[0]["thinking_allowed"],
        },
        "workers_busy_simulated": fmean(row["workers_busy"] for row in simulated),
        "real_latencies_ms": [round(ms, 2) for ms in real_ms],
        "simulated_latencies_ms": [round(ms, 2) for ms in sorted(simulated_ms)[:: max(1, repeats)]],
    }


def join_rounds(rounds: Sequence[Sequence[Asked]]) -> list[float]:
    """Arrivals of all rounds one after the other, in seconds from the first."""
    ends = [part[-1].due_s - part[0].due_s + PAUSE_S for part in rounds]
    starts = [0.0, *accumulate(ends)]
    return [
        start + each.due_s - part[0].due_s
        for start, part in zip(starts, rounds, strict=False)
        for each in part
    ]


def resampled(
    values: Sequence[float], figure: Callable[[Sequence[float]], float], source: random.Random
) -> list[float]:
    """A 95% interval of a figure, by drawing the values again with replacement."""
    figures = sorted(figure(source.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return [figures[int(0.025 * RESAMPLES)], figures[int(0.975 * RESAMPLES)]]


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
