"""Fit how likely a language model's verdict is right, given what the fallback classifier thinks.

    python -m compress.classifier.agreement --model artifacts/demo/ort-w8a8 \
        --dev artifacts/demo/corpus/dev.jsonl --fallback artifacts/demo/fallback

The model answers the development cases under several thinking budgets, so that cut thinking is
among the answers; probabilities and intervals fitted on them go into the classifier folder as
`agreement.json`. Cases, not answers, are split into folds: two answers to one case are no two
cases. Answers without a readable verdict are left out, since their reply is degraded anyway.

Where the two are in dispute (`curt.classifier.confidence.in_dispute`), the file also says who was
right, and whether a server is to believe the classifier there.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from compress.classifier.calibration import FOLDS, calibration_error, fit_platt
from compress.classifier.confidence import MIN_GROUP, coverage_row, fit_group, is_whole
from curt.artifact import MANIFEST
from curt.classifier.confidence import (
    COVERAGES,
    DEFAULT_COVERAGE,
    Agreement,
    AgreementGroup,
    Assessor,
    Disputes,
    around,
    coverage_index,
    in_dispute,
    logit_of,
    place_in,
    thought_evidence,
)
from curt.classifier.model import AGREEMENT, Classifier, Row, is_right, load_classifier
from curt.config import Config, run
from curt.corpus.store import read_cases
from curt.dialogue import parse_completion
from curt.evaluate import EvaluateConfig, EvaluatedCase, open_engine, run_budget
from curt.files import sha256, whole_folder, write_atomic, write_json
from curt.law.term_scale import legal_range, severity
from curt.law.verdict import Verdict
from curt.scores.metrics import is_exact

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
GROUPS = 6  # of answers, equally large, by the probability of their term
LEVEL = 0.05  # chance, at most, that the classifier is believed where it is no better


class AgreementConfig(Config):
    """Settings of `python -m compress.classifier.agreement`."""

    model: Path
    """Model folder whose answers are judged."""
    dev: Path
    """Case file that neither the model nor the classifier was trained on."""
    fallback: Path
    """Folder of the classifier; the fit is added to it."""
    budgets: tuple[int, ...] = (0, 8, 16, 24, 32, 64, 128)
    """Thinking budgets to state and enforce."""
    limit: int | None = None
    """Use only the first so many cases."""
    batch: int = 100
    """Sequences at once, where the engine batches."""
    threads: int = 1
    """Threads of the ONNX Runtime engine."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One readable answer: `case` tells answers to the same case."""

    case: int
    scores: Floats
    verdict: Verdict
    thought: tuple[float, float]  # `thought_evidence`
    truth: Verdict


def add_agreement(config: AgreementConfig) -> Row:
    """Fit on a model's answers and put the fit into the classifier folder; returns its figures.

    Raises ValueError when a folder can't be loaded, the classifier was made before there were
    probabilities, or there are too few readable answers.
    """
    classifier = load_classifier(config.fallback)
    by_budget = {
        budget: answer_cases(config, classifier, budget) for budget in sorted(config.budgets)
    }
    trials = [trial for answers in by_budget.values() for trial in answers]
    if classifier.assessor is None:
        raise ValueError(
            f"{config.fallback} has no probabilities: make it anew with `compress.classifier.train`"
        )
    if len(trials) < MIN_GROUP:
        raise ValueError(
            f"{len(trials)} readable answers of {config.model}: at least {MIN_GROUP} are needed"
        )
    digest = sha256(config.model / MANIFEST)
    disputes = count_disputes(classifier, by_budget[max(by_budget)])
    fit = fit_agreement(classifier.assessor, trials, config.model.name, digest).model_copy(
        update={"disputes": disputes}
    )
    row = {f"agreement_{k}": v for k, v in measure_folds(classifier.assessor, trials).items()}
    row |= {
        "agreement_disputes": disputes.cases,
        "agreement_disputes_classifier_nearer": disputes.classifier_nearer,
        "agreement_disputes_model_nearer": disputes.model_nearer,
        "agreement_disputes_overruled": float(disputes.is_overruled),
    }
    add_to_folder(config.fallback, classifier, fit, row)
    return row


