"""Fit what `curt.classifier.confidence` reads, on cases the classifier was not trained on.

One number is fitted on the same development cases as the conformal margins: the temperature of the
shares of terms. Strictly that breaks the exchangeability that the stated coverage rests on; with
one number to hundreds of cases it is not seen, and `measure_confidence` on a test set is the proof.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from compress.classifier.calibration import (
    FOLDS,
    Booleans,
    Doubles,
    calibration_error,
    fit_platt,
    reliability_bins,
)
from curt.classifier.confidence import (
    COVERAGES,
    DEFAULT_COVERAGE,
    POOL,
    AgreementGroup,
    Assessor,
    Calibration,
    Uncertainty,
    charge_evidence,
    logit_of,
)
from curt.classifier.model import Classifier, Decider, Labels, Row, is_right
from curt.corpus.case import Case
from curt.law.term_scale import TermInterval, legal_range, severity
from curt.law.verdict import CAPITAL_KINDS, Verdict
from curt.scores.statistics import wilson

Floats = npt.NDArray[np.float32]

MIN_GROUP = 40  # cases; fewer leave the coverage of a group to luck
TOP_K = 5  # charges a case whose probabilities are fitted and measured
CLIP_SPENDS = 0.25  # of the error that a coverage allows, terms outside the tiers may take so much
TEMPERATURES = np.geomspace(0.5, 5.0, 24)


def fit_uncertainty(
    labels: Labels, bin_width: float, scores: Doubles, truths: Sequence[Verdict]
) -> Uncertainty:
    """Fit charge probabilities, the confidence of the whole verdict and the conformal margins.

    `scores` has the shape (cases, columns), `labels` are calibrated.
    """
    charge = _fit_charges(labels, scores, truths)
    fit = Uncertainty(
        charge=charge,
        knots=_fit_knots(charge, *_charge_trials(labels, scores, truths)),
        verdict=_fit_verdict(labels, scores, truths),
        temperature=1.0,
        bin_width=bin_width,
        groups={},
    )
    fit = fit.model_copy(update={"temperature": _fit_temperature(labels, fit, scores, truths)})
    return fit.model_copy(update={"groups": _fit_groups(labels, fit, scores, truths)})


def make_assessor(labels: Labels, fit: Uncertainty) -> Assessor:
    """The reader of a fit beside its labels."""
    return Assessor(labels.charges, labels.terms, labels.term_columns.start, fit)


def _fit_charges(labels: Labels, scores: Doubles, truths: Sequence[Verdict]) -> Calibration:
    """Platt scaling whose weights are not below 0: a higher score is never less likely."""
    from scipy.optimize import minimize

    evidence, right = _charge_trials(labels, scores, truths)
    hits = int(right.sum())
    high, low = (hits + 1) / (hits + 2), 1 / (len(right) - hits + 2)  # Platt's targets
    targets = np.where(right, high, low)
    columns = np.column_stack([evidence, np.ones(len(right))])

    def loss(weights: Doubles) -> tuple[float, Doubles]:
        logits = columns @ weights
        value = np.logaddexp(0, logits) - targets * logits
        slope = columns.T @ (1 / (1 + np.exp(-np.clip(logits, -60, 60))) - targets)
        return float(value.sum()) + 1e-3 * float(weights @ weights), slope + 2e-3 * weights

    bounds = [(0, None), (0, None), (None, None)]
    found = minimize(loss, np.array([1.0, 1.0, 0.0]), jac=True, bounds=bounds).x
    return Calibration(weights=(float(found[0]), float(found[1])), bias=float(found[2]))


def _fit_knots(
    platt: Calibration, evidence: Doubles, right: Booleans
) -> tuple[tuple[float, float], ...]:
    """Isotonic regression of outcomes on Platt's logits: a knot at either end of each step.

    A step counts one hit and one miss more than it had (Laplace's rule of succession), so that
    one of hits alone is not certain.
    """
    from sklearn.isotonic import isotonic_regression

    logits = evidence @ np.array(platt.weights) + platt.bias
    order = np.argsort(logits, kind="stable")
    logits, outcomes = logits[order], right[order].astype(float)
    _, first, sizes = np.unique(
        isotonic_regression(outcomes), return_index=True, return_counts=True
    )
    hits = np.add.reduceat(outcomes, first)
    rising = np.maximum.accumulate((hits + 1) / (sizes + 2))
    ends = np.concatenate([first[1:], [len(logits)]]) - 1
    return tuple(
        (float(logits[place]), float(y))
        for start, end, y in zip(first, ends, rising, strict=True)
        for place in sorted({int(start), int(end)})
    )


def _charge_trials(
    labels: Labels, scores: Doubles, truths: Sequence[Verdict]
) -> tuple[Doubles, Booleans]:
    """Evidence of each case's `TOP_K` best charges (trials, 2), and whether they are in it."""
    rows, right = [], []
    for row, truth in zip(scores, truths, strict=True):
        own = row[: len(labels.charges)].astype(np.float32)
        order = np.argsort(-own, kind="stable")[:TOP_K]
        rows.append(charge_evidence(own)[order])
        right += [labels.charges[i] in truth.charges for i in order]
    return np.concatenate(rows), np.array(right)


def _fit_verdict(labels: Labels, scores: Doubles, truths: Sequence[Verdict]) -> Calibration:
    decider = Decider(labels)
    evidence, right = [], []
    for row, truth in zip(scores.astype(np.float32), truths, strict=True):
        decision = decider.decide(row)
        sure = [
            labels.calibration[part].confidence(decision.evidence[part])
            for part in ("charge", "term")
        ]
        evidence.append([logit_of(p) for p in sure])
        right.append(is_whole(decision.verdict, truth))
    return fit_platt(np.array(evidence), np.array(right))


def is_whole(answer: Verdict, truth: Verdict) -> bool:
    """Whether the charges are right and the term earns the full CAIL2018 score."""
    return is_right("charge", answer, truth) and is_right("term", answer, truth)


def _fit_temperature(
    labels: Labels, fit: Uncertainty, scores: Doubles, truths: Sequence[Verdict]
) -> float:
    """The temperature that gives the true terms, each with a bin around it, the most mass."""

    def surprise(temperature: float) -> float:
        reader = make_assessor(labels, fit.model_copy(update={"temperature": temperature}))
        total = 0.0
        for row, truth in zip(scores, truths, strict=True):
            place, half = severity(truth.term), fit.bin_width / 2
            ends = np.interp([place - half, place + half], reader.grid, reader.distribution(row))
            total -= math.log(float(ends[1] - ends[0]) + 1e-3)
        return total

    return float(min(TEMPERATURES, key=surprise))


def _fit_groups(
    labels: Labels, fit: Uncertainty, scores: Doubles, truths: Sequence[Verdict]
) -> dict[str, AgreementGroup]:
    """Margins of every charge predicted often enough, and of all the others together."""
    reader, decider = make_assessor(labels, fit), Decider(labels)
    members: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(scores):
        members[labels.charges[int(np.argmax(row[: len(labels.charges)]))]].append(place)
    groups = {name: places for name, places in members.items() if len(places) >= MIN_GROUP}
    rest = [place for name, places in members.items() if name not in groups for place in places]
    groups[POOL] = rest if len(rest) >= MIN_GROUP else list(range(len(scores)))
    ranges = [legal_range(decider.decide(row).verdict.charges) for row in scores.astype(np.float32)]
    spreads = [[reader.quantiles(row, coverage) for coverage in COVERAGES] for row in scores]
    return {
        name: fit_group(
            [spreads[i] for i in places],
            [ranges[i] for i in places],
            [severity(truths[i].term) for i in places],
        )
        for name, places in groups.items()
    }


def fit_group(
    spreads: Sequence[Sequence[tuple[float, float]]],
    ranges: Sequence[tuple[float, float]],
    truths: Sequence[float],
    coverages: Sequence[float] = COVERAGES,
) -> AgreementGroup:
    """Split-conformal margins of one group, all in severity.

    `spreads` holds an interval for each case and coverage, `ranges` the statutory span of each
    case's predicted charges. A truth outside its span is out of reach of any clipped interval.
    """
    outside = [
        not low - 1e-6 <= truth <= high + 1e-6
        for (low, high), truth in zip(ranges, truths, strict=True)
    ]
    margins: list[float | None] = []
    clips = []
    for place, coverage in enumerate(coverages):
        clip = sum(outside) <= CLIP_SPENDS * (1 - coverage) * len(truths)
        needed = [
            math.inf if clip and beyond else max(spread[place][0] - truth, truth - spread[place][1])
            for spread, truth, beyond in zip(spreads, truths, outside, strict=True)
        ]
        margins.append(conformal_quantile(needed, coverage))
        clips.append(clip)
    return AgreementGroup(cases=len(truths), clip=tuple(clips), margins=tuple(margins))


def conformal_quantile(needed: Sequence[float], coverage: float) -> float | None:
    """The ceil((n + 1) · coverage)-th smallest value, or None where n is too small for it."""
    rank = math.ceil((len(needed) + 1) * coverage - 1e-9)
    if rank > len(needed):
        return None
    value = sorted(needed)[rank - 1]
    return value if math.isfinite(value) else None


def measure_confidence(classifier: Classifier, cases: Sequence[Case]) -> tuple[Row, list[Row]]:
    """Calibration error of charge probabilities, coverage and width of intervals; and the bins."""
    scores = np.array([classifier.score(case.fact) for case in cases])
    assert classifier.assessor is not None
    readers = [classifier.assessor] * len(cases)
    return _measure(classifier.labels, readers, scores, [case.verdict for case in cases])


def measure_folds(
    labels: Labels, bin_width: float, scores: Doubles, truths: Sequence[Verdict]
) -> tuple[Row, list[Row]]:
    """The same on the development cases, each read by a fit without it."""
    folds = np.arange(len(truths)) % FOLDS
    readers = []
    for fold in range(FOLDS):
        kept = [truth for truth, place in zip(truths, folds, strict=True) if place != fold]
        fit = fit_uncertainty(labels, bin_width, scores[folds != fold], kept)
        readers.append(make_assessor(labels, fit))
    return _measure(labels, [readers[fold] for fold in folds], scores.astype(np.float32), truths)


def _measure(
    labels: Labels, readers: Sequence[Assessor], scores: Floats, truths: Sequence[Verdict]
) -> tuple[Row, list[Row]]:
    decider = Decider(labels)
    sure, right, intervals = [], [], []
    for reader, row, truth in zip(readers, scores, truths, strict=True):
        for charge, probability in reader.top_charges(row, TOP_K):
            sure.append(probability)
            right.append(charge in truth.charges)
        intervals.append(reader.interval(row, decider.decide(row).verdict.charges))
    each = min(TOP_K, len(labels.charges))
    probabilities, hits = np.array(sure), np.array(right)
    row = {
        "charge_top1_ece": calibration_error(probabilities[::each], hits[::each]),
        "charge_top_ece": calibration_error(probabilities, hits),
        **coverage_row(intervals, truths),
    }
    return row, reliability_bins(probabilities, hits)


def coverage_row(intervals: Sequence[TermInterval], truths: Iterable[Verdict]) -> Row:
    """Share of terms inside, with its 95% interval, and mean width in severity and months.

    The months are of intervals of counted terms alone, exemption being 0 of them.
    """
    inside = [i.contains(truth.term) for i, truth in zip(intervals, truths, strict=True)]
    counted = [
        i.high.months - i.low.months
        for i in intervals
        if not {i.high.kind, i.low.kind} & CAPITAL_KINDS
    ]
    low, high = wilson(float(np.mean(inside)), len(inside))
    return {
        "interval_stated": DEFAULT_COVERAGE,
        "interval_coverage": float(np.mean(inside)),
        "interval_coverage_low": low,
        "interval_coverage_high": high,
        "interval_width": float(np.mean([i.width for i in intervals])),
        "interval_width_months": float(np.mean(counted)) if counted else 0.0,
        "interval_width_months_median": float(np.median(counted)) if counted else 0.0,
    }
