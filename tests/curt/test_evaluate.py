from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from curt.artifact import READER, ArtifactError
from curt.classifier.model import load_classifier
from curt.corpus.augment.counterfactuals import MOVES, STAYS, Pair, draw_pairs
from curt.corpus.case import Case
from curt.corpus.generate.generator import generate_cases
from curt.corpus.store import write_cases
from curt.dialogue import parse_completion, render_completion
from curt.engines import Generation
from curt.evaluate import (
    EvaluateConfig,
    EvaluatedCase,
    by_group,
    evaluate,
    judge_pair,
    measure_counterfactuals,
    open_engine,
    score_classifier,
    summarise,
)
from curt.law.verdict import Term, Verdict
from curt.scores.metrics import is_exact
from tests.compress.classifier.test_train import make_fallback

KEYS = {
    "name", "engine", "model", "manifest_sha256", "corpus", "corpus_sha256", "n", "stated_budget",
    "scores", "thinking_tokens", "thinking_lengths", "exact_cases", "charges", "circumstances",
    "by_budget", "by_trait", "by_correctness", "classifier", "counterfactuals", "examples",
}  # fmt: skip
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "test.jsonl"
    write_cases(path, generate_cases(6, seed=9))
    return path


@pytest.fixture(scope="module")
def report(micro_model, corpus):
    return evaluate(
        EvaluateConfig(
            model=micro_model,
            corpus=corpus,
            out=Path("somewhere/micro.json"),
            budgets=[0, 20, 8],
            budget_limit=4,
            batch=4,
            counterfactuals=1,
            examples=2,
        )
    )


def outcome(case, *, verdict=None, tokens=10, cut=False) -> EvaluatedCase:
    text = render_completion("想", verdict or case.verdict)
    return EvaluatedCase(case, Generation(text, 100, tokens, 20, cut, "stop", 0.0, 1.0))


def test_a_report_has_every_documented_key(report, micro_model, corpus):
    assert report.keys() == KEYS
    assert report["name"] == "micro"
    assert report["engine"] == "transformers"
    assert (report["model"], report["corpus"]) == (str(micro_model), str(corpus))
    assert report["n"] == 6
    assert json.loads(json.dumps(report, ensure_ascii=False, allow_nan=False)) == report


def test_the_widest_budget_gives_the_headline(report):
    assert report["stated_budget"] == 16  # 20 rounded down to a level
    assert len(report["thinking_lengths"]) == 6
    assert max(report["thinking_lengths"]) <= 20
    assert report["thinking_tokens"].keys() == {"mean", "p50", "p95"}
    assert report["scores"]["n"] == 6


def test_every_budget_has_its_row_in_order(report):
    rows = report["by_budget"]
    assert [row["budget"] for row in rows] == [0, 8, 20]
    assert [row["n"] for row in rows] == [4, 4, 4]
    assert rows[0]["mean_thinking"] == 0
    assert all(row["mean_thinking"] <= row["budget"] for row in rows)
    assert all(0 <= row["cut"] <= 1 and row["exact"] == row["scores"]["exact"] for row in rows)


def test_correctness_splits_the_headline_completely(report):
    sides = report["by_correctness"]
    assert sum(row["n"] for row in sides.values()) == 6
    assert sides.keys() <= {"right", "wrong"}
    assert len(report["exact_cases"]) == len(report["circumstances"]) == 6


def test_a_budget_can_be_stated_without_being_enforced_and_the_other_way_round(micro_model, corpus):
    def lengths(**changes):
        config = EvaluateConfig(
            model=micro_model, corpus=corpus, out=Path("x.json"), budgets=[8], limit=3, **changes
        )
        report = evaluate(config)
        return report["stated_budget"], max(report["thinking_lengths"]), report["by_budget"][0]

    stated, longest, row = lengths(thinking_limit=24)
    assert stated == 8
    assert longest > 8  # a model with random weights obeys nothing
    assert row["within"] < 1
    stated, longest, _ = lengths(stated_budget=64)
    assert (stated, longest <= 8) == (64, True)


