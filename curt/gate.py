"""The promotion gate: may a new model take the place of the one that serves?

    python -m curt.gate --served eval/served.json --candidate eval/candidate.json

Reads two reports of `curt.evaluate --counterfactuals` on the same cases and writes its verdict into
the candidate's folder as gate.json; status 1 where it refuses. Nothing serves a folder that was
refused unless it is told to. A criterion that was not measured refuses too; one whose limit is null
is left out: `--limits '{"calibration": null}'`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from curt.artifact import GATE, MANIFEST
from curt.classifier.model import load_classifier
from curt.config import Config, run
from curt.corpus.augment.counterfactuals import MOVES, STAYS
from curt.files import sha256, write_json
from curt.report.inputs import Evaluation, read_part
from curt.scores.statistics import bootstrap_mean

logger = logging.getLogger(__name__)

Criterion = Literal["accuracy", "thinking", "invariance", "sensitivity", "charges", "calibration"]
Figures = dict[str, Any]

# What may be lost. Of the first four the loss is the far end of its 95% interval.
LIMITS: Mapping[Criterion, float] = {
    "accuracy": 0.03,  # exact verdicts, as a share of the cases
    "thinking": 0.1,  # tokens that are added, as a share of the served model's mean
    "invariance": 0.05,  # pairs of a case that hold, the mean share over the cases
    "sensitivity": 0.05,
    "charges": 0.2,  # exact verdicts of the worst charge with MIN_CHARGE_CASES or more
    "calibration": 0.03,  # error of stated probabilities that is added
}
MIN_CHARGE_CASES = 10


class GateConfig(Config):
    """What is compared, and by how much the candidate may be worse."""

    served: Path
    """Report of `curt.evaluate` on the model that serves now."""
    candidate: Path
    """Report on the model that is to take its place."""
    fallbacks: tuple[Path, Path] | None = None
    """Classifier folders with the fit of `compress.classifier.agreement` for each of the two."""
    limits: dict[Criterion, float | None] = {}
    """Other limits than the defaults; null leaves a criterion out."""


def main(config: GateConfig) -> int:
    """Judge and write the verdict into the candidate's folder; 1 where it is no."""
    served, candidate = (read_part(p, Evaluation) for p in (config.served, config.candidate))
    verdict = judge(served, candidate, config)
    if sha256(Path(candidate.model) / MANIFEST) != candidate.manifest_sha256:
        raise ValueError(f"{candidate.model} is not the model of {config.candidate}: evaluate it")
    write_json(Path(candidate.model) / GATE, verdict)
    said = f"refused for {', '.join(verdict['refused'])}" if verdict["refused"] else "may serve"
    logger.info("%s", json.dumps(verdict["criteria"], ensure_ascii=False, indent=1))
    logger.info("%s %s", candidate.model, said)
    return int(not verdict["passed"])


def judge(old: Evaluation, new: Evaluation, config: GateConfig) -> dict[str, Any]:
    """The verdict on the new model: every criterion with its figures, its `loss` and its `limit`.

    Raises ValueError where the two were not asked the same cases and pairs under the same budget.
    """
    if _asked(old) != _asked(new):
        reports = f"{config.served} and {config.candidate}"
        raise ValueError(f"{reports} differ in cases, budget or pairs: evaluate both alike")
    measured: Mapping[Criterion, Figures] = {
        "accuracy": _compare(old.exact_cases, new.exact_cases),
        "thinking": _compare(old.thinking_lengths, new.thinking_lengths, tokens=True),
        "invariance": _compare(_held(old, STAYS), _held(new, STAYS)),
        "sensitivity": _compare(_held(old, MOVES), _held(new, MOVES)),
        "charges": _worst_charge(old, new),
        "calibration": _calibration(old, new, config),
    }
    criteria = {}
    for name, limit in {**LIMITS, **config.limits}.items():
        loss = measured[name].get("loss")
        passed = limit is None or (loss is not None and loss <= limit)
        criteria[name] = {"passed": passed, "limit": limit, "loss": loss, **measured[name]}
    refused = [name for name, found in criteria.items() if not found["passed"]]
    manifests = {"manifest_sha256": new.manifest_sha256, "served_sha256": old.manifest_sha256}
    return {"passed": not refused, "refused": refused, **manifests, "criteria": criteria}


def _asked(one: Evaluation) -> tuple[object, ...]:
    return one.corpus_sha256, one.n, one.stated_budget, [*map(list, one.counterfactuals.cases)]


def _held(evaluation: Evaluation, kinds: Collection[str]) -> list[float]:
    """Of each case the share of its pairs that hold: those of one case fail together."""
    cases = ([case[k] for k in kinds if k in case] for case in evaluation.counterfactuals.cases)
    return [fmean(case) for case in cases if case]


def _compare(old: Sequence[float], new: Sequence[float], *, tokens: bool = False) -> Figures:
    """What may have been lost, by a bootstrap over cases; empty where nothing was measured."""
    if not old or len(old) != len(new):
        return {}
    low, high = bootstrap_mean([after - before for before, after in zip(old, new, strict=True)])
    loss = high / max(fmean(old), 1) if tokens else -low
    return {"loss": loss, "low": low, "high": high, "served": fmean(old), "candidate": fmean(new)}


def _worst_charge(old: Evaluation, new: Evaluation) -> Figures:
    falls: dict[str, list[int]] = {}
    for charge, before, after in zip(new.charges, old.exact_cases, new.exact_cases, strict=True):
        falls.setdefault(charge, []).append(before - after)
    means = {fmean(fall): name for name, fall in falls.items() if len(fall) >= MIN_CHARGE_CASES}
    return {"loss": max(means), "worst": means[max(means)]} if means else {}


def _calibration(old: Evaluation, new: Evaluation, config: GateConfig) -> Figures:
    """From the folds in which `compress.classifier.agreement` measured its fit to each model."""
    errors = []
    for evaluation, folder in zip((old, new), config.fallbacks or (), strict=False):
        classifier = load_classifier(folder)
        fit = classifier.agreement
        if fit and classifier.manifest and fit.manifest_sha256 == evaluation.manifest_sha256:
            errors.append(classifier.manifest.evaluation["agreement_verdict_ece"])
    if len(errors) < 2:
        return {}
    return {"loss": errors[1] - errors[0], "served": errors[0], "candidate": errors[1]}


if __name__ == "__main__":
    run(GateConfig, main)
