"""How many passes of the model, and how long, an answer takes in each way of writing it.

    OMP_NUM_THREADS=1 python -m benchmarks.answer_steps --artifact artifacts/demo/ort-int4-plain

Variants of the same engine at one thread take turns on every case, in an order that turns too:

- `plain`: one token a pass; what the others are compared with, case by case.
- `guided`: every token of the answer held to the grammar.
- `guided, jump`: tokens the grammar leaves no choice about are fed along with the one before.
- `lookup`: likely tokens are fed along and kept where the model picks the same.
- `guided, jump, lookup`: both.

The last two need a graph that tells its picks; a copy of the artifact that does is made first, and
`picks alone` reads it one token a pass, to show what that costs. Texts that differ from `plain`
come from passes over several tokens, whose kernels round differently at four or eight bits.

`overhead` sets the engine's own loop beside the bare runtime that is fed the same tokens.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og

from benchmarks.served import describe_machine
from compress.ort_picks import PicksConfig, make_artifact
from curt.config import Config, load_config
from curt.corpus.store import read_cases
from curt.dialogue import parse_completion
from curt.engines.onnxruntime_genai import OrtEngine, append_tokens, session_config
from curt.engines.protocol import Generation, Request
from curt.files import write_json
from curt.logs import configure_logging
from curt.metrics import is_exact
from curt.schema import Case, Verdict

logger = logging.getLogger(__name__)

BASELINE = "plain"


class AnswerStepsConfig(Config):
    """Settings of `python -m benchmarks.answer_steps`."""

    artifact: Path = Path("artifacts/demo/ort-int4-plain")
    """The ONNX Runtime model folder."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """JSON Lines file of cases."""
    count: int = 300
    """How many cases to use."""
    budgets: tuple[int, ...] = (0, 16, 64)
    """Thinking budgets, stated and enforced."""
    threads: int = 1
    out: Path = Path("benchmarks/answer_steps.json")
    """File of results."""


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results; exits with a message on bad input."""
    config = load_config(AnswerStepsConfig, argv)
    configure_logging()
    try:
        result = measure(config)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    write_json(config.out, result)
    for row in result["rows"]:
        logger.info(
            "budget %3d, %-20s: %4.1f passes, %5.2f ms (p95 %5.2f), %.2f of plain's time, "
            "same text %d, readable %d of %d",
            row["budget"],
            row["variant"],
            row["passes_mean"],
            row["decode_ms"]["p50"],
            row["decode_ms"]["p95"],
            row["decode_to_plain"],
            row["same_text"],
            row["readable"],
            row["cases"],
        )


def measure(config: AnswerStepsConfig) -> dict[str, Any]:
    """Run every variant on every case at every budget."""
    cases = list(read_cases(config.cases))[: config.count]
    if not cases:
        raise ValueError(f"no cases in {config.cases}: name another file with --cases")
    with tempfile.TemporaryDirectory() as temporary:
        picks = Path(temporary) / "picks"
        make_artifact(PicksConfig(artifact=config.artifact, out=picks))
        engines = open_variants(config.artifact, picks, config.threads)
        for engine in engines.values():
            engine.generate([Request(case.fact, 16, 16) for case in cases[:5]])
        rows = [
            row for budget in config.budgets for row in compare_variants(engines, cases, budget)
        ]
        overhead = compare_with_bare(
            engines[BASELINE], config.artifact, config.threads, cases, max(config.budgets)
        )
    return {
        "machine": describe_machine(),
        "artifact": config.artifact.name,
        "threads": config.threads,
        "rows": rows,
        "overhead": overhead,
    }


def open_variants(artifact: Path, picks: Path, threads: int) -> dict[str, OrtEngine]:
    """The engine in each way of writing an answer."""
    return {
        BASELINE: OrtEngine(artifact, threads=threads),
        "guided": OrtEngine(artifact, threads=threads, guided=True, jump=False),
        "guided, jump": OrtEngine(artifact, threads=threads, guided=True),
        "picks alone": OrtEngine(picks, threads=threads, lookup=False),
        "lookup": OrtEngine(picks, threads=threads),
        "guided, jump, lookup": OrtEngine(picks, threads=threads, guided=True),
    }


def compare_variants(
    engines: dict[str, OrtEngine], cases: Sequence[Case], budget: int
) -> list[dict[str, Any]]:
    """One row a variant: passes, times, and how often text and verdict are the plain ones."""
    names = list(engines)
    written: dict[str, list[Generation]] = {name: [] for name in names}
    for index, case in enumerate(cases):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            written[name] += engines[name].generate([Request(case.fact, budget, budget)])
    plain = written[BASELINE]
    return [
        {"budget": budget, "variant": name} | summarise(cases, written[name], plain)
        for name in names
    ]


def summarise(
    cases: Sequence[Case], own: Sequence[Generation], plain: Sequence[Generation]
) -> dict[str, Any]:
    """Figures of one variant; `decode_to_plain` is the median ratio of a case's two times."""
    verdicts = [parse_completion(generation.text).verdict for generation in own]
    ratios = [a.decode_ms / b.decode_ms for a, b in zip(own, plain, strict=True)]
    return {
        "cases": len(own),
        "answer_tokens_mean": float(np.mean([g.answer_tokens for g in own])),
        "thinking_tokens_mean": float(np.mean([g.thinking_tokens for g in own])),
        "passes_mean": float(np.mean([g.decode_passes or 0 for g in own])),
        "decode_ms": _quantiles([g.decode_ms for g in own]),
        "prefill_ms": _quantiles([g.prefill_ms for g in own]),
        "decode_to_plain": float(np.median(ratios)),
        "same_text": sum(a.text == b.text for a, b in zip(own, plain, strict=True)),
        "readable": sum(isinstance(verdict, Verdict) for verdict in verdicts),
        "exact": sum(
            isinstance(verdict, Verdict) and is_exact(verdict, case.verdict)
            for verdict, case in zip(verdicts, cases, strict=True)
        ),
    }


def compare_with_bare(
    engine: OrtEngine, artifact: Path, threads: int, cases: Sequence[Case], budget: int
) -> dict[str, Any]:
    """Microseconds a pass in the engine and in the bare runtime fed the same tokens."""
    model = og.Model(session_config(artifact, threads, allow_spinning=False))
    own, bare = [], []
    for case in cases:
        request = Request(case.fact, budget, budget)
        (generation,) = engine.generate([request])
        written = engine.tokenizer.encode(generation.text)[: generation.decode_passes]
        own.append(generation.decode_ms * 1e3 / len(written))
        bare.append(time_bare(model, engine.encode(request), written) * 1e6 / len(written))
    return {
        "engine_us_per_pass": _quantiles(own),
        "bare_us_per_pass": _quantiles(bare),
        "outside_runtime_us_per_pass": float(
            np.median([a - b for a, b in zip(own, bare, strict=True)])
        ),
    }


def time_bare(model: Any, prompt: Sequence[int], written: Sequence[int]) -> float:
    """Seconds to read the logits and feed the next token, for each token written."""
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + len(written), do_sample=False)
    generator = og.Generator(model, params)
    append_tokens(generator, prompt)
    feeds = [np.asarray([token], np.int32) for token in written]
    started_s = time.perf_counter()
    for feed in feeds:
        generator.get_logits()
        generator.append_tokens(feed)
    return time.perf_counter() - started_s


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    return {
        "p50": round(float(np.percentile(values, 50)), 3),
        "p95": round(float(np.percentile(values, 95)), 3),
    }


if __name__ == "__main__":
    main()
