"""Train the classifier that reads first and stands in last, and export it to ONNX.

    python -m compress.classifier.train --cases artifacts/demo/corpus/train.jsonl \
        --dev artifacts/demo/corpus/dev.jsonl --out artifacts/demo/fallback
    python -m compress.classifier.train ... --folds 4 --candidates artifacts/cail/candidates.jsonl

Linear models over the features of `curt.classifier.model`: one-vs-rest support vectors for charges
and for those articles that a charge brings only sometimes, multinomial logistic regression for
bins of terms; `compress.classifier.details` learns what a term turns on. The dev cases calibrate
the confidences. With `folds`, the training cases get the candidates that a language model learns
from. What ONNX scores them is compared with scikit-learn's `decision_function` before anything is
published.

Only the linear algebra is ONNX. skl2onnx 1.20 was tried for the text: its `TfidfVectorizer` gives
other numbers than scikit-learn with sublinear counts, needs an installed en_US locale to fold
case, and refuses `char_wb`.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import compress
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from compress.classifier.calibration import (
    calibrate,
    calibration_error,
    measure_reliability,
)
from compress.classifier.confidence import fit_uncertainty, measure_confidence, measure_folds
from compress.classifier.details import (
    fit_details,
    has_circumstances_told,
    told_circumstances,
)
from compress.classifier.familiarity import fit_familiarity, share_unfamiliar
from curt.artifact import MANIFEST
from curt.classifier.candidates import write_candidates
from curt.classifier.details import DetailReader, Told
from curt.classifier.familiarity import read_text
from curt.classifier.model import (
    CONFIDENCE,
    DECLARED,
    DETAILS,
    FAMILIARITY,
    MODEL,
    PARTS,
    ArticleHabit,
    Classifier,
    ClassifierManifest,
    Decider,
    Labels,
    Row,
    Vocabulary,
    digest_features,
    extract_features,
    is_right,
    lean_on_calculus,
    load_classifier,
    pack,
)
from curt.config import Config, run
from curt.corpus.case import Case
from curt.corpus.store import read_cases
from curt.files import sha256, whole_folder, write_atomic, write_json, write_rows
from curt.law.statutes import STATUTE_VERSION
from curt.law.term_scale import severity
from curt.law.verdict import Term, TermKind, Verdict
from curt.scores.metrics import cail_term_score, score_verdicts

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

log = logging.getLogger(__name__)

Doubles = npt.NDArray[np.float64]

OPSET, IR_VERSION = 17, 8  # read by every ONNX Runtime from 1.12 on
MAX_PARITY = 1e-4  # largest difference of a score between ONNX (float32) and scikit-learn
MIN_DEV_CASES = 20
CALCULUS_WEIGHTS = (0.0, *map(float, np.geomspace(0.5, 32.0, 13)))
LEAST_LIKELY = -7.0  # in ln: one odd term must not decide alone
ALWAYS, EVER = 0.95, 0.03  # shares of a charge's cases that hold an article
SAME_KIND_BONUS = 0.05  # the CAIL2018 score does not see the kind of a counted term


class ClassifierConfig(Config):
    """Settings of `python -m compress.classifier.train`."""

    cases: Path
    """Case file to train on."""
    dev: Path
    """Case file, apart from the first, that confidences are fitted on."""
    out: Path
    """Where the folder goes; an older one there is replaced when all is well."""
    test: Path | None = None
    """Case file to measure on; the figures go into the manifest as test_*."""
    generated: Path | None = None
    """Case file to train on beside real judgments: it tells harm and circumstances, which they
    don't, and has more of their rare charges. None of its cases gets candidates."""
    features: int = Field(default=32_768, ge=1)
    """How many features to know, those of the most cases first."""
    charge_c: float = Field(default=1.0, gt=0)
    """Inverse regularisation of the classifiers of charges and articles."""
    term_c: float = Field(default=10.0, gt=0)
    """Inverse regularisation of the classifier of terms."""
    term_bin_width: float = Field(default=0.25, gt=0, le=1)
    """Width of a bin of terms in ln(months + 1), the unit of the CAIL2018 term score."""
    folds: int | None = Field(default=None, ge=2)
    """Cross-fitting: each part of the training cases gets its candidates from a classifier that was
    trained without it."""
    candidates: Path | None = None
    """Where the cross-fitted candidates go: a line for each training case, by id."""
    seed: int = 0

    @model_validator(mode="after")
    def _folds_go_with_a_file(self) -> ClassifierConfig:
        if (self.folds is None) != (self.candidates is None):
            raise ValueError("folds and candidates go together: give both or neither")
        return self


