"""The ratios of the smoke benchmark, each from pairs that were taken one right after the other.

Both halves of a pair meet the same machine in the same mood, and which of them comes first
alternates; the value is the median over the pairs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

from benchmarks.asker import Answer, Asker
from benchmarks.client import (
    PATIENCE_S,
    Client,
    arrivals_for,
    read_address,
    send_on_time,
    write_body,
)
from compress.compare.subject import OrtSubject, RunTimes, make_request
from curt.engines.protocol import Engine, Request, StreamingEngine

if TYPE_CHECKING:
    from curt.corpus.case import Case

Better = Literal["higher", "lower"]

PROMPT_TOKENS, DECODE_TOKENS = 200, 64
UNHURRIED_MS = 10_000  # a deadline that shortens nobody's reasoning
DEADLINE_MS = 400
CROWD = 4  # requests under way at once, enough for two workers never to wait
FLOOD = 3  # times the capacity
PAUSE_S = 1.5  # after a flood, whose arrivals shorten reasoning for a while
DENIED = {"deadline", "overloaded", "worker_failed"}  # answers that are none of the model's


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio and the pairs behind it: their number, lower and upper quartile."""

    value: float
    better: Better
    pairs: int
    low: float
    high: float


def ratio_of(pairs: Sequence[float], better: Better) -> Ratio:
    """Median and quartiles of at least one pair's ratio."""
    ordered = sorted(pairs)
    last = len(ordered) - 1
    return Ratio(
        median(ordered), better, len(ordered), ordered[last // 4], ordered[last - last // 4]
    )


def interleave(
    first: Callable[[], float], second: Callable[[], float], pairs: int
) -> Iterator[float]:
    """`first` over `second` so many times; whichever ran second in one pair runs first in the next.

    Raises ValueError for no pairs.
    """
    if pairs < 1:
        raise ValueError(f"{pairs} pairs: use 1 or more")
    for turn in range(pairs):
        if turn % 2:
            below = second()
            yield first() / below
        else:
            above = first()
            yield above / second()


def decode_rate(times: RunTimes) -> float:
    """Tokens a second after the prefill."""
    return times.passes / times.decode_s


def engine_ratios(subject: OrtSubject, pairs: int) -> dict[str, Ratio]:
    """Our engine beside the library's own loop over the same weights, and beside itself.

    `engine_over_bare_decode`: tokens a second. `prefix_reuse`: time to the first token with a
    generator of its own over the time with the one that keeps what all prompts begin with.
    """
    request = make_request(subject, PROMPT_TOKENS, DECODE_TOKENS)
    passes = subject.run_engine(request).passes
    subject.run_bare(request, passes)
    decode = interleave(
        lambda: decode_rate(subject.run_engine(request)),
        lambda: decode_rate(subject.run_bare(request, passes)),
        pairs,
    )
    found = {"engine_over_bare_decode": ratio_of(list(decode), "higher")}
    # Too long for the kept generator's cache: such a request gets one of its own.
    alone = Request(request.fact, 0, 500)
    kept = Request(request.fact, 0, 16)
    reuse = interleave(
        lambda: first_token_s(subject.engine, alone),
        lambda: first_token_s(subject.engine, kept),
        pairs,
    )
    return found | {"prefix_reuse": ratio_of(list(reuse), "higher")}


def first_token_s(engine: StreamingEngine, request: Request) -> float:
    """Seconds until the first token after the prompt was picked; the rest is not made."""
    started_s = time.perf_counter()
    with closing(engine.stream(request)) as steps:
        next(step for step in steps if step.phase != "prefill")
        return time.perf_counter() - started_s


def precision_ratio(served: OrtSubject, fp32: OrtSubject, pairs: int) -> dict[str, Ratio]:
    """`served_over_fp32_decode`: tokens a second of the same model at both."""
    request = make_request(served, PROMPT_TOKENS, DECODE_TOKENS)
    fp32.run_engine(request)
    decode = interleave(
        lambda: decode_rate(served.run_engine(request)),
        lambda: decode_rate(fp32.run_engine(request)),
        pairs,
    )
    return {"served_over_fp32_decode": ratio_of(list(decode), "higher")}


def served_over_engine(
    url: str, engine: Engine, facts: Iterator[str], pairs: int
) -> dict[str, Ratio]:
    """`served_over_engine`: what a request takes, over what the bare engine takes for the same."""
    ratios = []
    with Asker(url) as asker:
        for fact in islice(facts, pairs):
            answer = answered(asker.ask(fact, UNHURRIED_MS))
            thinking = answer.reply["thinking"]
            request = Request(fact, thinking["stated_budget"], thinking["allowed"])
            started_s = time.perf_counter()
            engine.generate([request])
            ratios.append(answer.ms / 1e3 / (time.perf_counter() - started_s))
    return {"served_over_engine": ratio_of(ratios, "lower")}


def cache_speedup(url: str, facts: Iterator[str], pairs: int) -> dict[str, Ratio]:
    """`cache_speedup`: the first answer's time over that of the same question asked again."""
    ratios = []
    with Asker(url) as asker:
        for fact in islice(facts, pairs):
            first, second = (asker.ask(fact, UNHURRIED_MS).ms for _ in range(2))
            ratios.append(first / second)
    return {"cache_speedup": ratio_of(ratios, "higher")}


def worker_scaling(
    two: str, one: str, facts: Iterator[str], seconds: float, pairs: int
) -> dict[str, Ratio]:
    """`two_workers_over_one`: answers a second of two workers over those of one."""
    with Asker(two) as asker_two, Asker(one) as asker_one:

        def rate(asker: Asker) -> float:
            answers, took_s = asker.keep_asking(seconds, facts, UNHURRIED_MS, CROWD)
            return len([answered(answer) for answer in answers]) / took_s

        ratios = list(interleave(lambda: rate(asker_two), lambda: rate(asker_one), pairs))
    return {"two_workers_over_one": ratio_of(ratios, "higher")}


def goodput_kept(url: str, facts: Iterator[str], seconds: float, pairs: int) -> dict[str, Ratio]:
    """`goodput_kept`: the model's answers in time a second under three times as many arrivals as
    the server can answer, over what it can.

    The capacity is what a few clients get who wait for each answer and hurry nobody. Arrivals come
    whether answers do or not: clients who ask again at once when refused would be another storm.
    """
    ratios = []
    with Asker(url) as asker:
        for turn in range(pairs):
            answers, took_s = asker.keep_asking(seconds, facts, UNHURRIED_MS, CROWD)
            capacity = len([answered(answer) for answer in answers]) / took_s
            flooded = asyncio.run(_flood(url, facts, FLOOD * capacity, seconds, seed=turn))
            ratios.append(sum(is_good(answer) for answer in flooded) / seconds / capacity)
            time.sleep(PAUSE_S)
    return {"goodput_kept": ratio_of(ratios, "higher")}


async def _flood(
    url: str, facts: Iterator[str], rate: float, seconds: float, seed: int
) -> list[Answer]:
    """Poisson arrivals and what each got, timed from its scheduled instant."""
    client = Client(*read_address(url), PATIENCE_S + DEADLINE_MS / 1e3)
    exchanges = await send_on_time(
        client, arrivals_for(rate, seed, seconds), lambda _: write_body(next(facts), DEADLINE_MS)
    )
    await asyncio.sleep(0)  # transports end in the loop's next turn
    return [Answer(e.got.status, e.answer, e.latency_ms) for e in exchanges]


def reasoning_ratios(
    penalised: Path, warm_start: Path, cases: Sequence[Case], batch: int = 64
) -> dict[str, Ratio]:
    """`thinking_tokens_kept` and `exact_kept`: the penalised model over its warm start, by case.

    Weights and decoding are deterministic, so these move only when a model or the dialogue does.
    Raises ValueError without cases, or when the warm start gets none right.
    """
    from curt.dialogue import parse_completion
    from curt.engines.transformers import TransformersEngine
    from curt.scores.metrics import is_exact

    if not cases:
        raise ValueError("no cases to reason about: give at least one")
    tokens, exact = [], []
    for folder in (penalised, warm_start):
        engine = TransformersEngine(folder, batch=batch, device="cpu")
        most = engine.manifest.max_thinking_tokens
        generations = engine.generate([Request(case.fact, most, most) for case in cases])
        tokens.append(sum(generation.thinking_tokens for generation in generations))
        exact.append(
            sum(
                is_exact(parse_completion(generation.text).verdict, case.verdict)
                for generation, case in zip(generations, cases, strict=True)
            )
        )
    if not tokens[1] or not exact[1]:
        raise ValueError(f"{warm_start} reasons about nothing or gets nothing right: train it")
    return {
        "thinking_tokens_kept": ratio_of([tokens[0] / tokens[1]], "lower"),
        "exact_kept": ratio_of([exact[0] / exact[1]], "higher"),
    }


def answered(answer: Answer) -> Answer:
    """The answer, where the model gave it. Raises RuntimeError where nobody hurried it and none
    came."""
    if not is_model(answer):
        raise RuntimeError(
            f"status {answer.status} to a request with {UNHURRIED_MS} ms: is the machine stuck?"
        )
    return answer


def is_good(answer: Answer) -> bool:
    """Whether the model answered within the deadline, readable or not."""
    return is_model(answer) and answer.ms <= DEADLINE_MS


def is_model(answer: Answer) -> bool:
    """Whether the model answered at all."""
    return answer.status == 200 and answer.reply["degraded_reason"] not in DENIED
