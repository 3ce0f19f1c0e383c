from __future__ import annotations

import atexit
import json
import random
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from compress.classifier.calibration import calibration_error, fit_platt
from compress.classifier.details import fit_details
from compress.classifier.train import (
    ClassifierConfig,
    build_onnx,
    fit_calculus,
    learn_habit,
    learn_labels,
    learn_vocabulary,
    measure,
    read_told,
    train_classifier,
    work,
)
from curt.artifact import MANIFEST, ArtifactError
from curt.classifier.familiarity import read_text
from curt.classifier.model import (
    CONFIDENCE,
    DECLARED,
    DETAILS,
    FAMILIARITY,
    LABELS,
    MODEL,
    VOCABULARY,
    Classifier,
    Decider,
    Vocabulary,
    extract_features,
    lean_on_calculus,
    load_classifier,
)
from curt.config import run
from curt.corpus.case import Case
from curt.corpus.read.cail import RECOMMENDATION, read_records
from curt.corpus.read.records import RecordError
from curt.corpus.store import read_cases, write_cases
from curt.law.verdict import Term, Verdict
from curt.scores.metrics import cail_term_score
from tests.cases import common_cases

THEFT = "经审理查明，2019年5月26日，被告人张某在某市车站趁王某不备，秘密窃取王某现金8000元。"
STRANGE = [
    "ᚠᚢᚦ",
    "窃",
    "ABC 123",
    "Ａ" * 5000,
    THEFT * 200,
    "𠮷野\ud800盗窃",
    "1万余元、2部手机、3.5克",
]


def write_splits(folder: Path, train: list[Case] | None = None, dev: int = 60) -> ClassifierConfig:
    """A corpus of generated cases and the settings that train on it."""
    write_cases(folder / "train.jsonl", train or common_cases(400, "train"))
    write_cases(folder / "dev.jsonl", common_cases(dev, "dev"))
    return ClassifierConfig(
        cases=folder / "train.jsonl",
        dev=folder / "dev.jsonl",
        out=folder / "fallback",
        features=4000,
    )


def train_splits(folder: Path, dev: int = 60) -> ClassifierConfig:
    """`write_splits`, and its classifier in `fallback`, trained once in a test process."""
    config = write_splits(folder, dev=dev)
    shutil.copytree(_trained(dev), config.out)
    return config


@cache
def _trained(dev: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="curt-tests-"))
    atexit.register(shutil.rmtree, folder)
    config = write_splits(folder, dev=dev)
    train_classifier(config)
    return config.out


def make_fallback(folder: Path) -> Path:
    """A fallback folder trained on a few hundred generated cases."""
    return train_splits(folder).out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ClassifierConfig:
    return train_splits(tmp_path_factory.mktemp("fallback"))


def count_features(vocabulary: Vocabulary, facts: list[str]) -> csr_matrix:
    """Raw counts by a dictionary: what CountVectorizer would have counted."""
    places = {int(h): i for i, h in enumerate(vocabulary.hashes)}
    table = np.zeros((len(facts), len(places)))
    for row, fact in enumerate(facts):
        for feature, count in zip(*extract_features(fact), strict=True):
            if int(feature) in places:
                table[row, places[int(feature)]] = count
    return csr_matrix(table)


def test_onnx_scores_are_those_of_scikit_learn_on_every_test_text(made):
    """The whole way is done again with scikit-learn's own parts, from counts to scores."""
    classifier = load_classifier(made.out)
    train = list(read_cases(made.cases))
    counts = count_features(classifier.vocabulary, [case.fact for case in train])
    tfidf = TfidfTransformer(sublinear_tf=True).fit(counts)
    features = tfidf.transform(counts)
    texts = [case.fact for case in common_cases(200, "test")] + STRANGE
    asked = tfidf.transform(count_features(classifier.vocabulary, texts))

    columns = []
    for charge in classifier.labels.charges:
        truth = [charge in case.verdict.charges for case in train]
        machine = LinearSVC(C=made.charge_c, random_state=made.seed).fit(features, truth)
        columns.append(machine.decision_function(asked))
    for article in classifier.labels.articles:
        truth = [article in case.verdict.articles for case in train]
        machine = LinearSVC(C=made.charge_c, random_state=made.seed).fit(features, truth)
        columns.append(machine.decision_function(asked))
    _, bins = learn_labels([case.verdict for case in train], made.term_bin_width)
    model = LogisticRegression(C=made.term_c, max_iter=500, tol=1e-3).fit(features, bins)
    logits = model.decision_function(asked)
    expected = np.column_stack([*columns, logits])

    found = np.array([classifier.score_features(text) for text in texts])
    width = len(classifier.labels.charges) + len(classifier.labels.articles)
    # idf is kept in float32, so the support vectors may differ in their last steps
    np.testing.assert_allclose(found[:, :width], expected[:, :width], atol=2e-3)
    np.testing.assert_array_equal(found[:, :width] > 0, expected[:, :width] > 0)
    np.testing.assert_allclose(found[:, width:], expected[:, width:], atol=2e-2)
    for text, row in zip(texts, expected.astype(np.float32), strict=True):
        answer, own = classifier.predict(text).verdict, classifier.decider.decide(row).verdict
        assert (answer.charges, answer.articles) == (own.charges, own.articles)
    assert classifier.manifest.evaluation["parity_max_difference"] < 1e-4