def train_classifier(config: ClassifierConfig) -> dict[str, float]:
    """Train, export, compare, measure and publish one classifier folder; returns its evaluation.

    Raises ValueError when a case file is missing, empty or damaged, when there are too few dev
    cases, or when the ONNX model's scores are not scikit-learn's.
    """
    asked, dev = list(read_cases(config.cases)), list(read_cases(config.dev))
    test = list(read_cases(config.test)) if config.test else []
    if not asked:
        raise ValueError(f"{config.cases} holds no cases: give at least one to train on")
    beside = list(read_cases(config.generated)) if config.generated else []
    train = [*asked, *beside]
    if len(dev) < MIN_DEV_CASES:
        raise ValueError(
            f"{config.dev} holds {len(dev)} cases: give at least {MIN_DEV_CASES} to calibrate on"
        )
    started = time.perf_counter()
    vocabulary = learn_vocabulary([case.fact for case in train], config.features)
    verdicts = [case.verdict for case in train]
    labels, bins = learn_labels(verdicts, config.term_bin_width)
    features, dev_features = stack(vocabulary, train), stack(vocabulary, dev)
    matrix, dev_scores = fit_columns(features, dev_features, train, labels, bins, config)
    truths, width = [case.verdict for case in dev], config.term_bin_width
    details, dev_texts = fit_details(beside or train), [read_text(case.fact) for case in dev]
    linear_scores, told = dev_scores, read_told(labels, details, dev_scores, dev_texts)
    labels = fit_calculus(labels, linear_scores, told, truths)
    dev_scores = lean_on_calculus(labels, linear_scores, [one.term for one in told])
    labels = calibrate(labels, dev_scores, truths)
    model = build_onnx(matrix)
    fit = fit_uncertainty(labels, width, dev_scores, truths)
    known = fit_familiarity([case.fact for case in train], [case.fact for case in dev])
    classifier = Classifier(
        labels, vocabulary, model, uncertainty=fit, familiarity=known, details=details
    )
    dev_row, dev_bins = measure_folds(labels, width, dev_scores, truths)
    test_row, test_bins = measure_confidence(classifier, test) if test else ({}, [])
    reliability = {"dev": dev_bins} | ({"test": test_bins} if test else {})
    row = {
        "training_seconds": time.perf_counter() - started,
        "train_cases": float(len(train)),
        "parity_max_difference": compare_scores(classifier, dev, linear_scores),
        **{f"dev_{name}": value for name, value in measure(classifier, dev).items()},
        **{f"dev_{name}": v for name, v in measure_circumstances(classifier, dev).items()},
        **{f"test_{name}": v for name, v in measure_circumstances(classifier, test).items()},
        **{f"dev_{name}": v for name, v in measure_harm(classifier, dev).items()},
        **{f"test_{name}": v for name, v in measure_harm(classifier, test).items()},
        # over the errors of `measure`, which saw the cases the confidences were fitted on
        **measure_reliability(labels, dev_scores, truths),
        **{f"dev_{name}": value for name, value in dev_row.items()},
        **({f"test_{name}": v for name, v in measure(classifier, test).items()} if test else {}),
        **{f"test_{name}": value for name, value in test_row.items()},
        "unfamiliar_threshold": known.threshold,
        **({"test_unfamiliar": share_unfamiliar(known, [c.fact for c in test])} if test else {}),
    }
    if config.candidates:
        apart = details if beside else None  # from the cases that are asked about
        held_out = dev_features, dev_texts, truths
        lines = cross_fit(config, train, len(asked), features, held_out, apart)
        write_rows(
            config.candidates,
            [{"id": case.id, "text": line} for case, line in zip(asked, lines, strict=True)],
        )
    content = {MODEL: model, **pack(labels, vocabulary)}
    content[CONFIDENCE] = fit.model_dump_json(indent=1).encode()
    content[FAMILIARITY], content[DETAILS] = known.pack(), details.pack()
    _publish(config, content, row, reliability)
    return row


