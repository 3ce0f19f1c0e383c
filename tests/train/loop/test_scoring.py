from __future__ import annotations

import pickle

import pytest

from curt.dialogue import parse_completion, render_completion
from curt.law.verdict import Term, Verdict
from train.judge import Grade, RuleJudgeSettings, make_judge
from train.loop.scoring import Scorer, reward_of_grade
from train.rewards import combine

THEFT = Verdict(("盗窃",), ("264",), Term("fixed", 8))
FRAUD = Verdict(("诈骗",), ("266",), Term("fixed", 8))


class Moody:
    """A judge whose grades are given."""

    def __init__(self, *grades):
        self.grades = list(grades)
        self.counts = {}
        self.asked = []

    def grade(self, questions):
        self.asked.append([q.task for q in questions])
        return self.grades[: len(questions)]


def answered(*verdicts):
    return [parse_completion(render_completion("", verdict)) for verdict in verdicts]


@pytest.mark.parametrize(
    ("grade", "task", "reward"),
    [
        (Grade("full"), "charge", 2.0),
        (Grade("partial"), "article", 1.0),
        (Grade("undecided"), "ruling", 0.0),
        (Grade("wrong"), "ruling", -2.0),
        (Grade(error_months=24), "term", -0.1),
        (Grade(error_months=99999), "term", -1.5),
        (Grade("wrong"), "term", -2.0),
        (None, "term", None),
        (None, "charge", None),
    ],
)
def test_grades_become_rewards(grade, task, reward):
    assert reward_of_grade(grade, task) == reward


def test_the_judged_recipe_worked_by_hand():
    weights = {"format_error": 1, "rule:charge": 1, "rule:article": 1, "rule:term": 1, "term": 0}
    scorer = Scorer(weights, {"rule": make_judge(RuleJudgeSettings())}, "sum")
    unreadable = parse_completion("想")
    right, other, lost = scorer.score([*answered(THEFT, FRAUD), unreadable], [THEFT] * 3, 3)
    assert (right.partial, right.exact) == (4.0, 1.0)
    assert (other.partial, other.exact) == (-4.0, 0.0)
    assert lost.partial == -1 - 2 - 2 - 2
    assert other.raw["term"] == 1.0
    assert "term" not in other.weighted


def test_a_failed_judge_leaves_the_sum_open_and_the_rest_known():
    judge = Moody(Grade("full"), None)
    scorer = Scorer({"charge": 1.0, "j:ruling": 0.5}, {"j": judge}, "mean")
    known, unknown = scorer.score(answered(THEFT, THEFT), [THEFT] * 2, 2)
    assert known.partial == pytest.approx((1 + 0.5 * 2) / 1.5)
    assert unknown.partial is None
    assert unknown.raw == {"charge": 1.0, "j:ruling": None}
    assert unknown.weighted == {"charge": 1.0, "j:ruling": None}


def test_a_failed_judge_of_weight_0_changes_nothing():
    scorer = Scorer({"charge": 1.0, "j:ruling": 0.0}, {"j": Moody(None)})
    (score,) = scorer.score(answered(THEFT), [THEFT], 1)
    assert (score.partial, score.raw["j:ruling"]) == (1.0, None)


def test_judges_see_the_whole_batch_at_once():
    judge = Moody(*[Grade("full")] * 4)
    scorer = Scorer({"j:charge": 1.0, "j:article": 1.0}, {"j": judge})
    scorer.score(answered(THEFT, FRAUD, THEFT, FRAUD), [THEFT] * 4, 2)
    assert judge.asked == [["charge"] * 4, ["article"] * 4]


def test_reward_models_on_scales_of_their_own_count_alike():
    # One spreads over 4 points, the other over a hundredth; on the second pair they disagree.
    loud = Moody(Grade("full"), Grade("wrong"), Grade("full"), Grade("wrong"))
    soft = Moody(*[Grade(error_months=n) for n in (0, 3, 3, 0)])
    for how in ("zscore", "rank"):
        scorer = Scorer({"a:charge": 1.0, "b:term": 1.0}, {"a": loud, "b": soft}, how)
        scores = scorer.score(answered(*[THEFT] * 4), [THEFT] * 4, 2)
        assert scores[0].partial == pytest.approx(-scores[1].partial)
        assert scores[0].partial > 0.5
        assert [s.partial for s in scores[2:]] == pytest.approx([0, 0], abs=0.01)
        assert scores[0].disagreement == pytest.approx(0, abs=0.01)
        assert scores[2].disagreement > 0.5


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"charge": 1.0, "lenght": 0.2}, r"unknown rewards \['lenght'\].*'term'"),
        ({"qwen:charge": 1.0}, "configure a judge"),
        ({"j:mood": 1.0}, r"unknown rewards \['j:mood'\].*'j:ruling'"),
        ({"charge": 0.0}, "all reward weights are 0"),
        ({}, "all reward weights are 0"),
    ],
)
def test_weights_that_say_nothing_are_refused(weights, said):
    judges = {"j": Moody()} if any("j:" in name for name in weights) else {}
    with pytest.raises(ValueError, match=said):
        Scorer(weights, judges)


def test_sums_and_means():
    raw = {"a": 1.0, "b": -1.0, "c": None}
    assert combine(raw, {"a": 2.0, "b": 1.0, "c": 0.0}, "sum") == 1.0
    assert combine(raw, {"a": 2.0, "b": 1.0}, "mean") == pytest.approx(1 / 3)
    assert combine(raw, {"a": 2.0, "c": 1.0}, "sum") is None


def test_a_scorer_can_be_sent_to_other_processes():
    scorer = Scorer({"rule:term": 1.0}, {"rule": make_judge(RuleJudgeSettings())})
    copy = pickle.loads(pickle.dumps(scorer))
    assert copy.score(answered(THEFT), [THEFT], 1)[0].partial == 0.0
