"""Each reward by itself: hand-worked values, ranges, and what generated reasoning must score."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.generate.generator import generate_cases
from curt.dialogue import Completion, ParseFailure, parse_completion, render_completion
from curt.law.verdict import Term, Verdict
from train.rewards import REWARDS

THEFT = Verdict(("盗窃",), ("264",), Term("fixed", 8))
RANGES = {
    "format_error": (-1, 0),
    "charge_levels": (-2, 2),
    "article_levels": (-2, 2),
    "term_linear": (-2, 0),
}


def answered(verdict: Verdict = THEFT, thinking: str = "") -> Completion:
    return parse_completion(render_completion(thinking, verdict))


def written(answer: str) -> Completion:
    return Completion("", answer, ParseFailure("other form"), thinking_closed=True)


MARKS = "想5+17=22；×40%，取9个月。罪名：盗窃\n法条264刑期</think>{}#`"


@given(text=st.text(alphabet=MARKS, max_size=80))
def test_rewards_stay_in_their_range_whatever_is_written(text):
    completion = parse_completion(text)
    for name, reward in REWARDS.items():
        low, high = RANGES.get(name, (0, 1))
        assert low <= reward(completion, THEFT) <= high, name


def test_rewards_can_be_sent_to_other_processes():
    assert pickle.loads(pickle.dumps(dict(REWARDS))) == REWARDS


@pytest.mark.parametrize(
    ("charges", "level"),
    [
        (("盗窃", "诈骗"), 2.0),
        (("诈骗", "盗窃"), 2.0),
        (("盗窃",), 1.0),
        (("盗窃", "抢劫"), 1.0),
        (("抢劫",), -2.0),
    ],
)
def test_charge_levels(charges, level):
    reference = Verdict(("盗窃", "诈骗"), ("264", "266"), Term("fixed", 8))
    guess = Verdict(charges, ("264",), Term("fixed", 8))
    assert REWARDS["charge_levels"](answered(guess), reference) == level
    assert REWARDS["article_levels"](answered(guess), reference) == 1.0


@pytest.mark.parametrize(
    ("guess", "reference", "reward"),
    [
        (Term("fixed", 8), Term("fixed", 8), 0.0),
        (Term("fixed", 36), Term("fixed", 60), -0.1),
        (Term("exempt"), Term("fixed", 24), -0.1),
        (Term("fixed", 60), Term("life"), -1.0),
        (Term("death"), Term("life"), -0.25),
        (Term("reprieve"), Term("death"), -0.125),
        (Term("exempt"), Term("death"), -1.5),
    ],
)
def test_the_linear_term_reward_worked_by_hand(guess, reference, reward):
    completion = answered(Verdict(("盗窃",), ("264",), guess))
    truth = Verdict(("盗窃",), ("264",), reference)
    assert REWARDS["term_linear"](completion, truth) == pytest.approx(reward)


def test_what_cannot_be_read_is_worse_than_any_term():
    assert REWARDS["term_linear"](parse_completion("想</think>不知道"), THEFT) == -2.0


def test_the_ratio_of_terms():
    guess = Verdict(("盗窃",), ("264",), Term("fixed", 6))
    assert REWARDS["term_ratio"](answered(guess), THEFT) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("verdict", "score"),
    [
        (THEFT, 1.0),
        (Verdict(("盗窃",), ("266",), Term("fixed", 8)), 2 / 3),  # exists, carries another charge
        (
            Verdict(("盗窃",), ("100",), Term("fixed", 8)),
            1 / 3,
        ),  # an article that carries no charge
        (Verdict(("盗窃",), ("264", "100"), Term("fixed", 8)), 2.5 / 3),
        (Verdict(("危险驾驶",), ("133之一",), Term("fixed", 24)), 2 / 3),  # detention only
        (Verdict(("喝茶",), ("264",), Term("fixed", 8)), 1 / 3),  # no such charge
        (Verdict(("盗窃", "危险驾驶"), ("264", "133之一"), Term("fixed", 200)), 1.0),  # a sum
    ],
)
def test_legality_worked_by_hand(verdict, score):
    assert REWARDS["legality"](answered(verdict), THEFT) == pytest.approx(score)


@pytest.mark.parametrize("verbosity", ["full", "medium", "terse", "brief"])
def test_reasoning_that_is_right_is_consistent_legal_in_form_and_not_repetitive(verbosity):
    for case in generate_cases(300, seed=11):
        completion = answered(case.verdict, case.reasonings[verbosity])
        assert REWARDS["consistency"](completion, case.verdict) == 1.0, case.id
        assert REWARDS["repetition"](completion, case.verdict) > 0.9, case.id
        assert REWARDS["structure"](completion, case.verdict) == 1.0
        assert REWARDS["legality"](completion, case.verdict) >= 2 / 3  # mitigated under a tier


@pytest.mark.parametrize(
    ("thinking", "score"),
    [
        ("5+17=22；退赔-10从犯-30=-40；22×60%=13", 0.75),  # a right sum of the wrong sentence
        ("5+17=23；0；23×35%=8", 2 / 3),
        ("5+15=20；自首-20累犯+20=+0；20×40%=8", 3 / 4),  # 40% does not follow from +0
        ("5+15=20；22×36%=8", 2 / 3),  # 22 comes from nowhere
        ("34千3+17=20；退赔1从犯3累犯+2；20×80%=16", 0.75),
        ("34千3+17=20；退赔1从犯3累犯+2；20×40%=8", 0.75),  # the tenths leave 80%
        ("34千3+17=20；从犯3未遂3自首2；20×40%=8", 1.0),  # kept at the floor
        ("被告人的行为符合诈骗罪的构成，应为有期徒刑8个月。", 0.5),
        ("应为有期徒刑三年。", 0.0),
        ("应为有期徒刑三百年。", 0.0),
        ("金额8000元；坦白", 1.0),  # nothing to check
        ("", 1.0),
    ],
)
def test_consistency_worked_by_hand(thinking, score):
    assert REWARDS["consistency"](answered(THEFT, thinking), THEFT) == pytest.approx(score)


def test_a_sum_below_the_floor_is_carried_on_at_the_floor():
    thinking = "5+17=22；从犯-30未遂-30自首-20=-80取-60；22×40%=9"
    verdict = Verdict(("盗窃",), ("264",), Term("fixed", 9))
    assert REWARDS["consistency"](answered(verdict, thinking), THEFT) == 1.0


def test_a_loop_earns_little():
    loop = answered(thinking="被告人的行为构成盗窃罪。" * 30)
    assert REWARDS["repetition"](loop, THEFT) < 0.1


def test_an_answer_that_can_only_be_read_is_half_in_form():
    completion = parse_completion("</think>罪名：盗窃罪\n法条：第264条\n刑期：有期徒刑八个月")
    assert REWARDS["structure"](completion, THEFT) == 0.5


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ({"charges": ["盗窃"], "articles": ["264"], "term": "有期徒刑8个月"}, 1.0),
        ({"charges": [], "articles": ["264"], "term": "有期徒刑8个月"}, 0.2),
        ({"charges": ["盗窃"], "articles": ["264"], "term": "x", "note": "多余"}, 0.2),
        (["盗窃"], 0.0),
    ],
)
def test_json_answers(answer, score):
    assert REWARDS["json"](written(json.dumps(answer)), THEFT) == score


def test_what_is_no_json_scores_nothing():
    assert REWARDS["json"](written("罪名：盗窃"), THEFT) == 0.0
    assert REWARDS["json"](written("[" * 100_000), THEFT) == 0.0


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("# 罪名\n盗窃\n## 法条\n264\n## 刑期\n八个月", 1.0),
        ("## 刑期\n八个月\n## 罪名\n盗窃", 1 / 3),  # out of order: only the first counts
        ("罪名：盗窃", 0.0),
        ("# 罪名\n```\n盗窃\n# 法条\n# 刑期", 0.0),
    ],
)
def test_markdown_answers(answer, score):
    assert REWARDS["markdown"](written(answer), THEFT) == pytest.approx(score)
