from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.official import from_prediction, read_predictions, to_prediction, write_predictions
from curt.dialogue import ParseFailure
from curt.law.numerals import article_number
from curt.law.statutes import CAIL_ARTICLES, CAIL_CHARGES
from curt.law.verdict import Term, Verdict
from curt.scores.metrics import cail_term_score
from tests.curt.corpus.test_tasks import VERDICTS

PREDICTIONS = st.fixed_dictionaries(
    {
        "accusation": st.lists(
            st.integers(1, len(CAIL_CHARGES)), min_size=1, max_size=3, unique=True
        ),
        "articles": st.lists(st.integers(1, len(CAIL_ARTICLES)), max_size=3, unique=True),
        "imprisonment": st.integers(-2, 300),
    }
)


def test_a_prediction_worked_by_hand():
    verdict = Verdict(("盗窃",), ("264",), Term("fixed", 8, 12), 3000)
    row = to_prediction(verdict)
    assert CAIL_CHARGES[row["accusation"][0] - 1] == "盗窃"
    assert CAIL_ARTICLES[row["articles"][0] - 1] == 264
    assert row["imprisonment"] == 8


@pytest.mark.parametrize(
    ("term", "months"),
    [(Term("death"), -2), (Term("life"), -1), (Term("exempt"), 0), (Term("detention", 3), 3)],
)
def test_how_penalties_are_written(term, months):
    assert to_prediction(Verdict(("盗窃",), ("264",), term))["imprisonment"] == months


@given(row=PREDICTIONS)
def test_a_prediction_read_and_written_again_is_the_same(row):
    again = to_prediction(from_prediction(row))
    assert again["accusation"] == row["accusation"]
    assert sorted(again["articles"]) == sorted(row["articles"])
    assert again["imprisonment"] == row["imprisonment"]


@given(verdict=VERDICTS)
def test_the_official_scorer_sees_no_difference_after_a_round_trip(verdict):
    read = from_prediction(to_prediction(verdict))
    charges = set(verdict.charges) & set(CAIL_CHARGES)
    if not charges:
        assert isinstance(read, ParseFailure)
        return
    assert set(read.charges) == charges
    numbers = {article_number(a) for a in verdict.articles} & set(CAIL_ARTICLES)
    assert {article_number(a) for a in read.articles} == numbers
    assert cail_term_score(read.term, verdict.term) == 1.0
    assert read.term.months == verdict.term.months


def test_the_branch_of_an_article_comes_back_by_its_charge():
    verdict = Verdict(("危险驾驶",), ("133之一",), Term("detention", 2))
    assert from_prediction(to_prediction(verdict)) == verdict


def test_detention_of_more_than_six_months_comes_back_where_nothing_else_is_allowed():
    verdict = Verdict(("危险驾驶",), ("133之一",), Term("detention", 8))
    assert from_prediction(to_prediction(verdict)) == verdict


def test_a_file_holds_every_answer_and_counts_what_it_cannot_say(tmp_path):
    path = tmp_path / "predictions.json"
    verdicts = [
        Verdict(("盗窃", "帮助信息网络犯罪活动"), ("264", "67", "287之二"), Term("fixed", 9)),
        ParseFailure("thinking not closed"),
        Verdict(("故意杀人",), ("232",), Term("death")),
    ]
    counts = write_predictions(path, iter(verdicts))
    assert counts.to_json() == {
        "predictions": 3, "unreadable": 1, "charges_left_out": 1, "articles_left_out": 2,
    }  # fmt: skip
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines[1] == {"accusation": [], "articles": [], "imprisonment": 0}
    assert list(read_predictions(path)) == [
        Verdict(("盗窃",), ("264",), Term("fixed", 9)),
        ParseFailure("no charge"),
        verdicts[2],
    ]


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        '{"accusation": [1], "articles": [1]}',
        '{"accusation": [0], "articles": [1], "imprisonment": 5}',
        '{"accusation": [203], "articles": [1], "imprisonment": 5}',
        '{"accusation": [1], "articles": [184], "imprisonment": 5}',
        '{"accusation": [1], "articles": [1], "imprisonment": -3}',
        '{"accusation": [1], "articles": [1], "imprisonment": "5"}',
        '{"accusation": [true], "articles": [1], "imprisonment": 5}',
    ],
)
def test_a_line_that_is_no_prediction_is_named(tmp_path, line):
    path = tmp_path / "p.json"
    path.write_text('{"accusation": [1], "articles": [], "imprisonment": 0}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"p\.json:2 is no prediction"):
        list(read_predictions(path))


def test_no_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="no predictions"):
        list(read_predictions(tmp_path / "none.json"))
