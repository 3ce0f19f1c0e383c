"""Length penalties side by side, and what is cheaper: same warm start, same seeds, same compute.

    python -m benchmarks.penalties @configs/demo/bench-penalties.toml

Trains and evaluates every method with every seed, then writes `benchmarks/results/penalties.json`,
raw rows and a plot beside it. Settings are chosen with the first seed on the dev cases, and so is
the winner, over all seeds; test cases are read once, by what was chosen. What is already made is
kept: stop with Ctrl-C at any time and run it again.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from benchmarks.run import EXPECTED, write_results
from curt.artifact import MANIFEST, load_manifest
from curt.config import Config, run
from curt.files import sha256, write_json
from curt.scores.statistics import bootstrap_mean

logger = logging.getLogger(__name__)

BUDGETS = [8, 16, 32, 64, 128]  # of the area under the curve; answering at once is a rival beside
UNTRAINED = ("warm_start", "truncation", "smaller_budget")
CLASSIFIER = "classifier"
MADE_OF = "made-of.json"


class PenaltyBenchConfig(Config):
    """What to compare and on what."""

    model: Path
    """Warm start that every run begins from."""
    corpus: Path
    """Folder with train.jsonl, dev.jsonl and test.jsonl."""
    candidates: Path | None = None
    """Cross-fitted candidates of the training cases."""
    grpo: Path
    """GRPO settings shared by all penalties."""
    methods: dict[str, dict[str, Any]]
    """Name of a penalty to the GRPO settings that it changes."""
    baselines: dict[str, list[dict[str, Any]]] = {}
    """Name of another method to its settings and their `module`, once or oftener to choose from."""
    default: str
    """The method that `grpo` has; it gets a row of its own in the summary."""
    steps: int
    learning_rate: float
    tolerance: float = 0.01
    """The budget stated in place of the widest is the smallest that costs no more accuracy."""
    seeds: list[int] = [7, 8, 9]
    jobs: int = 2
    """Runs at once, one thread each: on small models that beats one run with all threads."""
    cases: int = 500
    """Cases under the widest budget."""
    budget_cases: int = 250
    """Cases under each smaller budget, and of the area under the curve."""
    folder: Path = Path("artifacts/bench/penalties")
    """Where runs and evaluations are kept."""
    report: Path = Path("benchmarks/results/penalties.json")
    """File of results; raw rows and a picture go beside it."""


def work(config: PenaltyBenchConfig) -> None:
    """Train and evaluate what is missing, then summarise.

    Raises RuntimeError when a run fails, naming its log; ValueError where what is kept was made of
    another model, corpus or settings.
    """
    from benchmarks.pictures import draw_penalties

    config.folder.mkdir(parents=True, exist_ok=True)
    load_manifest(config.model, expect="hf")
    splits = {split: sha256(config.corpus / f"{split}.jsonl") for split in ("train", "dev", "test")}
    shared = {
        "model": sha256(config.model / MANIFEST),
        "grpo": sha256(config.grpo),
        "candidates": sha256(config.candidates) if config.candidates else None,
        **config.model_dump(mode="json", include={"cases", "budget_cases", "tolerance"}),
    }
    if any(config.folder.iterdir()) and not (config.folder / MADE_OF).is_file():
        raise ValueError(f"{config.folder} holds runs and no {MADE_OF}: delete it, or give another")
    _expect(config.folder / MADE_OF, shared | splits)
    methods = [*config.methods, *config.baselines]
    first = config.seeds[0]
    jobs = [partial(evaluate_untrained, config)]
    for method in methods:
        numbers = range(len(alternatives(config, method)))
        jobs += [partial(train_and_evaluate, config, method, n, first, "dev") for n in numbers]
    _run_all(jobs, config.jobs, "choosing on dev")
    chosen = {method: choose(config, method) for method in methods}
    _run_all(
        [
            partial(train_and_evaluate, config, method, chosen[method], seed, "dev", "test")
            for seed in config.seeds
            for method in methods
        ],
        config.jobs,
        "all seeds",
    )
    results, rows = collect(config, chosen)
    picture = draw_penalties(results["summary"])
    write_results(config.report, results, rows=rows, picture=picture)
    logger.info("winner: %s; results in %s", results["summary"]["winner"]["method"], config.report)


def _expect(file: Path, made_of: dict[str, Any]) -> None:
    """Note what a folder's runs are made of; ValueError where they were made of something else."""
    before = json.loads(file.read_bytes()) if file.is_file() else made_of
    if other := sorted(
        k for k in made_of.keys() | before.keys() if before.get(k) != made_of.get(k)
    ):
        raise ValueError(
            f"{file} says that what is there was made with other {', '.join(other)}: delete it "
            "with what it made, or give another folder"
        )
    write_json(file, made_of)