def cross_fit(
    config: ClassifierConfig,
    train: Sequence[Case],
    asked: int,
    features: csr_matrix,
    dev: tuple[csr_matrix, Sequence[str], Sequence[Verdict]],
    details: DetailReader | None = None,
) -> list[str]:
    """The lines of the first so many training cases, by classifiers that never saw the case.

    The cases after them train each classifier. What was made of a case (its id goes on after a +)
    lies in the part of the case. The weights of the features are those of all cases: they say
    nothing about verdicts. `details` reads what the term turns on, where it learned from other
    cases; each part has its own reader without.
    """
    assert config.folds
    dev_features, dev_texts, dev_truths = dev
    origins = [case.id.partition("+")[0] for case in train[:asked]]
    drawn = random.Random(config.seed)
    fold_of = {origin: drawn.randrange(config.folds) for origin in sorted(set(origins))}
    folds = np.array([fold_of[origin] for origin in origins] + [-1] * (len(train) - asked))
    lines = [""] * asked
    for fold in range(config.folds):
        others, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if not len(others):
            raise ValueError(f"{len(fold_of)} cases for {config.folds} folds: use fewer folds")
        cases = [train[i] for i in others]
        labels, bins = learn_labels([case.verdict for case in cases], config.term_bin_width)
        matrix, dev_scores = fit_columns(
            features[others], dev_features, cases, labels, bins, config
        )
        reader = details or fit_details(cases)
        told = read_told(labels, reader, dev_scores, dev_texts)
        labels = fit_calculus(labels, dev_scores, told, dev_truths)
        dev_scores = lean_on_calculus(labels, dev_scores, [one.term for one in told])
        labels = calibrate(labels, dev_scores, dev_truths)
        fit = fit_uncertainty(labels, config.term_bin_width, dev_scores, dev_truths)
        scores = features[held] @ matrix[1:] + matrix[0]
        told = read_told(labels, reader, scores, [read_text(train[i].fact) for i in held])
        scores = lean_on_calculus(labels, scores, [one.term for one in told])
        decider = Decider(labels)
        for i, place in enumerate(held.tolist()):
            row = scores[i].astype(np.float32)
            lines[place] = write_candidates(decider, row, fit.temperature, reader, told[i])
        log.info("candidates of part %d of %d", fold + 1, config.folds)
    return lines


def read_told(
    labels: Labels, details: DetailReader, scores: Doubles, texts: Sequence[str]
) -> list[Told]:
    """What each text of `read_text` tells, under the charge that its scores find likeliest."""
    decider = Decider(labels)
    likeliest = map(decider.find_likeliest, scores)
    return [details.read(text, charge) for text, charge in zip(texts, likeliest, strict=True)]