def test_circumstances_and_harm_are_measured(tmp_path):
    config = write_splits(tmp_path, common_cases(2000, "train"))
    row = train_classifier(config.model_copy(update={"features": 8000}))
    # the term is computed from both, which a bin of terms hardly ever hits
    assert row["dev_exact"] > 0.5
    assert 0.7 < row["dev_circumstance_micro_f1"] <= 1
    assert 0.7 < row["dev_harm_accuracy"] <= 1
    assert "test_circumstance_micro_f1" not in row


def test_cases_of_a_source_without_circumstances_teach_none(tmp_path):
    train = common_cases(400, "train")
    silent = [
        replace(case, id=f"{case.id}-silent", traits=(RECOMMENDATION,), source="court", harm="")
        for case in train
        if "自首" in case.traits
    ]
    config = write_splits(tmp_path, [*train, *silent * 2])
    train_classifier(config)
    details = load_classifier(config.out).details
    named = ["自首" in details.find_circumstances(read_text(case.fact), "") for case in silent]
    assert np.mean(named) > 0.85


def test_a_folder_without_details_still_loads(tmp_path):
    config = train_splits(tmp_path)
    (config.out / DETAILS).unlink()
    manifest = json.loads((config.out / MANIFEST).read_text())
    del manifest["files"][DETAILS]
    (config.out / MANIFEST).write_text(json.dumps(manifest))
    classifier = load_classifier(config.out)
    assert classifier.details is None
    assert classifier.predict(THEFT).verdict.charges == ("盗窃",)


def test_weights_are_those_of_scikit_learns_tfidf():
    facts = [case.fact for case in common_cases(50, 3)]
    vocabulary = learn_vocabulary(facts, 10_000)
    texts = [*facts, *STRANGE]
    tfidf = TfidfTransformer(sublinear_tf=True).fit(count_features(vocabulary, facts))
    expected = tfidf.transform(count_features(vocabulary, texts)).toarray()
    found = np.zeros_like(expected)
    for row, text in enumerate(texts):
        places, weights = vocabulary.weigh(text)
        found[row, places[1:] - 1] = weights[1:]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 12))
def test_the_graph_multiplies_as_numpy_does(seed, features, columns):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(features, columns))
    rows = rng.integers(0, features, size=rng.integers(1, 30))
    weights = rng.random((1, len(rows)), np.float32)
    session = ort.InferenceSession(build_onnx(matrix), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"rows": rows, "weights": weights})
    np.testing.assert_allclose(scores, weights @ matrix[rows], atol=1e-4)


def test_a_second_training_gives_the_same_bytes(made, tmp_path):
    train_classifier(made.model_copy(update={"out": tmp_path / "again"}))
    for name in (MODEL, VOCABULARY, LABELS, CONFIDENCE):
        assert (tmp_path / "again" / name).read_bytes() == (made.out / name).read_bytes()


def test_generated_cases_are_learnt(made):
    classifier = load_classifier(made.out)
    row = measure(classifier, common_cases(200, "test"))
    truths = [case.verdict.term for case in common_cases(200, "test")]
    constant = max(
        np.mean([cail_term_score(Term("fixed", months), truth) for truth in truths])
        for months in range(6, 121, 6)
    )
    assert row["charge_micro_f1"] > 0.95
    assert row["article_micro_f1"] > 0.95
    assert row["term_score_official"] > constant
    assert 0 < row["latency_p50_ms"] <= row["latency_p99_ms"]


def test_the_manifest_tells_scores_calibration_and_tools(made):
    manifest = load_classifier(made.out).manifest
    for part in ("charge", "article", "term"):
        assert 0 <= manifest.evaluation[f"dev_{part}_ece"] < 0.25
    assert {"dev_charge_micro_f1", "dev_term_score_official", "training_seconds"} <= set(
        manifest.evaluation
    )
    assert set(manifest.tools) == {"numpy", "onnx", "onnxruntime", "scikit-learn"}
    assert set(manifest.files) == {MODEL, VOCABULARY, LABELS, CONFIDENCE, FAMILIARITY, DETAILS}
    places = made.model_dump(include={"cases", "dev", "out"})  # it was trained elsewhere
    assert ClassifierConfig(**manifest.config | places) == made