def _run_all(jobs: Sequence[Callable[[], None]], at_once: int, description: str) -> None:
    with (
        tqdm(total=len(jobs), desc=description, unit="run") as bar,
        ThreadPoolExecutor(at_once) as pool,
    ):
        waiting = [pool.submit(job) for job in jobs]
        try:
            for job in waiting:
                job.result()
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def evaluate_untrained(config: PenaltyBenchConfig) -> None:
    """The warm start, the same with its thinking cut off, and told a smaller budget than it has."""
    for split in ("dev", "test"):
        _evaluate(config, config.model, "warm_start", split, budgets=[0, *BUDGETS])
        _evaluate(config, config.model, "truncation", split, stated_budget=max(BUDGETS))
        budgets = [b for b in [0, *BUDGETS] if b <= smaller_budget(config)]
        _evaluate(config, config.model, "smaller_budget", split, budgets=budgets)


def smaller_budget(config: PenaltyBenchConfig) -> int:
    """The smallest budget under which the warm start loses no more than `tolerance` on dev."""
    rows = _read(config, "warm_start", "dev")["by_budget"]
    least = max(row["exact"] for row in rows) - config.tolerance
    return int(min(row["budget"] for row in rows if row["exact"] >= least))


def alternatives(config: PenaltyBenchConfig, method: str) -> list[dict[str, Any]]:
    """The settings of a method to choose from; a penalty has one."""
    shared = {"steps": config.steps, "learning_rate": config.learning_rate}
    return config.baselines.get(method) or [shared | config.methods[method]]


def choose(config: PenaltyBenchConfig, method: str) -> int:
    """Which of a method's settings have the largest area under the curve on dev."""
    names = [run_name(method, n, config.seeds[0]) for n in range(len(alternatives(config, method)))]
    areas = [mean_area([_read(config, name, "dev")]) for name in names]
    return areas.index(max(areas))


def run_name(method: str, number: int, seed: int) -> str:
    """Name of the run of a method's settings with a seed."""
    return f"{method}-{seed}" if number == 0 else f"{method}.{number}-{seed}"


def train_and_evaluate(
    config: PenaltyBenchConfig, method: str, number: int, seed: int, *splits: str
) -> None:
    """One run and its evaluations, unless they are there already."""
    name = run_name(method, number, seed)
    model = config.folder / name
    _expect(config.folder / f"{name}.made-of.json", alternatives(config, method)[number])
    if not (model / MANIFEST).is_file():
        settings: dict[str, Any] = {
            "model": config.model,
            "corpus": config.corpus,
            **({"candidates": config.candidates} if config.candidates else {}),
            "out": model,
            "seed": seed,
            **alternatives(config, method)[number],
        }
        module = settings.pop("module", None)
        command = [module] if module else ["train.grpo", f"@{config.grpo}"]
        _run(command, settings, config.folder / f"{name}.log")
    for split in splits:
        _evaluate(config, model, name, split)


def _evaluate(
    config: PenaltyBenchConfig, model: Path, name: str, split: str, **changes: Any
) -> None:
    out = config.folder / f"{name}.{split}.json"
    if not out.is_file():
        settings = {
            "model": model,
            "corpus": config.corpus / f"{split}.jsonl",
            "out": out,
            "examples": 0,
            "budgets": BUDGETS,
            "limit": config.cases,
            "budget_limit": config.budget_cases,
            **changes,
        }
        _run(["curt.evaluate"], settings, config.folder / f"{name}.eval.log")


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