def fit_calculus(
    labels: Labels, scores: Doubles, told: Sequence[Told], truths: Sequence[Verdict]
) -> Labels:
    """The labels with the weight that the computed terms have beside the bins.

    Cases that mostly get the computed term follow the declared law, and it is their answer; for
    others it is the weight at which the true terms' bins are likeliest.
    """
    from scipy.special import log_softmax

    terms = [one.term for one in told]
    pairs = zip(terms, truths, strict=True)
    exact = fmean(t is not None and severity(t) == severity(v.term) for t, v in pairs)
    if exact > 0.5:
        return labels.model_copy(update={"calculus_weight": DECLARED})
    places = np.array([severity(truth.term) for truth in truths])[:, None]
    true = np.abs(labels.severities - places).argmin(axis=1)[:, None]

    def weigh(weight: float) -> Labels:
        return labels.model_copy(update={"calculus_weight": weight})

    def surprise(weight: float) -> float:
        logits = lean_on_calculus(weigh(weight), scores, terms)[:, labels.term_columns]
        likely = np.take_along_axis(log_softmax(logits, axis=1), true, axis=1)
        return -float(np.maximum(likely, LEAST_LIKELY).mean())

    return weigh(min(CALCULUS_WEIGHTS, key=surprise))


def learn_vocabulary(facts: Sequence[str], features: int) -> Vocabulary:
    """The features of the most facts, the smaller hash first among equals, with smoothed idf."""
    seen, cases = np.unique(
        np.concatenate([extract_features(fact)[0] for fact in facts]), return_counts=True
    )
    kept = np.sort(np.argsort(-cases, kind="stable")[:features])
    idf = np.log((1 + len(facts)) / (1 + cases[kept])) + 1  # as scikit-learn smooths it
    return Vocabulary(seen[kept], idf.astype(np.float32))


def stack(vocabulary: Vocabulary, cases: Sequence[Case]) -> csr_matrix:
    """What the runtime sees of each case, without the intercept's row: (cases, features)."""
    from scipy.sparse import csr_matrix

    weighed = [vocabulary.weigh(case.fact) for case in cases]
    starts = np.cumsum([0, *(len(rows) - 1 for rows, _ in weighed)])
    columns = np.concatenate([rows[1:] - 1 for rows, _ in weighed])
    values = np.concatenate([weights[1:] for _, weights in weighed]).astype(np.float64)
    return csr_matrix((values, columns, starts), shape=(len(cases), len(vocabulary.hashes)))


def learn_labels(verdicts: Sequence[Verdict], width: float) -> tuple[Labels, list[int]]:
    """The labels of a corpus, not yet calibrated, and the bin of each verdict's term."""
    charges = sorted({charge for verdict in verdicts for charge in verdict.charges})
    habits = {charge: learn_habit(charge, verdicts) for charge in charges}
    members: dict[tuple[TermKind, int], list[Term]] = defaultdict(list)
    keys = [_bin_of(verdict.term, width) for verdict in verdicts]
    for key, verdict in zip(keys, verdicts, strict=True):
        members[key].append(Term(verdict.term.kind, verdict.term.months))
    ordered = sorted(members)
    # A bin's commonest term stands for it: courts sentence in round numbers.
    terms = [_commonest(members[key]) for key in ordered]
    payoff = [[fmean(_earn(term, truth) for truth in members[key]) for key in ordered]
              for term in terms]  # fmt: skip
    labels = Labels(
        charges=tuple(charges),
        articles=tuple(sorted({a for habit in habits.values() for a in habit.sometimes})),
        habits=habits,
        terms=tuple(terms),
        payoff=tuple(map(tuple, payoff)),
    )
    return labels, [ordered.index(key) for key in keys]


def learn_habit(charge: str, verdicts: Sequence[Verdict]) -> ArticleHabit:
    """Which articles a charge brings, from cases of it alone where there are any."""
    held = [v.articles for v in verdicts if charge in v.charges]
    alone = [v.articles for v in verdicts if v.charges == (charge,)]
    sets = alone or held
    counts = Counter(article for articles in sets for article in articles)
    shares = {article: count / len(sets) for article, count in counts.items()}
    usual, _ = min(Counter(sets).items(), key=lambda item: (-item[1], item[0]))
    return ArticleHabit(
        always=tuple(sorted(a for a, share in shares.items() if share >= ALWAYS)),
        sometimes=tuple(sorted(a for a, share in shares.items() if EVER <= share < ALWAYS)),
        usual=usual,
    )