def test_traits_split_the_headline_completely(report):
    assert sum(row["n"] for row in report["by_trait"].values()) == 6
    assert all(row.keys() == {"n", "exact", "mean_thinking"} for row in report["by_trait"].values())


def test_pairs_are_asked_of_as_many_cases_as_told(report):
    assert len(report["counterfactuals"]["cases"]) == 1
    assert (
        report["counterfactuals"]["by_kind"].keys() == report["counterfactuals"]["cases"][0].keys()
    )


def test_examples_are_kept_as_many_as_asked(report):
    assert len(report["examples"]) == 2
    assert report["examples"][0].keys() == {
        "fact", "thinking", "thinking_tokens", "answer", "reference", "exact",
    }  # fmt: skip


def test_no_case_text_leaves_a_corpus_without_examples(micro_model, corpus):
    report = evaluate(
        EvaluateConfig(
            model=micro_model, corpus=corpus, out=Path("x.json"), budgets=[0], limit=2, examples=0
        )
    )
    assert report["examples"] == []
    assert report["n"] == 2
    assert "被告人" not in json.dumps(report, ensure_ascii=False)


def test_summaries_worked_by_hand():
    cases = list(generate_cases(3, seed=9))
    other = next(c.verdict for c in generate_cases(50, seed=10) if c.verdict != cases[2].verdict)
    rows = [
        outcome(cases[0], tokens=10),
        outcome(cases[1], tokens=20, cut=True),
        outcome(cases[2], tokens=60, verdict=other),
    ]
    summary = summarise(rows, 32)
    assert summary["exact"] == pytest.approx(2 / 3)
    assert summary["mean_thinking"] == pytest.approx(30)
    assert summary["p95_thinking"] == 60
    assert summary["cut"] == pytest.approx(1 / 3)
    assert summary["within"] == pytest.approx(1 / 3)  # one was cut, one is too long


def test_groups_are_counted_per_case():
    cases = list(generate_cases(40, seed=9))
    groups = by_group(
        [outcome(c, tokens=len(c.traits)) for c in cases], lambda o: f"{o.case.traits}"
    )
    assert list(groups) == sorted(groups)
    for name, row in groups.items():
        held = [c.traits for c in cases if f"{c.traits}" == name]
        assert row == {"n": len(held), "exact": 1.0, "mean_thinking": len(held[0])}


class Answers:
    """An engine that answers every fact with what a function says."""

    def __init__(self, answer):
        self.answer = answer

    def generate(self, requests):
        texts = [render_completion("想", self.answer(r.fact)) for r in requests]
        return [Generation(text, 100, 1, 20, False, "stop", 0.0, 1.0) for text in texts]


def ask_pairs(answer, cases=(), count=12, **changes):
    options = {"model": Path("m"), "out": Path("x.json"), "counterfactuals": count, "batch": 7}
    config = EvaluateConfig(**options | changes)
    return measure_counterfactuals(Answers(answer), cases, 128, config)


def test_a_model_that_is_always_right_holds_in_every_pair():
    names = [f"generated-pairs-{n}" for n in range(12)]
    pairs = [p for name in names for p in draw_pairs(name, random.Random(name))]
    right = {side.fact: side.verdict for p in pairs for side in (p.before, p.after)}
    found = ask_pairs(right.__getitem__)
    assert found["by_kind"].keys() == {p.kind for p in pairs}
    for kind, row in found["by_kind"].items():
        assert row["n"] == sum(kind in case for case in found["cases"])
        assert (row["value"], row["exact_before"], row["exact"]) == (1, 1, 1)
        assert row["low"] < row["high"] == 1
    assert sum(map(len, found["cases"])) == len(pairs)


