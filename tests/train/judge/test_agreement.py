from __future__ import annotations

import json

import pytest

from curt.config import run
from curt.corpus.generate.generator import generate_cases
from curt.corpus.store import write_cases
from curt.dialogue import render_completion
from tests.train.judge.judge_server import Reply, judge_server
from tests.train.rollouts import make_rollout
from train.data.trajectories import TrajectoryWriter
from train.judge import Grade
from train.judge.agreement import JudgeAgreementConfig, cohen_kappa, compare_grades, main

F, P, W = Grade("full"), Grade("partial"), Grade("wrong")


def test_kappa_worked_by_hand():
    pairs = [("a", "a")] * 20 + [("a", "b")] * 5 + [("b", "a")] * 10 + [("b", "b")] * 15
    assert cohen_kappa(pairs) == pytest.approx(0.4)  # observed .7, chance .5
    assert cohen_kappa([("a", "a")] * 9) is None
    assert cohen_kappa([]) is None


def test_grades_are_compared_where_there_are_two():
    figures = compare_grades([F, None, W, F], [F, F, P, F])
    assert (figures["n"], figures["failed"]) == (4, 1)
    assert figures["agreement"] == pytest.approx(2 / 3)
    assert {"rule": "partial", "judge": "wrong", "count": 1} in figures["confusion"]


def test_months_are_compared_by_their_distance():
    figures = compare_grades(
        [Grade(error_months=0), Grade(error_months=7), W],
        [Grade(error_months=0), Grade(error_months=4), Grade(error_months=1)],
    )
    assert figures["month_difference"] == pytest.approx(1.5)
    assert figures["agreement"] == pytest.approx(2 / 3)


def test_the_report_shows_a_judge_that_says_yes_to_everything(tmp_path, monkeypatch, capsys):
    cases = list(generate_cases(20, seed=3))
    write_cases(tmp_path / "cases.jsonl", cases)
    wrong = cases[1:] + cases[:1]  # each answered with the next one's verdict
    rollouts = [
        make_rollout(case_id=case.id, completion=render_completion("", other.verdict))
        for case, other in zip(cases, wrong, strict=True)
    ]
    TrajectoryWriter(tmp_path / "trajectories").write(1, rollouts)
    with judge_server(lambda *_: Reply('{"grade": "full"}')) as server:
        judge = {"type": "endpoint", "base_url": server.url, "model": "m"}
        options = {
            "--judge": json.dumps(judge),
            "--trajectories": str(tmp_path / "trajectories"),
            "--cases": str(tmp_path / "cases.jsonl"),
            "--tasks": '["charge"]',
            "--out": str(tmp_path / "out"),
        }
        run(JudgeAgreementConfig, main, [x for option in options.items() for x in option])
    report = json.loads((tmp_path / "out" / "agreement.json").read_bytes())["tasks"]["charge"]
    assert report["n"] == 20
    assert report["agreement"] < 0.5
    assert {row["judge"] for row in report["confusion"]} == {"full"}
    assert "| charge | 20 | 0 |" in capsys.readouterr().out
