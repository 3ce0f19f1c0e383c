"""Workers x threads x batch under open load: which of them keeps the deadline at the highest rate.

    python -m benchmarks.batching
    python -m benchmarks.batching --model artifacts/bench/ort-int4 --deadline_ms 8000 \
        --rates '[0.2, 0.4, 0.6, 0.8, 1]' --seconds 20 --patience_s 8 --saturated 8 --checked 4 \
        --thinking 16 --answer 16 --variants '["single-2x1x1", "single-1x2x1", "rows-2x1x4"]'

The second is for half a billion parameters (`benchmarks.random_model`, exported).

Every variant is a set of worker processes that hold the model, each with so many intra-op threads
and so many requests at once; one parent hands requests over pipes to whichever has room. Arrivals
are Poisson, the same instants and the same unique facts for each variant, and latency counts from
the scheduled instant. At each rate the variants come in random order; one that misses the deadline
at p99 is not asked at higher rates. Before the clock starts every variant completes some cases
all at once, their prompts of different lengths, whose texts are compared with those of one worker
that completes them one by one.
`benchmarks.batching_decoders` says what the kinds are.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import Field

from benchmarks.batching_worker import Reply, Variant, Workers, open_workers
from benchmarks.open_loop import quantiles
from benchmarks.served import describe_machine
from curt.artifact import load_manifest
from curt.config import Config, load_config
from curt.files import write_atomic, write_json
from curt.logs import configure_logging
from loadtest._arrivals import arrival_times_s, load_facts, number_fact

log = logging.getLogger(__name__)

REFERENCE = "single-1x1x1"
VARIANTS = [
    REFERENCE,
    "single-2x1x1",
    "single-4x1x1",
    "single-1x2x1",
    "single-1x2x1-spin",
    "padded-2x1x2",
    "padded-2x1x4",
    "padded-1x2x4",
    "padded-1x2x4-spin",
    "padded-1x2x8",
    "engine-2x1x4",
    "rows-2x1x1",
    "rows-2x1x4",
    "rows-1x2x4",
]


class BatchingConfig(Config):
    """Settings of `python -m benchmarks.batching`."""

    model: Path = Path("artifacts/demo/ort-int4-plain")
    """Model folder, onnxruntime-genai format."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """Where the facts come from."""
    variants: list[str] = VARIANTS
    """KIND-WORKERSxTHREADSxBATCH, "-spin" behind for threads that spin."""
    rates: list[float] = Field([10, 20, 40, 60, 80, 100, 125, 150], min_length=1)
    """Arrivals a second, rising."""
    seconds: float = Field(7.0, gt=0)
    """Of arrivals at each rate."""
    patience_s: float = Field(2.0, ge=0)
    """After the last arrival, before whoever still waits is given up."""
    deadline_ms: float = Field(400.0, gt=0)
    """A later answer is a miss."""
    chars: int = Field(300, ge=1)
    """Of every fact."""
    thinking: int = Field(32, ge=0)
    """Thinking tokens, stated and enforced."""
    answer: int = Field(64, ge=1)
    """Most answer tokens."""
    saturated: int = Field(64, ge=1)
    """Requests that come at once to see the throughput."""
    checked: int = Field(64, ge=1)
    """Cases completed at once, to compare texts."""
    seed: int = 1
    """Of arrivals and orders."""
    out: Path = Path("benchmarks/batching.json")
    """File of results; results of other models in it are kept. The picture goes beside it."""


def measure(config: BatchingConfig) -> dict[str, Any]:
    """Measure all variants. Raises ValueError or RuntimeError where one can't be measured."""
    variants = [Variant.parse(text) for text in dict.fromkeys([REFERENCE, *config.variants])]
    manifest = load_manifest(config.model, expect="ort-genai")
    corpus = load_facts(config.cases)
    source = random.Random(config.seed)
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        all_logits = work / "all-logits"
        if any(variant.kind == "engine" for variant in variants):
            from benchmarks.batching_decoders import with_all_logits

            with_all_logits(config.model, all_logits)
        sets = [
            stack.enter_context(
                open_workers(variant, config.model, all_logits, config.thinking, config.answer)
            )
            for variant in variants
        ]
        log.info("%d variants loaded", len(sets))
        texts = check(config, sets, corpus)  # which warms up, too
        flood = saturate(config, sets, corpus)
        going = sets
        for rate in sorted(config.rates):
            order = source.sample(going, len(going))
            done = [load(config, workers, corpus, rate) for workers in order]
            rows += done
            kept = {row["variant"] for row in done if meets(row, config.deadline_ms)}
            going = [workers for workers in going if workers.variant.name in kept]
            log.info("%g/s: %d of %d keep the deadline at p99", rate, len(kept), len(done))
    return {
        "machine": describe_machine() | {"tools": manifest.tools},
        "precision": manifest.precision,
        "config": config.model_dump(mode="json", exclude={"model", "cases", "out"}),
        "summary": {
            name: texts[name]
            | flood[name]
            | {"highest_rate_per_s": highest_rate(rows, name, config.deadline_ms)}
            for name in texts
        },
        "rows": rows,
    }


