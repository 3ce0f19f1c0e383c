from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compress.classifier.agreement import (
    AgreementConfig,
    Trial,
    add_agreement,
    count_disputes,
    fit_agreement,
    measure_agreement,
    measure_folds,
    read_trials,
    work,
)
from curt.artifact import MANIFEST
from curt.classifier.confidence import in_dispute, thought_evidence
from curt.classifier.model import AGREEMENT, CONFIDENCE, Classifier, load_classifier
from curt.config import run
from curt.corpus.case import Case
from curt.corpus.store import write_cases
from curt.dialogue import parse_completion, render_completion
from curt.engines.protocol import Generation
from curt.evaluate import EvaluatedCase
from curt.files import sha256
from curt.law.verdict import Term, Verdict
from curt.scores.metrics import is_exact
from tests.cases import common_cases
from tests.compress.classifier.test_train import THEFT, train_splits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_splits(tmp_path_factory.mktemp("agreement")).out


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Classifier:
    return load_classifier(folder)


def answer_as(case: Case, wrong: bool, text: str | None = None) -> EvaluatedCase:
    """A model's answer: the truth, or a term four times as long."""
    term = case.verdict.term
    if wrong:
        term = Term("fixed", min(300, max(24, term.months * 4)))
    verdict = Verdict(case.verdict.charges, case.verdict.articles, term)
    generation = Generation(
        text=text or render_completion("推理", verdict),
        prompt_tokens=9,
        thinking_tokens=6 if wrong else 20,
        answer_tokens=9,
        thinking_cut=wrong and len(case.fact) % 2 == 0,
        finish="stop",
        prefill_ms=1.0,
        decode_ms=1.0,
    )
    return EvaluatedCase(case, generation)


def make_trials(classifier: Classifier, count: int, seed: str) -> list[Trial]:
    rng = random.Random(seed)
    cases = common_cases(count, seed)
    return read_trials([answer_as(case, rng.random() < 0.4) for case in cases], classifier)


@pytest.mark.parametrize("wrong_share", [0.0, 0.8])
def test_the_model_is_overruled_only_where_the_classifier_is_right_more_often(
    classifier: Classifier, wrong_share: float
) -> None:
    rng = random.Random("disputes")
    cases = common_cases(80, "disputes")
    answers = [answer_as(case, rng.random() < wrong_share) for case in cases]
    found = count_disputes(classifier, read_trials(answers, classifier))
    own = [classifier.predict(case.fact).verdict for case in cases]
    right = [is_exact(verdict, case.verdict) for verdict, case in zip(own, cases, strict=True)]
    disputed = [
        in_dispute(parse_completion(each.generation.text).verdict, verdict)
        for each, verdict in zip(answers, own, strict=True)
    ]
    assert found.cases == sum(disputed)
    assert found.classifier_right == sum(map(min, disputed, right))
    assert found.classifier_nearer + found.model_nearer <= found.cases
    assert (found.classifier_nearer > found.model_nearer) is found.is_overruled is (wrong_share > 0)


def test_who_is_nearer_counts_and_not_who_is_right(classifier: Classifier) -> None:
    """A court's month more or less: the classifier is never right, and nearer in every case."""
    scores = classifier.score(THEFT)
    own = classifier.read(scores).verdict

    def told(months: int) -> Verdict:
        return replace(own, term=Term("fixed", months))

    truth = told(own.term.months + 1)
    trial = Trial(0, scores, told(own.term.months + 5), (0.0, 0.0), truth)
    found = count_disputes(classifier, [trial] * 9)
    assert (found.classifier_nearer, found.model_nearer, found.classifier_right) == (9, 0, 0)
    assert found.is_overruled
    closer = replace(trial, verdict=truth)
    assert not count_disputes(classifier, [*[trial] * 9, *[closer] * 8]).is_overruled


def test_wrong_answers_are_found_out_on_unseen_cases(classifier):
    fit = fit_agreement(classifier.assessor, make_trials(classifier, 300, "dev"), "m", "0" * 64)
    trials = make_trials(classifier, 300, "test")
    row = measure_agreement(classifier.assessor, trials, [fit] * len(trials))
    assert row["verdict_ece"] < 0.12
    assert 0.7 < row["interval_coverage"] < 0.92
    sure = np.array(
        [classifier.assessor.agree(t.scores, t.verdict, t.thought, fit).verdict for t in trials]
    )
    right = np.array([t.verdict.term == t.truth.term for t in trials])
    assert sure[right].mean() > sure[~right].mean() + 0.3


def test_figures_of_folds_cover_every_answer(classifier):
    trials = make_trials(classifier, 100, "dev")
    row = measure_folds(classifier.assessor, trials)
    assert row["answers"] == len(trials) == 100
    assert row["charge_right"] == 1
    assert 0 < row["thinking_cut"] < row["verdict_right"] < 1


def test_answers_that_are_not_read_or_not_whole_are_left_out(classifier):
    case = next(iter(common_cases(1, "one")))
    whole = answer_as(case, wrong=False)
    unreadable = answer_as(case, wrong=False, text="推理</think>胡言")
    assert [t.case for t in read_trials([unreadable, whole], classifier)] == [1]
    assert read_trials([whole], classifier)[0].thought == thought_evidence(False, 20)


def test_a_model_without_readable_answers_leaves_the_folder_as_it_was(folder, micro_model):
    write_cases(folder.parent / "few.jsonl", common_cases(4, "few"))
    before = (folder / MANIFEST).read_bytes()
    config = AgreementConfig(
        model=micro_model, dev=folder.parent / "few.jsonl", fallback=folder, budgets=(0,)
    )
    with pytest.raises(ValueError, match="readable answers"):
        add_agreement(config)
    assert (folder / MANIFEST).read_bytes() == before


def test_a_missing_model_is_named(folder, tmp_path):
    arguments = ["--model", str(tmp_path / "none"), "--dev", str(folder.parent / "dev.jsonl")]
    with pytest.raises(SystemExit, match="none is not a folder"):
        run(AgreementConfig, work, [*arguments, "--fallback", str(folder)])


def test_the_fit_joins_the_folder_and_a_second_one_replaces_it(
    folder, classifier, micro_model, monkeypatch
):
    """The model's answers are given by hand; folder, fit and reading are the real ones."""
    cases = common_cases(60, "answers")
    write_cases(folder.parent / "answers.jsonl", cases)
    monkeypatch.setattr(
        "compress.classifier.agreement.run_budget",
        lambda engine, cases, budget, settings: [answer_as(c, len(c.fact) % 3 == 0) for c in cases],
    )
    config = AgreementConfig(
        model=micro_model, dev=folder.parent / "answers.jsonl", fallback=folder, budgets=(0, 8)
    )
    for _ in range(2):
        row = add_agreement(config)
        found = load_classifier(folder)
        assert {AGREEMENT, CONFIDENCE} < set(found.manifest.files)
        assert found.manifest.evaluation["agreement_answers"] == row["agreement_answers"] == 120
        assert "dev_charge_ece" in found.manifest.evaluation
        assert found.manifest.evaluation["agreement_disputes"] == found.agreement.disputes.cases
        assert found.agreement.model == micro_model.name
        assert found.agreement.manifest_sha256 == sha256(micro_model / MANIFEST)
        assert found.agreement.groups[0].cases > 0
        assert found.predict(cases[0].fact) == classifier.predict(cases[0].fact)