def fit_columns(
    features: csr_matrix,
    dev_features: csr_matrix,
    cases: Sequence[Case],
    labels: Labels,
    bins: Sequence[int],
    config: ClassifierConfig,
) -> tuple[Doubles, Doubles]:
    """Fit every column: charges, open articles, bins of terms.

    Returns the weights (1 + features, columns), intercepts first, and what scikit-learn itself
    scores the dev cases (dev cases, columns).
    """
    from joblib import Parallel, delayed

    columns = [
        *([charge in case.verdict.charges for case in cases] for charge in labels.charges),
        *([article in case.verdict.articles for case in cases] for article in labels.articles),
    ]
    # Processes and no threads: the solver's random numbers are one sequence in each process. The
    # bins, one long fit on one core, go first: the columns share the other cores meanwhile.
    terms, *fitted = Parallel(n_jobs=-1)(
        [
            delayed(_fit_terms)(features, dev_features, bins, config.term_c),
            *(
                delayed(_fit_column)(features, dev_features, truth, config.charge_c, config.seed)
                for truth in columns
            ),
        ]
    )
    fitted += terms
    weights, scores = zip(*fitted, strict=True)
    matrix = np.column_stack(weights)
    if not np.isfinite(matrix).all():
        raise ValueError("a weight is not finite: lower charge_c or term_c")
    return matrix, np.column_stack(scores)


def _fit_column(
    features: csr_matrix, dev_features: csr_matrix, truth: list[bool], c: float, seed: int
) -> tuple[Doubles, Doubles]:
    """The weights of a support vector machine, intercept first, and its scores of the dev cases."""
    from sklearn.svm import LinearSVC

    if all(truth):  # nothing to tell apart
        return np.eye(1, 1 + features.shape[1])[0], np.ones(dev_features.shape[0])
    machine = LinearSVC(C=c, random_state=seed).fit(features, truth)
    return np.append(machine.intercept_, machine.coef_[0]), machine.decision_function(dev_features)


def _fit_terms(
    features: csr_matrix, dev_features: csr_matrix, bins: Sequence[int], c: float
) -> list[tuple[Doubles, Doubles]]:
    """For each bin of terms, what `_fit_column` returns for a charge."""
    from sklearn.linear_model import LogisticRegression

    if len(set(bins)) == 1:
        return [(np.zeros(1 + features.shape[1]), np.zeros(dev_features.shape[0]))]
    model = LogisticRegression(C=c, max_iter=500, tol=1e-3).fit(features, bins)
    rows = np.column_stack([model.intercept_, model.coef_])  # (bins, 1 + features)
    logits = model.decision_function(dev_features).T  # (bins, dev cases)
    if len(rows) == 1:  # two bins come as the log-odds of the second
        rows, logits = np.vstack([-rows, rows]) / 2, np.vstack([-logits, logits]) / 2
    return list(zip(rows, logits, strict=True))