def check(
    config: BatchingConfig, sets: Sequence[Workers], corpus: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Complete facts, whose prompts differ in tokens, all at once; compare with the reference."""
    facts = make_facts(corpus, config.checked, config.chars, run=1)
    found: dict[str, dict[str, Any]] = {}
    right: list[str] = []
    for workers in sets:  # the reference comes first
        replies = workers.offer(facts, [0.0] * len(facts), float("inf"))
        texts = [reply.text for reply in sorted(replies, key=lambda reply: reply.job)]
        right = right or texts
        same = sum(a == b for a, b in zip(texts, right, strict=True))
        found[workers.variant.name] = {"same_texts": same, "compared_texts": len(texts)}
    return found


def saturate(
    config: BatchingConfig, sets: Sequence[Workers], corpus: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Throughput when everything comes at once."""
    facts = make_facts(corpus, config.saturated, config.chars, run=0)
    found: dict[str, dict[str, Any]] = {}
    for workers in sets:
        workers.batches.clear()
        workers.prefill_s = workers.decode_s = workers.cpu_s = 0.0
        started_s = time.perf_counter()
        replies = workers.offer(facts, [0.0] * len(facts), float("inf"))
        wall_s = time.perf_counter() - started_s
        tokens = sum(reply.tokens for reply in replies)
        found[workers.variant.name] = {
            "saturated_requests_per_s": len(facts) / wall_s,
            "saturated_tokens_per_s": tokens / wall_s,
            "prefill_ms_per_request": workers.prefill_s * 1e3 / len(facts),
            "decode_ms_per_request": workers.decode_s * 1e3 / len(facts),
            "cpu_ms_per_request": workers.cpu_s * 1e3 / len(facts),
            "mean_tokens": tokens / len(facts),
        }
    return found


def load(
    config: BatchingConfig, workers: Workers, corpus: Sequence[str], rate: float
) -> dict[str, Any]:
    """One variant at one rate."""
    times = itertools.takewhile(lambda s: s < config.seconds, arrival_times_s(rate, config.seed))
    due_s = list(times) or [0.0]
    facts = make_facts(corpus, len(due_s), config.chars, run=int(rate * 1000))
    workers.batches.clear()
    replies = workers.offer(facts, due_s, config.patience_s)
    row = summarise(replies, config.deadline_ms)
    batch = fmean(workers.batches) if workers.batches else None
    return {"variant": workers.variant.name, "rate_per_s": rate, "mean_handed_over": batch} | row


def summarise(replies: Sequence[Reply], deadline_ms: float) -> dict[str, Any]:
    """Figures of one rate; those who were given up count as misses and as slower than any."""
    answered = [reply.latency_ms for reply in replies if reply.latency_ms is not None]
    lost = len(replies) - len(answered)
    # so that percentiles hold the unanswered too; shown as None where one falls on them
    all_ms = quantiles([*answered, *[float("inf")] * lost])
    return {
        "arrived": len(replies),
        "given_up": lost,
        "misses": lost + sum(latency > deadline_ms for latency in answered),
        "latency_ms": {name: None if v == float("inf") else v for name, v in all_ms.items()},
        "mean_tokens": fmean(r.tokens for r in replies if r.latency_ms is not None)
        if answered
        else None,
    }


def meets(row: Mapping[str, Any], deadline_ms: float) -> bool:
    """Whether the p99 of a row is an answer within the deadline."""
    p99 = row["latency_ms"].get("p99")
    return p99 is not None and p99 < deadline_ms


def highest_rate(rows: Sequence[Mapping[str, Any]], variant: str, deadline_ms: float) -> float:
    """The highest rate up to which a variant kept its deadline at p99; 0 for none."""
    best = 0.0
    for row in sorted(rows, key=lambda row: row["rate_per_s"]):
        if row["variant"] == variant:
            if not meets(row, deadline_ms):
                break
            best = row["rate_per_s"]
    return best


def make_facts(corpus: Sequence[str], count: int, chars: int, run: int) -> list[str]:
    """Unique facts of `chars` characters, each from one case and those that follow it."""
    facts = []
    for index in range(count):
        text, place = number_fact("", run, index), index
        while len(text) < chars:
            text += corpus[place % len(corpus)]
            place += 1
        facts.append(text[:chars])
    return facts


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results and their picture; exits with a message on bad input."""
    config = load_config(BatchingConfig, argv)
    configure_logging()
    try:
        result = measure(config)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    from benchmarks.batching_plot import draw_batching  # spawned workers import this module, too

    kept = json.loads(config.out.read_text(encoding="utf-8")) if config.out.is_file() else {}
    name = "-".join(config.model.resolve().parts[-2:])
    write_json(config.out, kept | {name: result})
    write_atomic(config.out.with_suffix(".png"), draw_batching(kept | {name: result}))
    for variant, row in result["summary"].items():
        log.info(
            "%-20s %5g/s at p99 < %g ms; %5.1f requests/s saturated at %5.1f ms of "
            "processor each; %d of %d texts the same",
            variant,
            row["highest_rate_per_s"],
            config.deadline_ms,
            row["saturated_requests_per_s"],
            row["cpu_ms_per_request"],
            row["same_texts"],
            row["compared_texts"],
        )


if __name__ == "__main__":
    main()