def test_an_older_folder_stays_when_training_fails(made, monkeypatch):
    before = (made.out / MANIFEST).read_bytes()
    monkeypatch.setattr("compress.classifier.train.MAX_PARITY", -1.0)
    with pytest.raises(ValueError, match="from scikit-learn"):
        train_classifier(made)
    assert (made.out / MANIFEST).read_bytes() == before
    assert {path.name for path in made.out.iterdir()} == {
        *(MANIFEST, MODEL, VOCABULARY, LABELS, CONFIDENCE, FAMILIARITY, DETAILS)
    }


def test_a_charge_seen_once_can_be_answered(tmp_path):
    odd = "被告人李某在江边设置电网捕杀国家重点保护的野生动物穿山甲五只并熏制。"
    verdict = Verdict(("非法猎捕、杀害珍贵、濒危野生动物",), ("341",), Term("fixed", 60))
    train = [*common_cases(300, "train"), Case("odd", odd, verdict, "test")]
    config = write_splits(tmp_path, train)
    train_classifier(config)
    answer = load_classifier(config.out).predict(odd)
    assert answer.verdict.charges == verdict.charges
    assert answer.verdict.articles == ("341",)


@pytest.mark.parametrize("bins", [1, 2])
def test_a_corpus_of_one_charge_and_hardly_a_term_can_be_learnt(tmp_path, bins):
    train = [
        Case(f"c{i}", f"{THEFT}另查明{i}", Verdict(("盗窃",), ("264",), Term("fixed", months)), "t")
        for i, months in enumerate([8, 36] * 10)
        if bins == 2 or months == 8
    ]
    config = write_splits(tmp_path, train)
    train_classifier(config)
    classifier = load_classifier(config.out)
    assert len(classifier.labels.terms) == bins
    assert classifier.predict(THEFT).verdict.charges == ("盗窃",)
    assert classifier.predict(THEFT).verdict.term.months in (8, 36)


def test_the_computed_term_is_the_answer_where_cases_follow_the_declared_law(tmp_path):
    cases = common_cases(300, "weighed")
    details = fit_details(cases)
    texts = [read_text(case.fact) for case in cases]
    truths = [case.verdict for case in cases]
    labels, bins = learn_labels(truths, 0.25)
    width = len(labels.charges) + len(labels.articles)
    scores = np.zeros((len(cases), labels.term_columns.stop))
    for row, (case, bin_) in enumerate(zip(cases, bins, strict=True)):
        scores[row, labels.charges.index(case.verdict.charges[0])] = 1
        scores[row, width + bin_] = 1
    told = read_told(labels, details, scores, texts)
    declared = fit_calculus(labels, scores, told, truths)
    assert declared.calculus_weight == DECLARED
    drawn = lean_on_calculus(declared, scores, [one.term for one in told])
    decider = Decider(declared)
    for one, row in zip(told, drawn, strict=True):
        assert one.term is None or decider.decide(row).verdict.term == one.term

    rng = np.random.default_rng(0)
    courts = [
        replace(v, term=Term("fixed", max(6, round(v.term.months * rng.uniform(0.6, 1.5)))))
        for v in truths
    ]
    assert 0 < fit_calculus(labels, scores * 0, told, courts).calculus_weight < DECLARED
    others = [courts[place] for place in rng.permutation(len(courts))]
    assert fit_calculus(labels, scores * 0, told, others).calculus_weight < 1.5


def test_habits_tell_settled_articles_from_open_ones():
    theft, term = ("盗窃",), Term("fixed", 8)
    verdicts = [Verdict(theft, ("264", "67") if i % 3 else ("264",), term) for i in range(30)]
    verdicts.append(Verdict(("盗窃", "诈骗"), ("264", "266"), term))
    habit = learn_habit("盗窃", verdicts)
    assert (habit.always, habit.sometimes) == (("264",), ("67",))
    assert set(habit.usual) == {"264", "67"}
    assert learn_habit("诈骗", verdicts).always == ("264", "266")  # never seen alone


