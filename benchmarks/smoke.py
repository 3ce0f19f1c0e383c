"""Has something become slower? Ratios only, so that the answer holds on any machine.

    python -m benchmarks.smoke                  # judge against the committed baseline
    python -m benchmarks.smoke --update true    # set the baseline, on a quiet machine

Each ratio sets two things side by side that ran in turn on this machine (`smoke_ratios`): our
engine and the library's bare loop, the server and the engine, a flood and the capacity. A ratio
that lost more than the tolerance fails the run; it is taken a second time first, since a busy
neighbour seldom disturbs the same ratio twice. Setting the baseline takes every ratio several
times; one whose takes lie too far apart is written down but judges nobody.

Runs on what `make demo` left, or on a random model in its shape that it makes in half a minute;
the baseline holds the ratios of both.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import Field

from benchmarks.asker import endless
from benchmarks.run import describe_machine, serve
from benchmarks.smoke_model import Subjects, find_demo, make_subjects
from benchmarks.smoke_ratios import (
    Ratio,
    cache_speedup,
    engine_ratios,
    goodput_kept,
    precision_ratio,
    reasoning_ratios,
    served_over_engine,
    worker_scaling,
)
from compress.compare.subject import OrtSubject
from curt.config import Config, load_config
from curt.corpus.store import read_cases
from curt.files import write_json
from curt.logs import configure_logging

log = logging.getLogger(__name__)

SETTLED = 0.12  # takes of a guarding ratio lie within so much of their median


class SmokeConfig(Config):
    """Settings of `python -m benchmarks.smoke`."""

    run: Path = Path("artifacts/demo")
    """What a demo run left."""
    made: bool = False
    """Measure a model made here even where a demo run is."""
    pairs: int = Field(60, ge=1)
    """Pairs behind each ratio of single requests."""
    seconds: float = Field(1.0, gt=0)
    """How long one half of a pair loads a server."""
    load_pairs: int = Field(7, ge=1)
    """Pairs behind each ratio of loads."""
    cases: int = Field(48, ge=1)
    """Cases to count reasoning on."""
    tolerance: float = Field(0.2, gt=0, lt=1)
    """Loss that fails."""
    update: bool = False
    """Set the baseline instead of judging by it."""
    takes: int = Field(5, ge=2)
    """How often a baseline is taken."""
    baseline: Path = Path("benchmarks/results/smoke_baseline.json")
    """What to judge by."""
    out: Path = Path("artifacts/bench/smoke.json")
    """File of results."""


def measure(
    config: SmokeConfig, subjects: Subjects, wanted: Collection[str] | None = None
) -> dict[str, Ratio]:
    """The ratios that the subjects allow, all or those in `wanted` and what comes along with them.

    Raises RuntimeError when a server does not answer.
    """

    def wants(*names: str) -> bool:
        return wanted is None or any(name in wanted for name in names)

    served = OrtSubject(subjects.served, 1)
    found: dict[str, Ratio] = {}
    if wants("engine_over_bare_decode", "prefix_reuse"):
        found |= engine_ratios(served, config.pairs)
    if subjects.fp32 and wants("served_over_fp32_decode"):
        found |= precision_ratio(served, OrtSubject(subjects.fp32, 1), config.pairs)
    cases = list(read_cases(subjects.cases))
    facts = endless([case.fact for case in cases])
    few = max(1, config.pairs // 2)
    seconds, load_pairs = config.seconds, config.load_pairs
    with contextlib.ExitStack() as stack:
        if wants("served_over_engine", "two_workers_over_one", "goodput_kept"):
            two = stack.enter_context(serve(subjects.served, workers=2)).url
            found |= served_over_engine(two, served.engine, facts, config.pairs)
            if len(os.sched_getaffinity(0)) > 1:
                one = stack.enter_context(serve(subjects.served, workers=1)).url
                found |= worker_scaling(two, one, facts, seconds, load_pairs)
            found |= goodput_kept(two, facts, seconds, load_pairs)  # last, for what a flood leaves
    # A random model's answers can't be read, and such are not kept.
    if subjects.warm_start and wants("cache_speedup"):
        with serve(subjects.served, workers=1, cache_ttl_s=600) as server:
            found |= cache_speedup(server.url, facts, few)
    if subjects.penalised and subjects.warm_start and wants("thinking_tokens_kept", "exact_kept"):
        found |= reasoning_ratios(subjects.penalised, subjects.warm_start, cases[: config.cases])
    return found


def loss(value: float, base: float, better: str) -> float:
    """Share of the baseline that was lost; below 0 where something was won.

    For a ratio that is to be low the loss is 1 − base/value, so that twice as much is a loss of
    one half either way. A ratio that fell to 0 and is to be high lost everything. Raises ValueError
    unless both are above 0 in every other case.
    """
    if value == 0 and better == "higher" and base > 0:
        return 1.0
    if not (value > 0 and base > 0):
        raise ValueError(f"ratios of {value} and {base}: both must be above 0")
    return 1 - value / base if better == "higher" else 1 - base / value


def judge(
    takes: Sequence[Mapping[str, Ratio]], base: Mapping[str, Mapping[str, Any]], tolerance: float
) -> list[dict[str, Any]]:
    """One row a ratio of the baseline: the best of the takes, its loss, and whether it passed.

    A ratio that guards and was not measured failed; one without a baseline is told of and judged
    no further.
    """
    names = list(dict.fromkeys(chain(base, *takes)))
    rows = []
    for name in names:
        seen = [take[name] for take in takes if name in take]
        row: dict[str, Any] = {"name": name, "value": None, "base": None, "loss": None}
        if name not in base:
            rows.append(row | {"value": seen[-1].value, "verdict": "no baseline"})
            continue
        expected = base[name]
        row["base"] = expected["value"]
        if seen:
            losses = [loss(r.value, expected["value"], expected["better"]) for r in seen]
            best = losses.index(min(losses))
            row |= {"value": seen[best].value, "loss": losses[best]}
        lost = not seen or row["loss"] > tolerance
        verdict = ("failed" if lost else "passed") if expected["guards"] else "not judged"
        rows.append(row | {"verdict": verdict if seen or not expected["guards"] else "missing"})
    return rows


def settle(takes: Sequence[Mapping[str, Ratio]]) -> dict[str, dict[str, Any]]:
    """The baseline of several takes: medians, how far apart they lay, and which may judge."""
    rows = {}
    for name in takes[0]:
        values = [take[name].value for take in takes]
        middle = median(values)
        spread = max(max(values) - middle, middle - min(values)) / middle
        rows[name] = {
            "value": middle,
            "better": takes[0][name].better,
            "spread": spread,
            "guards": spread <= SETTLED,
            "takes": values,
        }
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as text with aligned columns."""

    def cell(value: object) -> str:
        return f"{value:.3f}" if isinstance(value, float) else str(value or "-")

    head = ("name", "value", "base", "loss", "verdict")
    lines = [head, *(tuple(cell(row[column]) for column in head) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def guard(config: SmokeConfig, subjects: Subjects) -> bool:
    """Measure and judge, or set the baseline; whether nothing was lost.

    Raises ValueError when there is no baseline to judge by.
    """
    kept = _read_json(config.baseline)
    if config.update:
        takes = [measure(config, subjects) for _ in range(config.takes)]
        models = kept.get("models", {}) | {subjects.name: settle(takes)}
        machine = describe_machine()
        write_json(config.baseline, {"machine": machine, "models": models})
        log.info("%s:\n%s", config.baseline, json.dumps(models[subjects.name], indent=1))
        return True
    base = kept.get("models", {}).get(subjects.name)
    if base is None:
        raise ValueError(
            f"{config.baseline} has no ratios of the {subjects.name} model: set them on a quiet "
            "machine with --update true"
        )
    takes = [measure(config, subjects)]
    rows = judge(takes, base, config.tolerance)
    failed = [row["name"] for row in rows if row["verdict"] == "failed"]
    if failed:
        log.warning("lost something, or was disturbed; once more:\n%s", table(rows))
        takes.append(measure(config, subjects, failed))
        rows = judge(takes, base, config.tolerance)
    passed = not any(row["verdict"] in ("failed", "missing") for row in rows)
    write_json(
        config.out,
        {
            "passed": passed,
            "model": subjects.name,
            "tolerance": config.tolerance,
            "machine": describe_machine(),
            "rows": rows,
            "takes": [{name: asdict(ratio) for name, ratio in take.items()} for take in takes],
        },
    )
    log.info("%s: %s\n%s", config.out, "passed" if passed else "FAILED", table(rows))
    return passed


def main(argv: list[str] | None = None) -> None:
    """Judge, or set the baseline; exits with status 1 on a loss and a message on bad input."""
    config = load_config(SmokeConfig, argv)
    configure_logging()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            subjects = None if config.made else find_demo(config.run)
            passed = guard(config, subjects or make_subjects(Path(temporary)))
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if passed else 1)


def _read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found


if __name__ == "__main__":
    main()
