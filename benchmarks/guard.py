"""Has something become slower? Ratios only, so that the answer holds on any machine.

    python -m benchmarks.guard                  # judge against the committed baseline
    python -m benchmarks.guard --update true    # set the baseline, on a quiet machine

Each ratio compares two measurements taken in turn on the models of `make demo`, so that load from
elsewhere affects both, and is the median over many such pairs. A ratio that lost more than the
tolerance is measured again before the run fails; an unsteady baseline ratio is not judged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice, takewhile
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import Field

from benchmarks.client import endless, load, send_in_turn, write_body
from benchmarks.run import EXPECTED, describe_machine, serve, write_results
from compress.compare.speed import OrtSubject, RunTimes, make_request
from curt.config import Config, run
from curt.engines.protocol import Request
from loadtest._arrivals import load_facts
from loadtest._http import HttpClient

log = logging.getLogger(__name__)

BETTER = {
    "engine_over_bare_decode": "higher",  # our tokens a second / those of the library's own loop
    "served_over_engine": "lower",  # milliseconds of a request / the bare engine's
    "two_workers_over_one": "higher",  # answers a second
    "goodput_kept": "higher",  # answers a second in time at an overload / without it
}
SETTLED = 0.12  # takes of a guarding ratio lie within so much of their median
PROMPT_TOKENS, DECODE_TOKENS = 200, 64
UNHURRIED_MS = 10_000  # a deadline that shortens nobody's reasoning
DEADLINE_MS = 400
CLIENTS = 4  # requests under way at once, enough for two workers never to wait
OVERLOAD = 3  # times the rate that can be answered
PAUSE_S = 1.5  # after a flood, whose arrivals shorten reasoning for a while


class GuardConfig(Config):
    """What is measured, how often, and what it is judged by."""

    run: Path = Path("artifacts/demo")
    """Folder of a demo run."""
    pairs: int = Field(60, ge=1)
    """Pairs behind each ratio of single requests."""
    load_pairs: int = Field(7, ge=1)
    """Pairs behind each ratio of loads."""
    seconds: float = Field(1.0, gt=0)
    """How long one half of a pair loads a server."""
    tolerance: float = Field(0.2, gt=0, lt=1)
    """Loss that fails."""
    update: bool = False
    """Set the baseline instead of judging by it."""
    takes: int = Field(5, ge=2)
    """Measurements behind a baseline."""
    baseline: Path = Path("benchmarks/results/smoke_baseline.json")
    """What to judge by."""
    report: Path = Path("artifacts/bench/smoke.json")
    """File of results."""


def measure(config: GuardConfig, wanted: Sequence[str]) -> dict[str, float]:
    """The wanted ratios, medians over their pairs. Raises RuntimeError where no answer comes."""
    served = OrtSubject(config.run / "ort-w8a8", 1)
    facts = endless(load_facts(config.run / "corpus" / "test.jsonl"))
    request = make_request(served, PROMPT_TOKENS, DECODE_TOKENS)
    passes = served.run_engine(request).passes
    with ExitStack() as stack:
        two, one = (
            stack.enter_context(serve(config.run / "ort-w8a8", workers=n)).url for n in (2, 1)
        )

        def answers(url: str) -> float:
            return asyncio.run(answer_rate(url, facts, config.seconds))

        def flood() -> float:
            texts, rate = [next(facts) for _ in range(64)], OVERLOAD * answers(two)
            sending = load([two], texts, rate, config.seconds, DEADLINE_MS, seed=0)
            good = sum(e.by_model and e.latency_ms <= DEADLINE_MS for e in asyncio.run(sending))
            time.sleep(PAUSE_S)
            return good / config.seconds

        pairs = {
            "engine_over_bare_decode": lambda: interleave(
                lambda: decode_rate(served.run_engine(request)),
                lambda: decode_rate(served.run_bare(request, passes)),
                config.pairs,
            ),
            "served_over_engine": lambda: (
                over_engine(two, served, fact) for fact in islice(facts, config.pairs)
            ),
            "two_workers_over_one": lambda: interleave(
                lambda: answers(two), lambda: answers(one), config.load_pairs
            ),
            "goodput_kept": lambda: interleave(flood, lambda: answers(two), config.load_pairs),
        }
        return {name: median(pairs[name]()) for name in wanted}


def interleave(
    first: Callable[[], float], second: Callable[[], float], pairs: int
) -> Iterator[float]:
    """`first` over `second` so many times; which of them runs first alternates."""
    for turn in range(pairs):
        below = second() if turn % 2 else None
        above = first()
        yield above / (second() if below is None else below)


def decode_rate(times: RunTimes) -> float:
    """Tokens a second after the prefill."""
    return times.passes / times.decode_s


async def answer_rate(url: str, facts: Iterator[str], seconds: float) -> float:
    """Answers a second to a few clients that each wait for a reply before they ask again."""
    start_s = time.monotonic()
    in_time = takewhile(lambda _: time.monotonic() < start_s + seconds, facts)
    bodies = (write_body(fact, UNHURRIED_MS) for fact in in_time)
    exchanges = await send_in_turn(HttpClient(url, patience_s=90.0), bodies, CLIENTS)
    return len([each.require_answer() for each in exchanges]) / (time.monotonic() - start_s)


def over_engine(url: str, subject: OrtSubject, fact: str) -> float:
    """What a request takes, over what the bare engine takes for the same."""
    (exchange,) = asyncio.run(send_in_turn(HttpClient(url), [write_body(fact, UNHURRIED_MS)]))
    thinking = exchange.require_answer()["thinking"]
    started_s = time.perf_counter()
    subject.engine.generate([Request(fact, thinking["stated_budget"], thinking["allowed"])])
    return exchange.service_ms / 1e3 / (time.perf_counter() - started_s)


def loss(value: float, base: float, better: str) -> float:
    """Share of the baseline that was lost, negative for a gain. Twice the time is a loss of one
    half, as is half the speed."""
    return 1 - value / base if better == "higher" else 1 - base / value


def judge(
    takes: Sequence[Mapping[str, float]], base: Mapping[str, Mapping[str, Any]], tolerance: float
) -> dict[str, dict[str, Any]]:
    """For each ratio of the baseline the best of the takes, its loss, and the verdict."""
    rows = {}
    for name, told in base.items():
        values = [take[name] for take in takes if name in take]
        best = (max if told["better"] == "higher" else min)(values)
        lost = loss(best, told["value"], told["better"])
        verdict = ("failed" if lost > tolerance else "passed") if told["guards"] else "not judged"
        rows[name] = {"value": best, "base": told["value"], "loss": lost, "verdict": verdict}
    return rows


def settle(takes: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """The baseline of several takes: medians, how far apart they lay, and which may judge."""
    rows = {}
    for name in takes[0]:
        values = [take[name] for take in takes]
        middle = median(values)
        spread = max(max(values) - middle, middle - min(values)) / middle
        told = {"value": middle, "better": BETTER[name], "guards": spread <= SETTLED}
        rows[name] = told | {"spread": spread, "takes": values}
    return rows


def work(config: GuardConfig) -> int:
    """Judge, or set the baseline; 1 on a loss. Raises ValueError without a baseline."""
    if config.update:
        ratios = settle([measure(config, list(BETTER)) for _ in range(config.takes)])
        write_results(config.baseline, {"machine": describe_machine(), "ratios": ratios})
        log.info("%s is ready", config.baseline)
        return 0
    if not config.baseline.is_file():
        raise ValueError(f"no {config.baseline}: set it on a quiet machine with --update true")
    base = json.loads(config.baseline.read_text(encoding="utf-8"))["ratios"]
    takes = [measure(config, list(base))]
    rows = judge(takes, base, config.tolerance)
    if failed := [name for name, row in rows.items() if row["verdict"] == "failed"]:
        log.warning("lost something, or was disturbed; once more: %s", ", ".join(failed))
        takes.append(measure(config, failed))
        rows = judge(takes, base, config.tolerance)
    passed = not any(row["verdict"] == "failed" for row in rows.values())
    told = {"passed": passed, "tolerance": config.tolerance, "rows": rows, "takes": takes}
    write_results(config.report, told | {"machine": describe_machine()})
    log.info("%s: passed: %s\n%s", config.report, passed, json.dumps(rows, indent=1))
    return 0 if passed else 1


if __name__ == "__main__":
    run(GuardConfig, work, expected=EXPECTED)
