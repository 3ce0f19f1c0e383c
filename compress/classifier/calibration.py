"""How sure the fallback classifier's verdict is: Platt scaling, and how well it holds.

Every figure on the development cases is of folds: each case is scored by a fit without it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from curt.classifier.candidates import charge_shares
from curt.classifier.confidence import Calibration
from curt.classifier.model import PARTS, Decider, Labels, Part, Row, is_right
from curt.law.verdict import Verdict

Booleans = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]

FOLDS = 5
RELIABILITY_BINS = 10


def calibrate(labels: Labels, scores: Doubles, truths: Sequence[Verdict]) -> Labels:
    """The labels with all that is fitted on the scores of cases that were not trained on."""
    trials = _trials(labels, scores, truths)
    fitted = {part: fit_platt(evidence, right) for part, (evidence, right) in trials.items()}
    temperature = fit_charge_temperature(labels, scores, truths)
    return labels.model_copy(update={"calibration": fitted, "charge_temperature": temperature})


def fit_charge_temperature(labels: Labels, scores: Doubles, truths: Sequence[Verdict]) -> float:
    """The temperature at which the shares of the charges find the true ones likeliest."""
    place = {charge: column for column, charge in enumerate(labels.charges)}
    pairs = [(row, place[c]) for row, v in enumerate(truths) for c in v.charges if c in place]
    if not pairs:
        return 1.0
    rows, columns = np.array(pairs).T
    charges = scores[:, : len(place)]

    def surprise(temperature: float) -> float:
        shares = charge_shares(charges, temperature)[rows, columns]
        return -float(np.log(np.maximum(shares, 1e-12)).mean())

    return min(map(float, np.geomspace(0.02, 5.0, 80)), key=surprise)


def _trials(
    labels: Labels, scores: Doubles, truths: Sequence[Verdict]
) -> dict[Part, tuple[Doubles, Booleans]]:
    """For each part, the evidence (cases, scores) of the answers and whether they were right."""
    decider = Decider(labels)
    decisions = [decider.decide(row) for row in scores.astype(np.float32)]
    pairs = list(zip(decisions, truths, strict=True))
    return {
        part: (
            np.array([decision.evidence[part] for decision in decisions]),
            np.array([is_right(part, decision.verdict, truth) for decision, truth in pairs]),
        )
        for part in PARTS
    }


def fit_platt(evidence: Doubles, right: Booleans) -> Calibration:
    """Platt's logistic fit (1999), with his smoothed targets: all right never means certain.

    `evidence` has the shape (cases, scores), `right` (cases,).
    """
    from sklearn.linear_model import LogisticRegression

    hits = int(right.sum())
    misses = len(right) - hits
    targets = np.where(right, (hits + 1) / (hits + 2), 1 / (misses + 2))
    model = LogisticRegression(C=10.0, max_iter=1000).fit(
        np.concatenate([evidence, evidence]),
        np.repeat([True, False], len(right)),
        sample_weight=np.concatenate([targets, 1 - targets]),
    )
    return Calibration(weights=tuple(map(float, model.coef_[0])), bias=float(model.intercept_[0]))


def measure_reliability(
    labels: Labels, scores: Doubles, truths: Sequence[Verdict]
) -> dict[str, float]:
    """Expected calibration error of each part on dev, each case scored by a fit without it."""
    row = {}
    for part, (evidence, right) in _trials(labels, scores, truths).items():
        confidences = np.zeros(len(right))
        for fold in range(FOLDS):
            held = np.arange(len(right)) % FOLDS == fold
            fit = fit_platt(evidence[~held], right[~held])
            confidences[held] = [fit.confidence(tuple(e)) for e in evidence[held]]
        row[f"dev_{part}_ece"] = calibration_error(confidences, right)
    return row


def calibration_error(confidences: Doubles, right: Booleans) -> float:
    """Expected calibration error over ten equal bins (Naeini et al., 2015), in [0, 1]."""
    places = np.minimum((confidences * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    gaps = np.bincount(places, weights=confidences - right)
    return float(np.abs(gaps).sum() / len(right))


def reliability_bins(confidences: Doubles, right: Booleans) -> list[Row]:
    """What became of each tenth of the probabilities: cases, mean probability and share right."""
    places = np.minimum((confidences * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    return [
        {
            "low": place / RELIABILITY_BINS,
            "high": (place + 1) / RELIABILITY_BINS,
            "n": float((places == place).sum()),
            "mean_probability": float(confidences[places == place].mean()),
            "share_right": float(right[places == place].mean()),
        }
        for place in range(RELIABILITY_BINS)
        if (places == place).any()
    ]
