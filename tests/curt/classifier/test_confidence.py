from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curt.classifier.confidence import (
    COVERAGES,
    POOL,
    Agreement,
    AgreementGroup,
    Assessor,
    Calibration,
    Uncertainty,
    around,
    coverage_index,
    logit_of,
    thought_evidence,
    widen,
)
from curt.law.term_scale import DEATH, TermInterval, severity
from curt.law.verdict import Term, Verdict

CHARGES = ("盗窃", "诈骗", "危险驾驶")
TERMS = (Term("exempt"), Term("detention", 4), Term("fixed", 12), Term("fixed", 120), Term("life"))
SCORES = st.lists(st.floats(-5, 5, width=32), min_size=8, max_size=8).map(
    lambda row: np.array(row, np.float32)
)
N = len(COVERAGES)


def group(margin: float | None = 0.0, clip: bool = False) -> AgreementGroup:
    return AgreementGroup(cases=100, clip=(clip,) * N, margins=(margin,) * N)


def assessor(**groups: AgreementGroup) -> Assessor:
    fit = Uncertainty(
        charge=Calibration(weights=(1.0, 2.0), bias=0.3),
        verdict=Calibration(weights=(1.0, 1.0), bias=0.0),
        temperature=1.0,
        bin_width=0.25,
        groups={POOL: group(), **groups},
    )
    return Assessor(CHARGES, TERMS, len(CHARGES), fit)


def scores(*row: float) -> np.ndarray:
    return np.array(row, np.float32)


@settings(deadline=None)
@given(SCORES)
def test_a_higher_score_never_gets_a_lower_probability(row):
    probabilities = assessor().charge_probabilities(row)
    order = np.argsort(row[:3])
    assert (np.diff(probabilities[order]) >= 0).all()
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


@settings(deadline=None)
@given(SCORES, st.integers(1, 9))
def test_top_charges_come_best_first_and_once(row, top_k):
    top = assessor().top_charges(row, top_k)
    assert len(top) == min(top_k, 3)
    assert len({name for name, _ in top}) == len(top)
    assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)


def test_no_charges_at_all_cannot_be_asked_for():
    with pytest.raises(ValueError, match="top_k of 0"):
        assessor().top_charges(scores(1, 0, 0, 0, 0, 0, 0, 0), 0)


def test_a_lone_charge_has_no_rival():
    lone = Assessor(("盗窃",), TERMS, 1, assessor().fit)
    assert 0.9 < lone.charge_probabilities(scores(0.5, 0, 0, 0, 0, 0))[0] <= 1


@settings(deadline=None)
@given(SCORES)
def test_the_distribution_of_terms_rises_from_nothing_to_one(row):
    rising = assessor().distribution(row)
    assert (np.diff(rising) >= -1e-12).all()
    assert rising[0] == pytest.approx(0)
    assert rising[-1] == pytest.approx(1)


@settings(deadline=None)
@given(SCORES)
def test_intervals_grow_with_the_stated_coverage(row):
    reader = assessor()
    found = [reader.quantiles(row, coverage) for coverage in COVERAGES]
    assert all(low >= after for (low, _), (after, _) in pairwise(found))
    assert all(high <= after for (_, high), (_, after) in pairwise(found))
    assert all(0 <= low <= high <= DEATH for low, high in found)


def test_an_interval_is_of_the_group_of_the_best_charge():
    reader = assessor(诈骗=group(margin=None))
    row = scores(1, 0, -1, -9, -9, 9, -9, -9)
    assert reader.group_name(row) == POOL
    narrow = reader.interval(row, ("盗窃",))
    assert narrow.contains(Term("fixed", 12))
    assert not narrow.contains(Term("fixed", 36))
    row[1] = 2
    assert reader.group_name(row) == "诈骗"
    assert reader.interval(row, ("盗窃",)) == TermInterval(Term("exempt"), Term("death"))


def test_life_can_be_the_end_of_an_interval():
    row = scores(1, 0, -1, -9, -9, -9, 5, 5)
    assert assessor().interval(row, ("盗窃",)).high == Term("life")


def test_an_interval_is_clipped_to_the_tiers_where_the_group_affords_it():
    wide = (severity(Term("exempt")), severity(Term("life")))
    assert widen(*wide, group(), 3, ("危险驾驶",)).high == Term("life")
    assert widen(*wide, group(clip=True), 3, ("危险驾驶",)) == TermInterval(
        Term("detention", 1), Term("fixed", 6)
    )


