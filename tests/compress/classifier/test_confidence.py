from __future__ import annotations

import math
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.classifier.calibration import reliability_bins
from compress.classifier.confidence import (
    conformal_quantile,
    coverage_row,
    fit_group,
    fit_uncertainty,
    make_assessor,
    measure_confidence,
)
from compress.classifier.train import train_classifier
from curt.classifier.confidence import COVERAGES, POOL
from curt.classifier.model import Classifier, load_classifier
from curt.corpus.store import read_cases
from curt.law.term_scale import TermInterval
from curt.law.verdict import Term, Verdict
from tests.cases import common_cases
from tests.compress.classifier.test_train import write_splits


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    config = write_splits(tmp_path_factory.mktemp("confidence"), dev=300)
    train_classifier(config.model_copy(update={"test": config.dev}))
    return load_classifier(config.out)


def dev_scores(classifier: Classifier) -> tuple[np.ndarray, list[Verdict]]:
    cases = list(read_cases(Path(classifier.manifest.config["dev"])))
    return np.array([classifier.score(case.fact) for case in cases]), [c.verdict for c in cases]


def test_the_folder_holds_a_fit_and_the_manifest_its_figures(classifier):
    evaluation = classifier.manifest.evaluation
    for split in ("dev", "test"):
        assert 0 <= evaluation[f"{split}_charge_top1_ece"] < 0.1
        low, share, high = (
            evaluation[f"{split}_interval_coverage{end}"] for end in ("_low", "", "_high")
        )
        assert low <= share <= high
        assert low <= 0.8 + 0.05
        rows = classifier.manifest.reliability[split]
        assert sum(row["n"] for row in rows) == 5 * 300
    assert POOL in classifier.assessor.fit.groups


def test_intervals_cover_unseen_cases_as_stated(classifier):
    """300 cases to calibrate on leave the coverage of any one fit within about 5 points."""
    row, bins = measure_confidence(classifier, common_cases(1000, "unseen"))
    assert 0.72 <= row["interval_coverage"] <= 0.88
    assert row["charge_top_ece"] < 0.02
    assert 0 < row["interval_width"] < 2
    assert sum(b["n"] for b in bins) == 5000


def test_over_many_draws_of_development_cases_coverage_is_not_below_the_stated(classifier):
    cases = common_cases(900, "draws")
    scores = np.array([classifier.score(case.fact) for case in cases])
    truths = [case.verdict for case in cases]
    rng, inside = np.random.default_rng(3), []
    for _ in range(4):
        order = rng.permutation(len(cases))
        fit = fit_uncertainty(
            classifier.labels,
            0.25,
            scores[order[:200]].astype(float),
            [truths[i] for i in order[:200]],
        )
        reader = make_assessor(classifier.labels, fit)
        for i in order[200:600]:
            charges = classifier.read(scores[i]).verdict.charges
            inside.append(reader.interval(scores[i], charges).contains(truths[i].term))
    assert np.mean(inside) >= 0.76


def test_a_second_fit_is_the_same(classifier):
    scores, truths = dev_scores(classifier)
    fits = [fit_uncertainty(classifier.labels, 0.25, scores, truths) for _ in range(2)]
    assert fits[0] == fits[1]


def test_knots_rise_and_stay_short_of_certainty(classifier):
    knots = classifier.assessor.fit.knots
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(knots))
    assert 0 < knots[0][1] < 0.1
    assert 0.9 < knots[-1][1] < 1
    assert min(classifier.assessor.fit.charge.weights) >= 0


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60), st.sampled_from(COVERAGES))
def test_a_conformal_margin_covers_its_own_cases(needed, coverage):
    margin = conformal_quantile(needed, coverage)
    if margin is None:
        assert len(needed) < coverage / (1 - coverage) + 1e-9
    else:
        assert np.mean(np.array(needed) <= margin) >= coverage - 1e-9


def test_split_conformal_coverage_holds_on_average():
    """Over random splits of exchangeable scores coverage lies between 80% and 80% + 1/(n+1)."""
    rng = random.Random(4)
    hits = trials = 0
    for _ in range(400):
        scores = [rng.gauss(0, 1) for _ in range(39 + 25)]
        margin = conformal_quantile(scores[:39], 0.8)
        hits += sum(score <= margin for score in scores[39:])
        trials += 25
    assert 0.78 < hits / trials < 0.825


def test_too_few_cases_leave_the_whole_scale():
    group = fit_group([[(1.0, 2.0)] * 6] * 3, [(0.0, 9.0)] * 3, [1.5, 1.6, 1.7])
    assert group.margins[0] is not None
    assert group.margins[-1] is None


def test_clipping_stops_where_terms_outside_the_tiers_would_spend_the_error():
    spreads, ranges = [[(1.0, 2.0)] * 6] * 100, [(1.0, 2.0)] * 100
    inside = fit_group(spreads, ranges, [1.5] * 100)
    assert inside.clip == (True,) * 6
    some = fit_group(spreads, ranges, [1.5] * 97 + [3.0] * 3)
    assert some.clip == (True, True, True, True, False, False)
    assert all(margin is not None and math.isfinite(margin) for margin in some.margins)


def test_coverage_counts_terms_and_widths():
    months = TermInterval(Term("fixed", 6), Term("fixed", 12))
    severe = TermInterval(Term("fixed", 180), Term("death"))
    terms = [Term("fixed", 8), Term("fixed", 36), Term("life"), Term("exempt")]
    verdicts = [Verdict(("盗窃",), ("264",), term) for term in terms]
    row = coverage_row([months, months, severe, severe], verdicts)
    assert row["interval_coverage"] == 0.5
    assert row["interval_width_months"] == 6
    assert row["interval_coverage_low"] < 0.5 < row["interval_coverage_high"]


def test_reliability_bins_hold_every_case_once():
    rows = reliability_bins(np.array([0.05, 0.06, 1.0]), np.array([False, True, True]))
    assert [(row["low"], row["n"], row["share_right"]) for row in rows] == [
        (0.0, 2.0, 0.5),
        (0.9, 1.0, 1.0),
    ]