def answer_cases(config: AgreementConfig, classifier: Classifier, budget: int) -> list[Trial]:
    """The model's readable answers under one budget, beside the classifier's scores."""
    cases = list(read_cases(config.dev, config.limit))
    if not cases:
        raise ValueError(f"{config.dev} holds no case")
    engine = open_engine(config.model, batch=config.batch, threads=config.threads)
    settings = EvaluateConfig(
        model=config.model, corpus=config.dev, out=config.fallback, batch=config.batch
    )
    return read_trials(run_budget(engine, cases, budget, settings), classifier)


def read_trials(outcomes: Sequence[EvaluatedCase], classifier: Classifier) -> list[Trial]:
    """The outcomes that hold a whole readable verdict."""
    trials = []
    for place, outcome in enumerate(outcomes):
        verdict = parse_completion(outcome.generation.text).verdict
        if isinstance(verdict, Verdict) and outcome.generation.finish == "stop":
            trials.append(
                Trial(
                    place,
                    classifier.score(outcome.case.fact),
                    verdict,
                    thought_evidence(
                        outcome.generation.thinking_cut, outcome.generation.thinking_tokens
                    ),
                    outcome.case.verdict,
                )
            )
    return trials


def fit_agreement(
    assessor: Assessor, trials: Sequence[Trial], model: str, manifest_sha256: str
) -> Agreement:
    """Platt-scale the classifier's odds of each answer, and fit margins around its term."""
    odds = [assessor.odds_of(trial.scores, trial.verdict) for trial in trials]
    logits = np.array([[logit_of(charge), logit_of(term)] for charge, term in odds])
    thought = np.array([trial.thought for trial in trials])
    pairs = [(trial.verdict, trial.truth) for trial in trials]
    evidence = np.hstack([logits[:, 1:], thought])
    term = fit_platt(evidence, np.array([is_right("term", *pair) for pair in pairs]))
    sure = [term.confidence(tuple(map(float, row))) for row in evidence]
    edges = tuple(map(float, np.quantile(sure, np.arange(1, GROUPS) / GROUPS)))
    return Agreement(
        model=model,
        manifest_sha256=manifest_sha256,
        charge=fit_platt(
            np.hstack([logits[:, :1], thought]),
            np.array([is_right("charge", *pair) for pair in pairs]),
        ),
        term=term,
        verdict=fit_platt(
            np.hstack([logits, thought]), np.array([is_whole(*pair) for pair in pairs])
        ),
        edges=edges,
        groups=_fit_margins(trials, sure, edges),
    )


def count_disputes(classifier: Classifier, trials: Sequence[Trial]) -> Disputes:
    """Who was nearer the truth in each of these answers, one a case, that the classifier disputes.

    The model is overruled where a sign test, one-sided at `LEVEL`, finds the classifier better.
    Being nearer counts, not being right: courts differ by a month where they don't by a law.
    """
    read = [(trial, classifier.read(trial.scores).verdict) for trial in trials]
    disputes = [(trial, own) for trial, own in read if in_dispute(trial.verdict, own)]
    near = [(_nearness(t.verdict, t.truth), _nearness(own, t.truth)) for t, own in disputes]
    ours, theirs = sum(b > a for a, b in near), sum(a > b for a, b in near)
    chance = binomtest(ours, ours + theirs, alternative="greater").pvalue if ours else 1.0
    return Disputes(
        cases=len(disputes),
        model_nearer=theirs,
        classifier_nearer=ours,
        classifier_right=sum(is_exact(own, trial.truth) for trial, own in disputes),
        charge_right=sum(is_right("charge", own, trial.truth) for trial, own in disputes),
        term_right=sum(is_right("term", own, trial.truth) for trial, own in disputes),
        is_overruled=bool(chance < LEVEL),
    )


