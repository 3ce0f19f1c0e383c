from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import numpy as np
import pytest

from compress.classifier.agreement import Trial, fit_agreement
from curt.classifier.confidence import thought_evidence
from curt.classifier.model import MODEL, Classifier, load_classifier
from curt.corpus.case import Case
from curt.law.statutes import charge_articles
from curt.law.verdict import Term, Verdict
from serve.answering.confidence import WITHHELD, Confidence, ConfidenceReader, LikelyTerm
from serve.api.reply import build_defendant
from serve.api.schemas import ALL_TASKS, Defendant
from tests.cases import common_cases
from tests.compress.classifier.test_train import THEFT, train_splits

DIGEST = "ab" * 32
THEFT_VERDICT = Verdict(("盗窃",), ("264",), Term("fixed", 8))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return load_classifier(train_splits(tmp_path_factory.mktemp("confidence"), dev=100).out)


@pytest.fixture(scope="module")
def classifier(plain: Classifier) -> Classifier:
    """The classifier with the agreement of a model that errs in one charge of seven, and in terms
    where its thinking is cut."""
    trials = [_answer(plain, case, i) for i, case in enumerate(common_cases(200, "answers"))]
    return Classifier(
        plain.labels,
        plain.vocabulary,
        _model_of(plain),
        uncertainty=plain.assessor.fit,
        agreement=fit_agreement(plain.assessor, trials, "demo", DIGEST),
    )


def _model_of(classifier: Classifier) -> bytes:
    return (Path(classifier.manifest.config["out"]) / MODEL).read_bytes()


def _answer(classifier: Classifier, case: Case, place: int) -> Trial:
    cut, truth = place % 3 == 0, case.verdict
    months = min(300, max(1, truth.term.months) * (4 if cut else 1))
    charge = truth.charges[0]
    if place % 7 == 3:
        charge = "故意伤害" if charge == "盗窃" else "盗窃"
    answer = Verdict((charge,), charge_articles(charge)[:1], Term("fixed", months))
    return Trial(place, classifier.score(case.fact), answer, thought_evidence(cut, 6), truth)


@pytest.fixture
def reader(classifier: Classifier) -> ConfidenceReader:
    return ConfidenceReader(classifier, model_manifest=DIGEST[:12])


def assess(reader: ConfidenceReader, verdict: Verdict = THEFT_VERDICT, **how) -> Confidence:
    found = reader.assess(THEFT, verdict, how.pop("thinking_cut", False), **how)
    assert found is not None
    return found


def ends(term: LikelyTerm) -> tuple[int, int]:
    return term.low.months, term.high.months


def test_a_reply_tells_charges_interval_and_probabilities(reader):
    found = assess(reader)
    assert found.charges[0].name == "盗窃"
    assert found.charges[0].title == "盗窃罪"
    assert len(found.charges) == 3
    assert found.charges[0].probability > 0.9 > found.charges[1].probability
    assert found.term_interval.coverage == 0.8
    assert found.term_interval.basis == "model"
    low, high = ends(found.term_interval)
    assert low <= 8 <= high
    assert 0 < found.probabilities.verdict <= 1
    assert json.loads(found.model_dump_json())["term_interval"]["low"]["text"]


def test_a_verdict_the_classifier_contradicts_is_abstained_from(reader):
    other = Verdict(("故意伤害",), ("234",), Term("fixed", 200))
    assert assess(reader).probabilities.verdict > assess(reader, other).probabilities.verdict
    assert assess(reader, other).abstain


def test_cut_thinking_is_trusted_less(reader):
    whole, cut = assess(reader), assess(reader, thinking_cut=True, thinking_tokens=6)
    assert cut.probabilities.verdict < whole.probabilities.verdict
    first, second = ends(cut.term_interval), ends(whole.term_interval)
    assert first[1] - first[0] >= second[1] - second[0]


def test_the_threshold_is_settable(classifier):
    def abstains(below: float) -> bool:
        reader = ConfidenceReader(classifier, model_manifest=DIGEST, abstain_below=below)
        return assess(reader).abstain

    assert (abstains(0.0), abstains(1.0)) == (False, True)


def test_the_coverage_is_settable(classifier):
    narrow, wide = (assess(ConfidenceReader(classifier, coverage=share)) for share in (0.5, 0.9))
    assert (narrow.term_interval.coverage, wide.term_interval.coverage) == (0.5, 0.9)
    assert ends(wide.term_interval)[1] >= ends(narrow.term_interval)[1]
    assert ends(wide.term_interval)[0] <= ends(narrow.term_interval)[0]


def test_without_agreement_nothing_is_claimed_of_a_models_verdict(plain):
    found = assess(ConfidenceReader(plain, model_manifest=DIGEST))
    assert found.probabilities is None
    assert found.abstain is False
    assert found.term_interval.basis == "classifier"


def test_the_agreement_of_another_model_is_not_used(classifier, caplog):
    with caplog.at_level(logging.WARNING):
        reader = ConfidenceReader(classifier, model_manifest="cd" * 32)
    assert assess(reader).probabilities is None
    assert "judges demo" in caplog.text


def test_the_classifiers_own_verdict_has_its_own_probabilities(reader, classifier):
    answer = classifier.predict(THEFT)
    found = assess(reader, answer.verdict, source="fallback")
    assert found.term_interval.basis == "classifier"
    assert found.probabilities.charge == pytest.approx(answer.confidences["charge"], abs=1e-4)
    assert 0 < found.probabilities.verdict < 1


def test_a_fact_without_letters_has_no_confidence(reader):
    assert reader.assess("，。！", THEFT_VERDICT, False) is None


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"coverage": 0.99}, "up to 0.95"),
        ({"coverage": 0}, "up to 0.95"),
        ({"abstain_below": 1.5}, "abstain_below of 1.5"),
    ],
)
def test_settings_out_of_range_are_refused_at_the_start(classifier, how, message):
    with pytest.raises(ValueError, match=message):
        ConfidenceReader(classifier, **how)


def test_a_folder_without_probabilities_is_refused(plain):
    older = Classifier(plain.labels, plain.vocabulary, _model_of(plain))
    with pytest.raises(ValueError, match="no probabilities"):
        ConfidenceReader(older)


def test_many_charges_may_be_asked_for_and_none_may_not(reader, classifier):
    assert len(assess(reader, top_k=1000).charges) == min(20, len(classifier.labels.charges))
    with pytest.raises(ValueError, match="top_k of 0"):
        assess(reader, top_k=0)


def test_what_is_withheld_are_parts_of_a_defendant():
    whole = build_defendant(THEFT_VERDICT, ALL_TASKS)
    assert set(WITHHELD) < set(Defendant.model_fields)
    bare = whole.model_copy(update=WITHHELD)
    assert (bare.term, bare.fine_yuan, bare.ruling) == (None, None, None)
    assert bare.charges == whole.charges


def test_no_fact_is_logged(reader, caplog):
    with caplog.at_level(logging.DEBUG):
        assess(reader)
    assert THEFT[:8] not in caplog.text


def test_an_assessment_takes_about_half_a_millisecond(reader):
    times = []
    for _ in range(200):
        started = time.perf_counter()
        assess(reader)
        times.append((time.perf_counter() - started) * 1e3)
    assert np.percentile(times, 25) < 2.0  # generous: other work may share the machine