@settings(deadline=None)
@given(st.floats(0, DEATH), st.floats(0, 3), st.floats(-2, 2), st.sampled_from(CHARGES))
def test_any_margin_gives_an_ordered_interval(low, width, margin, charge):
    found = widen(low, min(DEATH, low + width), group(margin, clip=True), 0, (charge,))
    assert severity(found.low) <= severity(found.high)


def test_an_interval_around_a_term_holds_it_even_outside_the_tiers():
    found = around(Term("fixed", 120), ("危险驾驶",), group(0.1, clip=True), 3)
    assert found == TermInterval(Term("fixed", 6), Term("fixed", 120))
    inside = around(Term("fixed", 12), ("盗窃",), group(0.1, clip=True), 3)
    assert inside == TermInterval(Term("fixed", 11), Term("fixed", 13))


def test_a_coverage_between_two_fitted_ones_takes_the_greater():
    assert COVERAGES[coverage_index(COVERAGES, 0.75)] == 0.8
    assert COVERAGES[coverage_index(COVERAGES, 0.8)] == 0.8


@pytest.mark.parametrize("coverage", [0, -1, 0.96, 1, math.nan])
def test_a_coverage_that_was_not_fitted_is_refused(coverage):
    with pytest.raises(ValueError, match=r"use above 0 and up to 0\.95"):
        coverage_index(COVERAGES, coverage)


def test_logits_are_bounded():
    assert logit_of(0.5) == 0
    assert logit_of(0.0) == logit_of(1e-12) == -logit_of(1.0)


@settings(deadline=None)
@given(SCORES)
def test_the_likelier_term_has_the_better_odds(row):
    reader = assessor()
    likely = int(np.argmax(row[3:]))
    odds = [reader.odds_of(row, Verdict(("盗窃",), ("264",), term))[1] for term in TERMS]
    assert max(odds) == pytest.approx(odds[likely], abs=1e-6)
    assert sum(odds) <= 1 + 1e-6  # these terms are further apart than the full score reaches


def test_charges_are_judged_as_a_set():
    row = scores(4, 4, -4, 0, 0, 0, 0, 0)
    reader = assessor()

    def odds(*charges: str) -> float:
        return reader.odds_of(row, Verdict(charges, ("264",), Term("fixed", 12)))[0]

    assert odds("盗窃", "诈骗") > 0.9 > odds("盗窃")
    assert odds("放火") == 0.0  # no column
    assert odds("盗窃", "诈骗") == odds("诈骗", "盗窃")


def test_agreement_makes_a_verdict_likelier_and_cut_thinking_less_so():
    fit = Agreement(
        model="m",
        manifest_sha256="0" * 64,
        charge=Calibration(weights=(1.0, -9.0, 1.0), bias=0.0),
        term=Calibration(weights=(1.0, -9.0, 1.0), bias=0.0),
        verdict=Calibration(weights=(1.0, 1.0, -9.0, 1.0), bias=0.0),
        edges=(0.4, 0.8),
        groups=tuple(group(margin) for margin in (0.5, 0.3, 0.1)),
    )
    row = scores(3, -3, -3, -3, -3, 5, -3, -3)
    agreed = Verdict(("盗窃",), ("264",), Term("fixed", 12))
    apart = Verdict(("诈骗",), ("266",), Term("fixed", 120))
    reader, ended = assessor(), thought_evidence(False, 20)
    sure = reader.agree(row, agreed, ended, fit)
    cut = [reader.agree(row, agreed, thought_evidence(True, n), fit).verdict for n in (0, 8, 64)]
    assert cut == sorted(cut)
    assert sure.verdict > cut[-1]
    assert sure.verdict > reader.agree(row, apart, ended, fit).verdict
    assert sure.charge > reader.agree(row, apart, ended, fit).charge
    assert [fit.group_of(p).margins[0] for p in (0.1, 0.4, 0.9)] == [0.5, 0.3, 0.1]


def test_knots_mend_probabilities_and_keep_their_order():
    fit = assessor().fit.model_copy(update={"knots": ((-4.0, 0.1), (0.0, 0.2), (4.0, 0.9))})
    reader = Assessor(CHARGES, TERMS, len(CHARGES), fit)
    found = reader.charge_probabilities(scores(9, -9, 0, 0, 0, 0, 0, 0))
    assert found.tolist() == pytest.approx([0.9, 0.1, 0.1])
