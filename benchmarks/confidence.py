"""How honest the uncertainty in a reply is: calibration, interval coverage, risk of abstention.

    python -m benchmarks.confidence --model artifacts/demo/ort-w8a8 \
        --fallback artifacts/demo/fallback --test artifacts/demo/corpus/test.jsonl \
        --real_fallback FOLDER --real_test real/test.jsonl

The fallback folder must hold the model's `agreement.json`. The real folder, a classifier trained on
real cases, is optional. Intervals of shares are Wilson's; those of calibration errors resample
cases, and such an error is never 0 on a finite sample even of a perfect forecaster.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.confidence_plot import draw_confidence
from compress.fallback_agreement import (
    AgreementConfig,
    Trial,
    answer_cases,
    measure_agreement,
)
from compress.fallback_calibration import calibration_error, reliability_bins
from compress.fallback_confidence import TOP_K, coverage_row, is_whole
from curt.artifact import MANIFEST
from curt.config import Config, load_config
from curt.corpus.store import read_cases
from curt.engines.confidence import Agreement, Assessor
from curt.engines.fallback import Fallback, load_fallback
from curt.files import sha256, write_atomic, write_json
from curt.logs import configure_logging
from curt.report.claims import wilson
from curt.schema import Case
from serve.confidence import ConfidenceReader

Doubles = npt.NDArray[np.float64]

RESAMPLES = 1000
THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)


class ConfidenceConfig(Config):
    """What to measure on what."""

    model: Path
    """Model folder whose verdicts are judged."""
    fallback: Path
    """Classifier folder with that model's agreement."""
    test: Path
    """Case file that nothing was fitted on."""
    real_fallback: Path | None = None
    """Classifier folder trained on real cases."""
    real_test: Path | None = None
    """Real cases held out from it."""
    budgets: tuple[int, ...] = (0, 8, 16, 24, 32, 64, 128)
    """Thinking budgets of the model's answers."""
    limit: int | None = None
    """Use only the first so many cases."""
    report: Path = Path("benchmarks/confidence.json")
    """File of results."""
    figure: Path = Path("benchmarks/confidence.png")
    """Picture of them."""


