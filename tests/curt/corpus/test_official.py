from __future__ import annotations

import json

import pytest
from hypothesis import given

from curt.corpus.official import to_prediction, write_predictions
from curt.dialogue import ParseFailure
from curt.law.numerals import article_number
from curt.law.statutes import CAIL_ARTICLES, CAIL_CHARGES
from curt.law.verdict import Term, Verdict
from tests.curt.corpus.test_tasks import VERDICTS


def test_a_prediction_worked_by_hand():
    verdict = Verdict(("盗窃",), ("264",), Term("fixed", 8, 12), 3000)
    row = to_prediction(verdict)
    assert CAIL_CHARGES[row["accusation"][0] - 1] == "盗窃"
    assert CAIL_ARTICLES[row["articles"][0] - 1] == 264
    assert row["imprisonment"] == 8


@pytest.mark.parametrize(
    ("term", "months"),
    [
        (Term("death"), -2),
        (Term("reprieve"), -2),
        (Term("life"), -1),
        (Term("exempt"), 0),
        (Term("detention", 3), 3),
    ],
)
def test_how_penalties_are_written(term, months):
    assert to_prediction(Verdict(("盗窃",), ("264",), term))["imprisonment"] == months


@given(verdict=VERDICTS)
def test_a_prediction_names_every_label_of_the_lists_and_no_other(verdict):
    row = to_prediction(verdict)
    named = {CAIL_CHARGES[line - 1] for line in row["accusation"]}
    assert named == set(verdict.charges) & set(CAIL_CHARGES)
    numbers = {CAIL_ARTICLES[line - 1] for line in row["articles"]}
    assert numbers == {article_number(a) for a in verdict.articles} & set(CAIL_ARTICLES)


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
    assert [CAIL_CHARGES[line - 1] for line in lines[0]["accusation"]] == ["盗窃"]
    assert [CAIL_ARTICLES[line - 1] for line in lines[0]["articles"]] == [264]
    assert [line["imprisonment"] for line in lines] == [9, 0, -2]