def test_a_bin_is_represented_by_its_commonest_term():
    terms = [Term("fixed", 36), Term("fixed", 36), Term("fixed", 35), Term("detention", 4)]
    terms += [Term("death"), Term("exempt")]
    labels, bins = learn_labels([Verdict(("盗窃",), ("264",), t) for t in terms], 0.25)
    assert set(labels.terms) == {Term("fixed", 36), *terms[3:]}
    assert [labels.terms[b] for b in bins] == [Term("fixed", 36)] * 3 + terms[3:]
    payoff = np.array(labels.payoff)
    assert (payoff.argmax(axis=1) == np.arange(len(payoff))).all()


def test_the_vocabulary_keeps_the_features_of_most_facts():
    vocabulary = learn_vocabulary(["盗窃", "盗"], 1)
    assert vocabulary.hashes.tolist() == extract_features("盗")[0].tolist()
    assert vocabulary.idf.tolist() == [1.0]


@pytest.mark.parametrize("right", [True, False])
def test_calibration_on_one_outcome_stays_short_of_certainty(right):
    fit = fit_platt(np.zeros((50, 1)), np.full(50, right))
    assert 0.9 < (fit.confidence((0.0,)) if right else 1 - fit.confidence((0.0,))) < 1


def test_calibration_recovers_known_odds():
    rng = np.random.default_rng(5)
    evidence = rng.normal(size=(4000, 1))
    right = rng.random(4000) < 1 / (1 + np.exp(-(2 * evidence[:, 0] - 1)))
    fit = fit_platt(evidence, right)
    assert fit.weights[0] == pytest.approx(2, abs=0.2)
    assert fit.bias == pytest.approx(-1, abs=0.2)
    sure = np.array([fit.confidence(tuple(e)) for e in evidence])
    assert calibration_error(sure, right) < 0.03


def test_calibration_error_is_the_gap_between_claim_and_fact():
    assert calibration_error(np.array([0.9, 0.9, 1.0]), np.array([True, True, True])) < 0.07
    assert calibration_error(np.full(4, 0.75), np.array([True] * 3 + [False])) == pytest.approx(0)
    assert calibration_error(np.array([1.0, 0.0]), np.array([False, True])) == pytest.approx(1)


def test_a_missing_case_file_is_named_and_leaves_nothing(tmp_path):
    arguments = ["--cases", str(tmp_path / "none.jsonl"), "--dev", str(tmp_path / "none.jsonl")]
    with pytest.raises(SystemExit, match=r"no case file .*none\.jsonl"):
        run(ClassifierConfig, work, [*arguments, "--out", str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []


def test_too_few_dev_cases_are_refused(tmp_path):
    config = write_splits(tmp_path, dev=19)
    with pytest.raises(ValueError, match="holds 19 cases: give at least 20"):
        train_classifier(config)
    assert not config.out.exists()


def test_no_training_cases_are_refused(tmp_path):
    config = write_splits(tmp_path)
    config.cases.write_text("")
    with pytest.raises(ValueError, match="holds no cases"):
        train_classifier(config)


def test_a_folder_without_its_model_is_refused_after_main(tmp_path, caplog):
    config = write_splits(tmp_path)
    with caplog.at_level("INFO"):
        work(config.model_copy(update={"features": 500, "test": config.dev}))
    assert "test_charge_micro_f1" in caplog.text
    assert THEFT[:8] not in caplog.text
    (config.out / MODEL).unlink()
    with pytest.raises(ArtifactError, match=r"lacks model\.onnx"):
        load_classifier(config.out)


@pytest.mark.slow
def test_a_random_tenth_of_real_cases_is_above_the_floor(real_cases, tmp_path):
    """.85 charge and .82 article micro-F1, .57 of the term score, on a tenth; half for training."""
    cases: dict[str, Case] = {}
    for name in ("train", "dev", "test"):
        with open(real_cases / f"{name}.json", encoding="utf-8") as file:
            for line in file:
                try:
                    case = next(read_records(json.loads(line)))
                except RecordError:
                    continue
                cases[case.id] = case
    shuffled = list(cases.values())
    random.Random(7).shuffle(shuffled)
    tenth = len(shuffled) // 10
    splits = {"test": shuffled[:tenth], "dev": shuffled[tenth : 2 * tenth]}
    splits["train"] = shuffled[2 * tenth : 7 * tenth]
    for name, split in splits.items():
        write_cases(tmp_path / f"{name}.jsonl", split)
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("dev", "test")}
    row = train_classifier(
        ClassifierConfig(cases=tmp_path / "train.jsonl", out=tmp_path / "fallback", **paths)
    )
    assert row["test_charge_micro_f1"] >= 0.85
    assert row["test_article_micro_f1"] >= 0.82
    assert row["test_term_score_official"] >= 0.57
    assert row["test_latency_p50_ms"] < 5
    classifier = load_classifier(tmp_path / "fallback")
    assert isinstance(classifier, Classifier)
