"""Length penalties side by side: same warm start, same steps, same seeds.

    python -m benchmarks.penalties @configs/demo/bench-penalties.toml

Trains and evaluates every method with every seed, then writes `benchmarks/results/penalties.json`,
raw rows and a plot beside it. What is already made is kept: stop with Ctrl-C at any time and run
it again.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from benchmarks.run import EXPECTED, write_results
from curt.artifact import MANIFEST, load_manifest
from curt.config import Config, run
from curt.scores.statistics import bootstrap_mean

logger = logging.getLogger(__name__)

BUDGETS = [8, 16, 32, 64, 128]
STATED = [16, 32, 64, 128]


class PenaltyBenchConfig(Config):
    """What to compare and on what."""

    model: Path
    """Warm start that every run begins from."""
    corpus: Path
    """Folder with train.jsonl and test.jsonl."""
    candidates: Path | None = None
    """Cross-fitted candidates of the training cases."""
    grpo: Path
    """GRPO settings shared by all methods."""
    methods: dict[str, dict[str, Any]]
    """Method name to the GRPO settings that it changes."""
    default: str
    """The method that `grpo` has; it gets a row of its own in the summary."""
    steps: int
    learning_rate: float
    seeds: list[int] = [7, 8, 9]
    jobs: int = 2
    """Runs at once, one thread each: on small models that beats one run with all threads."""
    cases: int = 500
    """Test cases under the widest budget."""
    budget_cases: int = 250
    """Test cases under each smaller budget."""
    obedience_cases: int = 200
    """Test cases for the budget that is stated and not enforced."""
    folder: Path = Path("artifacts/bench/penalties")
    """Where runs and evaluations are kept."""
    report: Path = Path("benchmarks/results/penalties.json")
    """File of results; raw rows and a picture go beside it."""


def work(config: PenaltyBenchConfig) -> None:
    """Train and evaluate what is missing, then summarise.

    Raises RuntimeError when a run fails, naming its log.
    """
    from benchmarks.pictures import draw_penalties

    config.folder.mkdir(parents=True, exist_ok=True)
    load_manifest(config.model, expect="hf")
    names = [(method, seed) for seed in config.seeds for method in config.methods]
    with (
        tqdm(total=len(names) + 1, desc="penalties", unit="run") as bar,
        ThreadPoolExecutor(config.jobs) as pool,
    ):
        jobs = [pool.submit(evaluate_warm_start, config)]
        jobs += [pool.submit(train_and_evaluate, config, *name) for name in names]
        try:
            for job in jobs:
                job.result()
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    results, rows = collect(config)
    picture = draw_penalties(results["summary"])
    write_results(config.report, results, rows=rows, picture=picture)
    logger.info("results in %s", config.report)


def evaluate_warm_start(config: PenaltyBenchConfig) -> None:
    """The model before GRPO, and the same model with its thinking cut off."""
    _evaluate(config, config.model, "warm_start")
    cut = {"stated_budget": max(BUDGETS), "budgets": BUDGETS}
    _run_evaluation(config, config.model, "truncation", cut | _sizes(config))


def train_and_evaluate(config: PenaltyBenchConfig, method: str, seed: int) -> None:
    """One run, unless its results are there already."""
    name = f"{method}-{seed}"
    model = config.folder / name
    if not (model / MANIFEST).is_file():
        settings: dict[str, Any] = {
            "model": config.model,
            "corpus": config.corpus,
            **({"candidates": config.candidates} if config.candidates else {}),
            "out": model,
            "steps": config.steps,
            "learning_rate": config.learning_rate,
            **config.methods[method],
            "seed": seed,
        }
        _run(["train.grpo", f"@{config.grpo}"], settings, config.folder / f"{name}.log")
    _evaluate(config, model, name)


def _evaluate(config: PenaltyBenchConfig, model: Path, name: str) -> None:
    _run_evaluation(config, model, name, {"budgets": BUDGETS} | _sizes(config))
    stated = {"budgets": STATED, "thinking_limit": 192, "limit": config.obedience_cases}
    _run_evaluation(config, model, f"{name}.stated", stated)


def _sizes(config: PenaltyBenchConfig) -> dict[str, Any]:
    return {"limit": config.cases, "budget_limit": config.budget_cases}


def _run_evaluation(
    config: PenaltyBenchConfig, model: Path, name: str, settings: dict[str, Any]
) -> None:
    out = config.folder / f"{name}.json"
    if not out.is_file():
        common = {"model": model, "corpus": config.corpus / "test.jsonl", "out": out, "examples": 0}
        _run(["curt.evaluate"], common | settings, config.folder / f"{name}.eval.log")


def _run(module: Sequence[str], settings: dict[str, Any], log: Path) -> None:
    """Run a module with settings as its options."""
    command = [sys.executable, "-m", *module]
    for key, value in settings.items():
        text = json.dumps(value) if isinstance(value, dict | list | bool) else str(value)
        command += [f"--{key}", text]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("ab") as file:
        done = subprocess.run(command, stdout=file, stderr=file, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(module)} failed: see {log}")


def collect(config: PenaltyBenchConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All figures of finished runs, and a row for every case of every run."""
    warm = _read(config.folder / "warm_start.json")
    cut = _read(config.folder / "truncation.json")
    summary = {
        "warm_start": {
            **summarise_method([warm], None),
            "obedience": obedience_rows([_read(config.folder / "warm_start.stated.json")]),
        },
        "truncation": summarise_method([cut], warm),
    }
    runs = {"warm_start": warm, "truncation": cut}
    for method in config.methods:
        names = [f"{method}-{seed}" for seed in config.seeds]
        evaluations = [_read(config.folder / f"{name}.json") for name in names]
        stated = [_read(config.folder / f"{name}.stated.json") for name in names]
        summary[method] = {
            **summarise_method(evaluations, warm),
            "obedience": obedience_rows(stated),
        }
        runs |= dict(zip(names, evaluations, strict=True))
    summary["default"] = {**summary[config.default], "method": config.default}
    settings = config.model_dump(mode="json", exclude={"folder", "report"})
    told = {name: _in_short(evaluation) for name, evaluation in runs.items()}
    rows = [
        {"run": name, "case": case, "exact": int(exact), "thinking_tokens": tokens}
        for name, each in runs.items()
        for case, (exact, tokens) in enumerate(
            zip(each["exact_cases"], each["thinking_lengths"], strict=True)
        )
    ]
    return {"settings": settings, "summary": summary, "runs": told}, rows