def build_onnx(matrix: Doubles) -> bytes:
    """The model in float32: scores = weights @ matrix[rows], of shape (1, columns)."""
    from onnx import TensorProto, checker, helper, numpy_helper

    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["matrix", "rows"], ["found"], axis=0),  # (n, columns)
            helper.make_node("MatMul", ["weights", "found"], ["scores"]),
        ],
        "fallback",
        [
            helper.make_tensor_value_info("rows", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("weights", TensorProto.FLOAT, [1, "n"]),
        ],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, matrix.shape[1]])],
        [numpy_helper.from_array(matrix.astype(np.float32), "matrix")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    checker.check_model(model)
    return bytes(model.SerializeToString())


def compare_scores(classifier: Classifier, cases: Sequence[Case], expected: Doubles) -> float:
    """The largest difference of a score from scikit-learn's; ValueError above `MAX_PARITY`."""
    difference = float(np.abs([classifier.score_features(c.fact) for c in cases] - expected).max())
    if not difference <= MAX_PARITY:
        raise ValueError(
            f"the ONNX model is {difference:.3g} from scikit-learn, more than {MAX_PARITY}: "
            "lower charge_c or term_c"
        )
    return difference


def measure(classifier: Classifier, cases: Sequence[Case]) -> dict[str, float]:
    """Scores of `curt.scores.metrics`, calibration errors, milliseconds a request (one thread)."""
    answers, times_ms = [], []
    for case in cases:
        started = time.perf_counter()
        answers.append(classifier.predict(case.fact))
        times_ms.append((time.perf_counter() - started) * 1000)
    truths = [case.verdict for case in cases]
    scores = score_verdicts([answer.verdict for answer in answers], truths)
    row = {"latency_p50_ms": float(np.percentile(times_ms, 50)),
           "latency_p99_ms": float(np.percentile(times_ms, 99)), **scores}  # fmt: skip
    for part in PARTS:
        right = [is_right(part, a.verdict, t) for a, t in zip(answers, truths, strict=True)]
        sure = np.array([answer.confidences[part] for answer in answers])
        row[f"{part}_ece"] = calibration_error(sure, np.array(right))
    return row


def measure_circumstances(classifier: Classifier, cases: Sequence[Case]) -> dict[str, float]:
    """Micro-F1 of the circumstances found, over the cases that tell theirs; empty without any."""
    asked = list(compress(cases, has_circumstances_told(cases)))
    if not asked or not classifier.details:
        return {}
    pairs = [
        (
            set(
                classifier.details.find_circumstances(read_text(case.fact), case.verdict.charges[0])
            ),
            told_circumstances(case),
        )
        for case in asked
    ]
    both = sum(len(found & told) for found, told in pairs)
    return {"circumstance_micro_f1": 2 * both / sum(len(f) + len(t) for f, t in pairs)}


def measure_harm(classifier: Classifier, cases: Sequence[Case]) -> dict[str, float]:
    """How often the harm is read right where the charge is known, over the cases that tell it."""
    asked = [case for case in cases if case.harm and len(case.verdict.charges) == 1]
    if not asked or not classifier.details:
        return {}
    right = 0
    for case in asked:
        told = classifier.details.read_harm(read_text(case.fact), case.verdict.charges[0])
        right += told.rpartition("=")[2] == case.harm.rpartition("=")[2]
    return {"harm_accuracy": right / len(asked)}


def _bin_of(term: Term, width: float) -> tuple[TermKind, int]:
    return term.kind, math.floor(math.log(term.months + 1) / width)


def _commonest(terms: Sequence[Term]) -> Term:
    counts = Counter(terms)
    return min(counts, key=lambda term: (-counts[term], term.months))


def _earn(answer: Term, truth: Term) -> float:
    return cail_term_score(answer, truth) + SAME_KIND_BONUS * (answer.kind == truth.kind)


def _publish(
    config: ClassifierConfig,
    content: dict[str, bytes],
    row: dict[str, float],
    reliability: dict[str, list[Row]],
) -> None:
    tools = ("numpy", "onnx", "onnxruntime", "scikit-learn")
    with whole_folder(config.out) as folder:
        for name, data in content.items():
            write_atomic(folder / name, data)
        manifest = ClassifierManifest(
            features=digest_features(),
            statute_version=STATUTE_VERSION,
            config=config.model_dump(mode="json"),
            evaluation=row,
            reliability=reliability,
            tools={tool: version(tool) for tool in tools},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            files={name: sha256(folder / name) for name in sorted(content)},
        )
        write_json(folder / MANIFEST, manifest.model_dump())
        load_classifier(folder)


def work(config: ClassifierConfig) -> None:
    """Train and publish as the configuration says."""
    log.info("%s", json.dumps(train_classifier(config), indent=1))
    log.info("%s is ready", config.out)


if __name__ == "__main__":
    run(ClassifierConfig, work)