def main(argv: list[str] | None = None) -> None:
    """Measure, write and draw; exits with a message on bad input."""
    config = load_config(ConfidenceConfig, argv)
    configure_logging()
    try:
        results = measure(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    write_json(config.report, results)
    write_atomic(config.figure, draw_confidence(results))
    logging.getLogger(__name__).info("%s and %s are ready", config.report, config.figure)


def measure(config: ConfidenceConfig) -> dict[str, Any]:
    """Every figure. Raises ValueError when the folder holds no agreement for the model."""
    fallback = load_fallback(config.fallback)
    digest = sha256(config.model / MANIFEST)
    if fallback.agreement is None or fallback.agreement.manifest_sha256 != digest:
        raise ValueError(
            f"{config.fallback} does not judge {config.model}: "
            "run `python -m compress.fallback_agreement` first"
        )
    cases = list(read_cases(config.test, config.limit))
    asking = AgreementConfig(
        model=config.model, dev=config.test, fallback=config.fallback, limit=config.limit
    )
    answers = {budget: answer_cases(asking, fallback, budget) for budget in config.budgets}
    results = {
        "model": config.model.name,
        "classifier": {"demo": measure_classifier(fallback, cases)},
        "model_verdicts": measure_verdicts(fallback, fallback.agreement, answers),
        "assess_ms": time_assess(fallback, answers[max(answers)], cases),
    }
    if config.real_fallback and config.real_test:
        real = list(read_cases(config.real_test, config.limit))
        results["classifier"]["real"] = measure_classifier(
            load_fallback(config.real_fallback), real
        )
    return results


def measure_classifier(fallback: Fallback, cases: Sequence[Case]) -> dict[str, Any]:
    """Calibration of charge probabilities and coverage of intervals at every fitted coverage."""
    reader = _reader(fallback)
    truths = [case.verdict for case in cases]
    scores = [fallback.score(case.fact) for case in cases]
    tops = [reader.top_charges(row, TOP_K) for row in scores]
    sure = np.array([[p for _, p in top] for top in tops])  # (cases, top k)
    right = np.array(
        [
            [charge in truth.charges for charge, _ in top]
            for top, truth in zip(tops, truths, strict=True)
        ]
    )
    charges = [fallback.read(row).verdict.charges for row in scores]
    groups: dict[str, list[bool]] = defaultdict(list)
    by_coverage = []
    for coverage in reader.fit.coverages:
        intervals = [
            reader.interval(row, names, coverage)
            for row, names in zip(scores, charges, strict=True)
        ]
        by_coverage.append(coverage_row(intervals, truths) | {"interval_stated": coverage})
        if coverage == 0.8:
            for row, interval, truth in zip(scores, intervals, truths, strict=True):
                name = reader.group_name(row)
                groups[name or "others"].append(interval.contains(truth.term))
    return {
        "cases": len(cases),
        "top1_right": float(right[:, 0].mean()),
        "charge_top1_ece": _with_interval(sure[:, :1], right[:, :1]),
        "charge_top_ece": _with_interval(sure, right),
        "reliability": reliability_bins(sure.ravel(), right.ravel()),
        "intervals": by_coverage,
        "calibrated_on": {name or "others": g.cases for name, g in reader.fit.groups.items()},
        "coverage_at_80_by_charge": {name: _share(inside) for name, inside in groups.items()},
    }


def measure_verdicts(
    fallback: Fallback, fit: Agreement, answers: dict[int, list[Trial]]
) -> dict[str, Any]:
    """How well the model's verdicts are judged, and what abstention buys, by thinking budget."""
    reader = _reader(fallback)
    every = [trial for trials in answers.values() for trial in trials]
    rows = {"all": every} | {str(budget): trials for budget, trials in answers.items()}
    return {name: _judge(reader, fit, trials) for name, trials in rows.items() if trials}


def _judge(reader: Assessor, fit: Agreement, trials: Sequence[Trial]) -> dict[str, Any]:
    sure = np.array([reader.agree(t.scores, t.verdict, t.thought, fit).verdict for t in trials])
    right = np.array([is_whole(t.verdict, t.truth) for t in trials])
    exact = np.array([t.verdict.term == t.truth.term for t in trials])
    order = np.argsort(-sure, kind="stable")
    risk = np.cumsum(~right[order]) / np.arange(1, len(right) + 1)
    best = np.cumsum(np.sort(~right)) / np.arange(1, len(right) + 1)
    return {
        "figures": measure_agreement(reader, trials, [fit] * len(trials)),
        "same_term": float(exact.mean()),
        "verdict_ece": _with_interval(sure[:, None], right[:, None]),
        "reliability": reliability_bins(sure, right),
        "area_under_risk": float(risk.mean()),
        "area_under_risk_at_random": float((~right).mean()),
        "area_under_risk_at_best": float(best.mean()),
        "risk_curve": [
            {"answered": (i + 1) / len(right), "risk": float(risk[i]), "best": float(best[i])}
            for i in range(0, len(right), max(1, len(right) // 100))
        ],
        "thresholds": [
            {
                "abstain_below": threshold,
                "answered": float((sure >= threshold).mean()),
                "wrong_of_answered": _share(list(~right[sure >= threshold])),
                "wrong_of_abstained": _share(list(~right[sure < threshold])),
            }
            for threshold in THRESHOLDS
        ],
    }


def time_assess(
    fallback: Fallback, trials: Sequence[Trial], cases: Sequence[Case]
) -> dict[str, float]:
    """Milliseconds of `ConfidenceReader.assess` on one thread, the classifier's pass included."""
    assert fallback.agreement is not None
    reader = ConfidenceReader(fallback, model_manifest=fallback.agreement.manifest_sha256)
    times = []
    for trial in trials:
        started = time.perf_counter()
        reader.assess(cases[trial.case].fact, trial.verdict, bool(trial.thought[0]))
        times.append((time.perf_counter() - started) * 1e3)
    return {f"p{q}": float(np.percentile(times, q)) for q in (50, 95, 99)}


def _reader(fallback: Fallback) -> Assessor:
    if fallback.assessor is None:
        raise ValueError("a classifier without probabilities: make it again")
    return fallback.assessor


def _share(inside: Sequence[bool]) -> dict[str, float] | None:
    if not inside:
        return None
    share = float(np.mean(inside))
    low, high = wilson(share, len(inside))
    return {"n": len(inside), "share": share, "low": low, "high": high}


def _with_interval(sure: Doubles, right: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Calibration error of trials of shape (cases, trials a case), resampled by case."""
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(sure), len(sure))
        errors.append(calibration_error(sure[drawn].ravel(), right[drawn].ravel()))
    low, high = np.percentile(errors, [2.5, 97.5])
    error = calibration_error(sure.ravel(), right.ravel())
    return {"ece": error, "low": float(low), "high": float(high)}


if __name__ == "__main__":
    main()