def _read(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(path.read_bytes())
    return report


def _in_short(evaluation: dict[str, Any]) -> dict[str, Any]:
    """A run without its rows."""
    kept = ("budget", "n", "exact", "mean_thinking", "p95_thinking")
    return {
        "n": evaluation["n"],
        "stated_budget": evaluation["stated_budget"],
        "by_budget": [{key: row[key] for key in kept} for row in evaluation["by_budget"]],
    }


def area_under_curve(accuracy_at_budget: Mapping[int, float]) -> float:
    """Mean accuracy over the logarithm of the budget: the trapezoid rule on log2(budget).

    1 means always right at every budget. Raises ValueError with fewer than two budgets above 0.
    """
    points = sorted((math.log2(b), a) for b, a in accuracy_at_budget.items() if b > 0)
    if len(points) < 2:
        raise ValueError(f"a curve over {len(points)} budgets: give at least two above 0")
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))
    return area / (points[-1][0] - points[0][0])


def summarise_method(
    runs: Sequence[Mapping[str, Any]], warm_start: Mapping[str, Any] | None
) -> dict[str, Any]:
    """One row of the summary from the evaluations of a method's seeds.

    Intervals resample cases of the mean over seeds; `*_range` spans the seeds themselves. The
    difference to the warm start is paired by case.
    """
    per_case = [fmean(flags) for flags in zip(*(r["exact_cases"] for r in runs), strict=True)]
    thinking = [
        fmean(tokens) for tokens in zip(*(r["thinking_lengths"] for r in runs), strict=True)
    ]
    curves = [{row["budget"]: row["exact"] for row in r["by_budget"]} for r in runs]
    areas = [area_under_curve(curve) for curve in curves]
    exact = [fmean(r["exact_cases"]) for r in runs]
    row: dict[str, Any] = {
        "seeds": len(runs),
        "n": len(per_case),
        "exact_accuracy": fmean(per_case),
        "exact_accuracy_interval": bootstrap_mean(per_case),
        "exact_accuracy_range": (min(exact), max(exact)),
        "thinking_tokens": fmean(thinking),
        "thinking_tokens_interval": bootstrap_mean(thinking),
        "term_score": fmean(r["scores"]["term_score_official"] for r in runs),
        "accuracy_at_budget": {b: fmean(c[b] for c in curves) for b in curves[0]},
        "area_under_curve": fmean(areas),
        "area_under_curve_range": (min(areas), max(areas)),
    }
    if warm_start is not None:
        base = warm_start["exact_cases"]
        change = [a - b for a, b in zip(per_case, base, strict=True)]
        row["exact_change"] = fmean(change)
        row["exact_change_interval"] = bootstrap_mean(change)
        row["thinking_change"] = fmean(thinking) / fmean(warm_start["thinking_lengths"]) - 1
    return row


def obedience_rows(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Realised tokens by stated budget, nothing enforced, over the evaluations of the seeds."""
    rows = []
    for same in zip(*(r["by_budget"] for r in runs), strict=True):
        rows.append(
            {
                "stated": same[0]["budget"],
                "mean": fmean(row["mean_thinking"] for row in same),
                "p95": max(row["p95_thinking"] for row in same),
                "within": fmean(row["within"] for row in same),
                "exact": fmean(row["exact"] for row in same),
            }
        )
    return rows


if __name__ == "__main__":
    run(PenaltyBenchConfig, work, expected=EXPECTED)