def _nearness(verdict: Verdict, truth: Verdict) -> tuple[bool, bool, float]:
    """Right charges count first, then right articles, then how near the term is in severity."""
    apart = abs(severity(verdict.term) - severity(truth.term))
    return (
        is_right("charge", verdict, truth),
        is_right("article", verdict, truth),
        -round(apart, 6),
    )


def _fit_margins(
    trials: Sequence[Trial], sure: Sequence[float], edges: Sequence[float]
) -> tuple[AgreementGroup, ...]:
    """Margins of each group of `Agreement`; a small group takes those of all answers."""

    def fit(members: Sequence[Trial]) -> AgreementGroup:
        places = [severity(trial.verdict.term) for trial in members]
        ranges = []
        for trial, place in zip(members, places, strict=True):
            low, high = legal_range(trial.verdict.charges)
            ranges.append((min(low, place), max(high, place)))
        spreads = [[(place, place)] * len(COVERAGES) for place in places]
        return fit_group(spreads, ranges, [severity(trial.truth.term) for trial in members])

    members: list[list[Trial]] = [[] for _ in range(len(edges) + 1)]
    for trial, p in zip(trials, sure, strict=True):
        members[place_in(edges, p)].append(trial)
    return tuple(fit(group if len(group) >= MIN_GROUP else trials) for group in members)


def measure_folds(assessor: Assessor, trials: Sequence[Trial]) -> Row:
    """Figures of `measure_agreement`, each case's answers judged by a fit without the case."""
    fits = []
    for fold in range(FOLDS):
        kept = [trial for trial in trials if trial.case % FOLDS != fold]
        fits.append(fit_agreement(assessor, kept, "", ""))
    return measure_agreement(assessor, trials, [fits[trial.case % FOLDS] for trial in trials])


def measure_agreement(
    assessor: Assessor, trials: Sequence[Trial], fits: Sequence[Agreement]
) -> Row:
    """Calibration errors, shares right, and how often the interval around the term holds."""
    place = coverage_index(COVERAGES, DEFAULT_COVERAGE)
    claims, right, intervals = [], [], []
    for trial, fit in zip(trials, fits, strict=True):
        odds = assessor.agree(trial.scores, trial.verdict, trial.thought, fit)
        pair = trial.verdict, trial.truth
        claims.append([odds.charge, odds.term, odds.verdict])
        right.append([is_right("charge", *pair), is_right("term", *pair), is_whole(*pair)])
        group = fit.group_of(odds.term)
        intervals.append(around(trial.verdict.term, trial.verdict.charges, group, place))
    told, were = np.array(claims), np.array(right)
    return {
        "answers": float(len(trials)),
        "thinking_cut": float(np.mean([trial.thought[0] for trial in trials])),
        **{
            f"{name}_{figure}": value
            for column, name in enumerate(("charge", "term", "verdict"))
            for figure, value in (
                ("right", float(were[:, column].mean())),
                ("ece", calibration_error(told[:, column], were[:, column])),
            )
        },
        **coverage_row(intervals, [trial.truth for trial in trials]),
    }


def add_to_folder(folder: Path, classifier: Classifier, fit: Agreement, row: Row) -> None:
    """Put a fit and its figures into a classifier's folder, whole or not at all."""
    assert classifier.manifest is not None
    with whole_folder(folder) as temporary:
        for name in classifier.manifest.files:
            if name != AGREEMENT:
                shutil.copyfile(folder / name, temporary / name)
        write_atomic(temporary / AGREEMENT, fit.model_dump_json(indent=1))
        kept = {
            name: value
            for name, value in classifier.manifest.evaluation.items()
            if not name.startswith("agreement_")
        }
        files = classifier.manifest.files | {AGREEMENT: sha256(temporary / AGREEMENT)}
        manifest = classifier.manifest.model_copy(update={"evaluation": kept | row, "files": files})
        write_json(temporary / MANIFEST, manifest.model_dump())
        load_classifier(temporary)


def work(config: AgreementConfig) -> None:
    """Answer, fit and write as the configuration says."""
    log.info("%s", json.dumps(add_agreement(config), indent=1))


if __name__ == "__main__":
    run(AgreementConfig, work)
