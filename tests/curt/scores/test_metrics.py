from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.dialogue import ParseFailure
from curt.law.verdict import Term, Verdict
from curt.scores.metrics import (
    cail_term_score,
    judge_term_score,
    label_f1,
    lawbench_term_score,
    length_statistics,
    score_verdicts,
    set_f1,
)


def verdict(charge="盗窃", article="264", term=None, fine=0):
    return Verdict((charge,), (article,), term or Term("fixed", 12), fine)


def test_label_f1_of_a_small_example_worked_by_hand():
    # a: 1 hit, 1 extra -> 2/3; b: 1 hit, 1 missed -> 2/3; c: 1 missed -> 0; d: unseen -> 1
    predicted = [{"a"}, {"a", "b"}, set()]
    truth = [{"a"}, {"b"}, {"b", "c"}]
    f1 = label_f1(predicted, truth, ["a", "b", "c", "d"])
    assert f1.micro == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    assert f1.macro_official == pytest.approx((2 / 3 + 2 / 3 + 0 + 1) / 4)
    assert f1.macro_present == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert f1.score_official == pytest.approx((f1.micro + f1.macro_official) / 2 * 100)


def test_a_label_that_is_only_predicted_costs_the_official_macro():
    assert label_f1([{"a", "b"}], [{"a"}], ["a", "b"]).macro_official == 0.5
    assert label_f1([{"a", "b"}], [{"a"}], ["a", "b"]).macro_present == 1.0


def test_labels_outside_the_list_are_not_seen():
    assert label_f1([{"a", "x"}], [{"a", "y"}], ["a"]).micro == 1.0


@pytest.mark.parametrize(
    ("predicted", "truth", "score"),
    [
        (12, 12, 1.0),
        (15, 12, 0.8),  # ln 16/13 = .208
        (10, 12, 1.0),  # ln 13/11 = .167
        (20, 12, 0.6),  # ln 21/13 = .480
        (26, 12, 0.4),  # ln 27/13 = .731
        (34, 12, 0.2),  # ln 35/13 = .990
        (35, 12, 0.0),  # ln 36/13 = 1.019
    ],
)
def test_the_official_term_score_falls_in_steps(predicted, truth, score):
    assert cail_term_score(Term("fixed", predicted), Term("fixed", truth)) == score
    assert cail_term_score(Term("fixed", truth), Term("fixed", predicted)) == score


@pytest.mark.parametrize("scorer", [cail_term_score, lawbench_term_score, judge_term_score])
def test_death_and_life_must_be_met_exactly(scorer):
    for kind in ("death", "reprieve", "life"):
        assert scorer(Term(kind), Term(kind)) == 1
        assert scorer(Term("fixed", 300), Term(kind)) == 0
        assert scorer(Term(kind), Term("fixed", 300)) == 0
    assert scorer(Term("death"), Term("life")) == 0
    assert scorer(None, Term("fixed", 12)) == 0


def test_an_exemption_counts_no_months():
    assert cail_term_score(Term("exempt"), Term("exempt")) == 1
    assert cail_term_score(Term("detention", 1), Term("exempt")) == 0.4  # ln 2 = .693
    assert judge_term_score(Term("exempt"), Term("exempt")) == 1
    assert judge_term_score(Term("exempt"), Term("fixed", 6)) == 0


def test_ratio_and_log_scores_by_hand():
    assert judge_term_score(Term("fixed", 9), Term("fixed", 12)) == pytest.approx(0.75)
    expected = 1 - math.log(13 / 7) / math.log(216)
    assert lawbench_term_score(Term("fixed", 6), Term("fixed", 12)) == pytest.approx(expected)


@given(st.integers(1, 300), st.integers(1, 300))
def test_term_scores_are_bounded_symmetric_and_perfect_on_equal_terms(a, b):
    for scorer in (cail_term_score, lawbench_term_score, judge_term_score):
        score = scorer(Term("fixed", a), Term("fixed", b))
        assert 0 <= score <= 1
        assert score == scorer(Term("fixed", b), Term("fixed", a))
        assert scorer(Term("fixed", a), Term("fixed", a)) == 1


@given(st.sets(st.integers(0, 5)), st.sets(st.integers(0, 5)))
def test_set_f1_is_bounded_and_perfect_only_on_equal_sets(a, b):
    assert 0 <= set_f1(a, b) <= 1
    assert (set_f1(a, b) == 1) == (a == b)


def test_lengths_are_described_by_nearest_rank():
    assert length_statistics(range(1, 101)) == {"mean": 50.5, "p50": 50.0, "p95": 95.0}
    assert length_statistics([7]) == {"mean": 7.0, "p50": 7.0, "p95": 7.0}
    with pytest.raises(ValueError, match="no lengths"):
        length_statistics([])


def test_a_perfect_model_scores_full_marks():
    references = [verdict(), verdict("诈骗", "266", Term("detention", 4, 6), 2000)]
    scores = score_verdicts(references, references)
    assert scores.pop("n") == 2
    assert scores.pop("term_error_months") == 0
    assert scores.pop("charge_score_official") == scores.pop("article_score_official") == 100
    assert set(scores.values()) == {1.0}


def test_scores_of_a_small_test_set_worked_by_hand():
    references = [
        verdict(term=Term("fixed", 12), fine=1000),
        verdict("危险驾驶", "133之一", Term("detention", 2, 3)),
        verdict("诈骗", "266", Term("fixed", 36)),
        verdict("故意杀人", "232", Term("death")),
    ]
    predictions = [
        verdict(term=Term("fixed", 15), fine=1000),
        verdict("危险驾驶", "133", Term("detention", 2)),
        ParseFailure("刑期 missing"),
        verdict("故意杀人", "232", Term("death")),
    ]
    scores = score_verdicts(predictions, references)
    assert scores["n"] == 4
    assert scores["parsed"] == 0.75
    assert scores["exact"] == 0.25
    assert scores["charge_accuracy"] == 0.75
    assert scores["article_accuracy"] == 0.5  # 133 is not 133之一 ...
    assert scores["article_micro_f1"] == pytest.approx(6 / 7)  # ... but is the same CAIL label
    assert scores["charge_macro_f1_present"] == 0.75
    assert scores["charge_macro_f1_official"] == pytest.approx(201 / 202)
    assert scores["article_macro_f1_official"] == pytest.approx(182 / 183)
    assert scores["term_accuracy"] == 0.5
    assert scores["term_score_official"] == pytest.approx((0.8 + 1 + 0 + 1) / 4)
    assert scores["term_error_months"] == pytest.approx((3 + 0 + 36) / 3)
    assert scores["probation_accuracy"] == 0.5
    assert scores["fine_accuracy"] == 0.75


def test_nothing_readable_scores_nothing():
    scores = score_verdicts([ParseFailure("x")], [verdict()])
    assert scores["charge_micro_f1"] == scores["charge_macro_f1_present"] == 0
    assert scores["term_score_official"] == scores["exact"] == scores["parsed"] == 0
    assert scores["probation_accuracy"] == scores["fine_accuracy"] == 0
    assert scores["term_error_months"] == 12


def test_unequal_or_empty_sets_are_refused():
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        score_verdicts([verdict()], [verdict(), verdict()])
    with pytest.raises(ValueError, match="no cases"):
        score_verdicts([], [])
    with pytest.raises(ValueError, match="no labels"):
        label_f1([set()], [set()], [])