def collect(
    config: PenaltyBenchConfig, chosen: Mapping[str, int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All figures of finished runs, and a row for every test case of every run."""
    names = {name: [name] for name in UNTRAINED} | {
        method: [run_name(method, number, seed) for seed in config.seeds]
        for method, number in chosen.items()
    }
    if _read(config, "warm_start", "test").get(CLASSIFIER):
        names[CLASSIFIER] = [CLASSIFIER]
    dev, test = (
        {method: [_read(config, name, split) for name in own] for method, own in names.items()}
        for split in ("dev", "test")
    )
    told = {m: alternatives(config, m)[number] for m, number in chosen.items()}
    told["smaller_budget"] = {"budget": smaller_budget(config)}
    summary: dict[str, Any] = {
        method: {
            "kind": "rl" if method in config.methods else "baseline",
            "chosen": told.get(method, {}),
            "dev_area_under_curve": mean_area(dev[method]),
            **summarise_method(runs, test["warm_start"], test[config.default]),
        }
        for method, runs in test.items()
    }
    winner = max(summary, key=lambda method: summary[method]["dev_area_under_curve"])
    best = max(config.methods, key=lambda method: summary[method]["dev_area_under_curve"])
    rivals = [method for method, row in summary.items() if row["kind"] == "baseline"]
    best_rl = {"method": best, "against": {m: _compare(test[best], test[m]) for m in rivals}}
    summary["default"] = {**summary[config.default], "method": config.default}
    summary["winner"] = {**summary[winner], "method": winner}
    rows = [
        {"run": name, "case": case, "exact": int(exact), "thinking_tokens": tokens}
        for method, own in names.items()
        for name, each in zip(own, test[method], strict=True)
        for case, (exact, tokens) in enumerate(
            zip(each["exact_cases"], each["thinking_lengths"], strict=True)
        )
    ]
    settings = config.model_dump(mode="json", exclude={"folder", "report"})
    return {"settings": settings, "summary": summary, "best_rl": best_rl}, rows


def _read(config: PenaltyBenchConfig, name: str, split: str) -> dict[str, Any]:
    """An evaluation; wider budgets than were stated to it change nothing.

    The classifier alone thinks nothing and answers the same under every budget.
    """
    source = "warm_start" if name == CLASSIFIER else name
    report: dict[str, Any] = json.loads((config.folder / f"{source}.{split}.json").read_bytes())
    rows = report["by_budget"]
    if name == CLASSIFIER:
        alone = report[CLASSIFIER]["exact_cases"]
        some = alone[: len(rows[-1]["exact_cases"])]
        same = {"exact": fmean(some), "exact_cases": some, "within": 1.0}
        same["within_cases"] = [True] * len(some)
        rows = report["by_budget"] = [{"budget": min(BUDGETS), **same}]
        report |= report[CLASSIFIER] | {"thinking_lengths": [0] * len(alone)}
    rows += [{**rows[-1], "budget": b} for b in BUDGETS if b > rows[-1]["budget"]]
    return report


def area_under_curve(accuracy_at_budget: Mapping[int, float]) -> float:
    """Mean accuracy over the logarithm of the budget: the trapezoid rule on log2(budget).

    1 means always right at every budget. Raises ValueError with fewer than two budgets above 0.
    """
    points = sorted((math.log2(b), a) for b, a in accuracy_at_budget.items() if b > 0)
    if len(points) < 2:
        raise ValueError(f"a curve over {len(points)} budgets: give at least two above 0")
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))
    return area / (points[-1][0] - points[0][0])


def mean_area(runs: Sequence[Mapping[str, Any]]) -> float:
    """Mean area under the curves of a method's seeds."""
    return fmean(area_under_curve({r["budget"]: r["exact"] for r in e["by_budget"]}) for e in runs)


def summarise_method(
    runs: Sequence[Mapping[str, Any]],
    warm_start: Sequence[Mapping[str, Any]],
    default: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """One row of the summary from the evaluations of a method's seeds.

    Intervals resample cases of the mean over seeds; `*_range` spans the seeds themselves. `kept` is
    the share of answers that ended within the stated budget by themselves, and `kept_area` the area
    in which no others count as right. Differences to the warm
    start, and under `to_default` to the default penalty, are paired by case.
    """
    exact, areas = _by_case(runs, "exact_cases"), _areas_by_case(runs)
    thinking = _by_case(runs, "thinking_lengths")
    by_seed = [fmean(r["exact_cases"]) for r in runs]
    rows = list(zip(*(r["by_budget"] for r in runs), strict=True))
    return {
        "seeds": len(runs),
        "n": len(exact),
        "exact_accuracy": fmean(exact),
        "exact_accuracy_interval": bootstrap_mean(exact),
        "exact_accuracy_range": (min(by_seed), max(by_seed)),
        "thinking_tokens": fmean(thinking),
        "thinking_tokens_interval": bootstrap_mean(thinking),
        "term_score": fmean(r["scores"]["term_score_official"] for r in runs),
        "accuracy_at_budget": {own[0]["budget"]: fmean(r["exact"] for r in own) for own in rows},
        "kept": {own[0]["budget"]: fmean(r["within"] for r in own) for own in rows},
        "area_under_curve": fmean(areas),
        "area_under_curve_interval": bootstrap_mean(areas),
        "kept_area": fmean(_areas_by_case(runs, kept=True)),
        **_compare(runs, warm_start),
        "to_default": _compare(runs, default),
    }


def _compare(
    runs: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Paired changes from the seeds' mean of `others`, case by case."""
    row: dict[str, Any] = {}
    for name, values_of in (
        ("exact", partial(_by_case, key="exact_cases")),
        ("area", _areas_by_case),
        ("thinking_tokens", partial(_by_case, key="thinking_lengths")),
    ):
        changes = [a - b for a, b in zip(values_of(runs), values_of(others), strict=True)]
        row[f"{name}_change"] = fmean(changes)
        row[f"{name}_change_interval"] = bootstrap_mean(changes)
    return row


def _by_case(runs: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """The mean over seeds for each case."""
    return [fmean(values) for values in zip(*(r[key] for r in runs), strict=True)]


def _areas_by_case(runs: Sequence[Mapping[str, Any]], *, kept: bool = False) -> list[float]:
    """The area under the curve of each case, over its verdicts under every budget.

    With `kept` a right verdict counts where the thinking before it ended by itself in the budget.
    """
    areas = []
    for run_ in runs:
        rows = run_["by_budget"]
        columns = [
            [right and (ended or not kept) for right, ended in zip(*own, strict=True)]
            for own in ((row["exact_cases"], row["within_cases"]) for row in rows)
        ]
        flags = zip(*columns, strict=True)
        budgets = [row["budget"] for row in rows]
        areas.append([area_under_curve(dict(zip(budgets, own, strict=True))) for own in flags])
    return [fmean(values) for values in zip(*areas, strict=True)]


if __name__ == "__main__":
    run(PenaltyBenchConfig, work, expected=EXPECTED)