def test_a_model_that_says_always_the_same_stays_and_never_moves():
    found = ask_pairs(lambda fact: Verdict(("盗窃",), ("264",), Term("fixed", 8)))["by_kind"]
    assert {row["value"] for kind, row in found.items() if kind in STAYS} == {1}
    assert {row["value"] for kind, row in found.items() if kind in MOVES} == {0}


def test_the_classifier_answers_the_same_pairs(tmp_path):
    folder = make_fallback(tmp_path)
    shutil.copytree(folder, tmp_path / READER)
    says = load_classifier(folder).predict
    by_itself = ask_pairs(lambda fact: says(fact).verdict)
    assert by_itself["classifier"] == {}  # the model has no reader
    for changes in ({"classifier": folder}, {"model": tmp_path}):
        beside = ask_pairs(lambda fact: Verdict(("盗窃",), ("264",), Term("fixed", 8)), **changes)
        assert beside["classifier"] == by_itself["by_kind"] != beside["by_kind"]
    assert ask_pairs(lambda fact: None, count=0, classifier=folder)["classifier"] == {}


def test_the_classifier_answers_the_same_cases(tmp_path, report):
    folder, cases = make_fallback(tmp_path), list(generate_cases(20, seed=9))
    says = load_classifier(folder).predict
    config = EvaluateConfig(model=tmp_path, classifier=folder, out=Path("x.json"))
    alone = score_classifier(cases, config)
    assert alone["exact_cases"] == [is_exact(says(c.fact).verdict, c.verdict) for c in cases]
    assert alone["scores"]["exact"] == sum(alone["exact_cases"]) / 20
    assert report["classifier"] == {}  # that model has no reader


def test_cases_of_text_alone_are_asked_what_must_not_matter():
    case = next(generate_cases(1, seed=9))
    found = ask_pairs(lambda fact: case.verdict, [replace(case, source="cail")] * 3, count=2)
    assert found["by_kind"].keys() <= set(STAYS)
    assert len(found["cases"]) == 2


def test_a_pair_worked_by_hand():
    eight, six = (Verdict(("盗窃",), ("264",), Term("fixed", n)) for n in (8, 6))
    fraud = replace(eight, charges=("诈骗",))
    failure = parse_completion("没有").verdict
    before, after = Case("a", "甲", eight, "generated"), Case("b", "乙", six, "generated")
    moved = Pair("surrender", before, after)
    assert judge_pair(moved, {"甲": eight, "乙": six}) == (True, True, True)
    assert judge_pair(moved, {"甲": fraud, "乙": six}) == (True, False, True)
    assert judge_pair(moved, {"甲": six, "乙": eight}) == (False, False, False)
    assert judge_pair(moved, {"甲": eight, "乙": eight}) == (False, True, False)
    stayed = Pair("name", before, replace(before, fact="乙"))
    assert judge_pair(stayed, {"甲": six, "乙": six}) == (True, False, False)
    assert judge_pair(stayed, {"甲": eight, "乙": fraud}) == (False, True, False)
    assert judge_pair(stayed, {"甲": failure, "乙": failure}) == (False, False, False)


def test_an_empty_corpus_is_refused(micro_model, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no case"):
        evaluate(EvaluateConfig(model=micro_model, corpus=empty, out=tmp_path / "r.json"))


def test_no_budgets_are_refused(micro_model, corpus, tmp_path):
    with pytest.raises(ValueError, match="no budgets"):
        evaluate(
            EvaluateConfig(model=micro_model, corpus=corpus, out=tmp_path / "r.json", budgets=[])
        )


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="manifest"):
        open_engine(tmp_path)


def test_the_command_names_a_missing_corpus_and_writes_nothing(micro_model, tmp_path):
    out = tmp_path / "report.json"
    result = subprocess.run(
        [sys.executable, "-m", "curt.evaluate", "--model", str(micro_model),
         "--corpus", str(tmp_path / "none.jsonl"), "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 1
    assert "error: no case file" in result.stderr
    assert "Traceback" not in result.stderr
    assert not out.exists()
