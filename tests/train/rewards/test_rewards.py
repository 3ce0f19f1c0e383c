from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.generate.calculus import offences
from curt.dialogue import Completion, parse_completion, render_completion
from curt.law.verdict import Term, Verdict
from train.loop.scoring import Score, Scorer

WEIGHTS = {"format": 0.1, "charge": 0.3, "article": 0.2, "term": 0.4}
THEFT = Verdict(("盗窃",), ("264",), Term("fixed", 36, 48), 3000)
FRAUD = Verdict(("诈骗",), ("266",), Term("fixed", 36))

TERMS = st.one_of(
    st.builds(Term, st.just("fixed"), st.integers(1, 300)),
    st.builds(Term, st.just("detention"), st.integers(1, 12)),
    st.sampled_from([Term("life"), Term("death"), Term("exempt")]),
)
VERDICTS = st.builds(
    lambda offences, term: Verdict(
        tuple(o.charge for o in offences), tuple(a for o in offences for a in o.articles), term
    ),
    st.lists(
        st.sampled_from(list(offences().values())),
        min_size=1,
        max_size=3,
        unique_by=lambda o: o.charge,
    ),
    TERMS,
)


def score_completion(
    completion: Completion, reference: Verdict, weights: dict[str, float]
) -> Score:
    (score,) = Scorer(weights).score([completion], [reference], 1)
    return score


def answered(verdict: Verdict, thinking: str = "想") -> Completion:
    return parse_completion(render_completion(thinking, verdict))


@given(guess=VERDICTS, reference=VERDICTS)
def test_every_reward_lies_between_0_and_1(guess, reference):
    score = score_completion(answered(guess), reference, WEIGHTS)
    assert score.raw.keys() == WEIGHTS.keys()
    assert all(0 <= value <= 1 for value in score.raw.values())
    assert 0 <= score.partial <= 1 + 1e-12
    assert score.exact in (0.0, 1.0)


@given(reference=VERDICTS)
def test_the_reference_itself_earns_everything(reference):
    score = score_completion(answered(reference), reference, WEIGHTS)
    assert set(score.raw.values()) == {1.0}
    assert score.partial == pytest.approx(1.0)
    assert score.exact == 1.0


@given(text=st.text(max_size=60))
def test_an_unreadable_answer_earns_nothing_anywhere(text):
    score = score_completion(parse_completion(f"想</think>{text}"), THEFT, WEIGHTS)
    assert set(score.raw.values()) == {0.0}
    assert (score.partial, score.exact) == (0.0, 0.0)


@pytest.mark.parametrize(
    "text",
    [
        "罪名：盗窃\n法条：264\n刑期：有期徒刑36个月",  # thinking never closed
        "想</think>罪名：盗窃\n法条：264",
        "想</think>罪名：盗窃\n法条：264\n刑期：有期徒刑36个月\n以上。",
        "想</think>罪名：盗窃\n罪名：诈骗\n法条：264\n刑期：有期徒刑36个月",
        "想</think>罪名：盗窃\n法条：264\n刑期：有期徒刑999个月",
    ],
)
def test_an_answer_outside_the_grammar_earns_nothing(text):
    score = score_completion(parse_completion(text), THEFT, WEIGHTS)
    assert set(score.raw.values()) == {0.0}


def test_partial_credit_worked_by_hand():
    guess = Verdict(("盗窃", "诈骗"), ("264",), Term("fixed", 25))
    score = score_completion(answered(guess), THEFT, WEIGHTS)
    # charge F1 = 2/3; |ln 26 - ln 37| = 0.353 earns 0.8
    assert dict(score.raw) == pytest.approx(
        {"format": 1.0, "charge": 2 / 3, "article": 1.0, "term": 0.8}
    )
    assert score.partial == pytest.approx(0.1 + 0.2 + 0.2 + 0.32)
    assert score.exact == 0.0


def test_a_nearly_right_term_earns_the_full_partial_reward_but_is_not_exact():
    guess = Verdict(("盗窃",), ("264",), Term("fixed", 34))
    score = score_completion(answered(guess), THEFT, WEIGHTS)
    assert (score.partial, score.exact) == (1.0, 0.0)


def test_probation_and_fine_do_not_count():
    guess = Verdict(("盗窃",), ("264",), Term("fixed", 36))
    assert score_completion(answered(guess), THEFT, WEIGHTS).exact == 1.0


def test_detention_for_as_many_months_is_not_exact():
    reference = Verdict(("盗窃",), ("264",), Term("fixed", 6))
    guess = Verdict(("盗窃",), ("264",), Term("detention", 6))
    assert score_completion(answered(guess), reference, WEIGHTS).exact == 0.0


def test_another_charge_keeps_the_term_reward():
    score = score_completion(answered(FRAUD), THEFT, WEIGHTS)
    assert dict(score.raw) == {"format": 1.0, "charge": 0.0, "article": 0.0, "term": 1.0}


def test_a_weight_of_0_logs_without_counting():
    only_charge = {"charge": 1.0, "term": 0.0}
    score = score_completion(answered(FRAUD), THEFT, only_charge)
    assert score.partial == 0.0
    assert score.raw["term"] == 1.0


def test_weights_are_relative():
    doubled = {name: 2 * weight for name, weight in WEIGHTS.items()}
    once, twice = (score_completion(answered(FRAUD), THEFT, w) for w in (WEIGHTS, doubled))
    assert once.partial == pytest.approx(twice.partial)


def test_an_unknown_reward_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown rewards \['lenght'\].*'term'"):
        score_completion(answered(THEFT), THEFT, {"charge": 1.0, "lenght": 0.2})


@pytest.mark.parametrize("weights", [{}, {"charge": 0.0}])
def test_rewards_that_all_weigh_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="all reward weights are 0"):
        score_completion(answered(THEFT), THEFT, weights)


@pytest.mark.parametrize(("verdict", "graded"), [
    (THEFT, 1.0),
    (Verdict(("盗窃",), ("264",), Term("fixed", 30)), 1.0),  # ln 37 - ln 31 = .18
    (Verdict(("盗窃",), ("264",), Term("fixed", 24)), 0.8),
    (Verdict(("盗窃",), ("264",), Term("fixed", 6)), 0.0),
    (Verdict(("盗窃",), ("264", "67"), Term("fixed", 36)), 0.0),
    (FRAUD, 0.0),
])  # fmt: skip
def test_graded_correctness_forgives_the_term_alone(verdict, graded):
    scorer = Scorer(WEIGHTS, correctness="graded")
    (score,) = scorer.score([answered(verdict)], [THEFT], 1)
    assert score.correct == graded
    assert score.exact == float(verdict is THEFT)
    (strict,) = Scorer(WEIGHTS).score([answered(verdict)], [THEFT], 1)
    assert strict.correct == strict.exact
    (unread,) = scorer.score([parse_completion("想</think>罪名")], [THEFT], 1)
    assert unread.correct == 0
