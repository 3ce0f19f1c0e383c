"""Learn to read what a term turns on (`curt.classifier.details`) from cases that tell it."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import compress, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from compress.classifier.calibration import Booleans
from curt.classifier.details import (
    CLASSES,
    HASHES,
    DetailReader,
    Floats,
    Hints,
    Integers,
    Scale,
    SentenceReader,
    Signs,
    hash_figure,
    hash_sentences,
    hash_signs,
    name_roles,
    read_figures_in,
    split_sentences,
    split_sum,
)
from curt.classifier.familiarity import read_text
from curt.corpus.case import AUGMENTATIONS, Case
from curt.corpus.generate.calculus import Offence, circumstances, offences
from curt.corpus.generate.generator import generate_marked
from curt.corpus.read.cail import RECOMMENDATION
from curt.corpus.read.judgments import COMBINED
from curt.law.figures import COUNTS, MEASURES

Doubles = npt.NDArray[np.float64]

NO_CIRCUMSTANCES = AUGMENTATIONS | {RECOMMENDATION, COMBINED}  # what else a trait may say
MOST_HINTS = 60  # of the grades of one charge, or of one circumstance
OWN_WEIGHT = 3  # of a name's own runs, beside other hints
HINT_C = 0.1  # inverse regularisation
NEVER = -1.0  # weight of every feature for a class that no case showed
SIGN_C = 0.1  # likewise, of sentences with a sign
SENTENCE_C = 0.1  # and of all sentences
MIN_TOLD = 20  # cases that a circumstance needs
MARKED_CASES = 200  # a charge, whose sentences teach the circumstances that it alone has
MIN_CASES = 4  # of a charge, to learn its grades from


def fit_details(cases: Sequence[Case]) -> DetailReader:
    """The reader of the harm and the circumstances that some cases tell."""
    told: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if case.harm and len(case.verdict.charges) == 1:
            told[case.verdict.charges[0]].append(case)
    units = {charge: unit for charge, own in sorted(told.items())
             if (unit := _find_unit([case.harm for case in own]))}  # fmt: skip
    grades = {}
    for charge, own in sorted(told.items()):
        if charge not in units and len(own) >= MIN_CASES:
            grades[charge] = _fit_grades(own)
    counted = [case for charge in units for case in told[charge]]
    own = {}
    if any(has_circumstances_told(cases)):
        own = {charge: reader for charge in sorted(told) if (reader := _fit_own(charge))}
    return DetailReader(
        units,
        *([_fit_figures(counted, units)] if counted else []),
        grades=grades,
        shared=_fit_signs(cases),
        barred={charge: names for charge in sorted(told) if (names := _find_barred(charge))},
        own=own,
        scales={charge: _read_scale(offences()[charge]) for charge in told if charge in offences()},
        ratios={one.name: one.ratio for one in circumstances().values()} if told else {},
    )


def _read_scale(offence: Offence) -> Scale:
    size = 10**offence.decimals
    return Scale(
        unit=offence.unit,
        brackets=tuple((b.threshold / size, b.months, b.every / size) for b in offence.brackets),
        grades={grade.name: grade.months for grade in offence.grades},
        fine=offence.fine,
        ceiling=offence.ceiling,
        ratios={one.name: one.ratio for one in offence.circumstances.values()},
    )


def _find_barred(charge: str) -> tuple[str, ...]:
    """What goes with harm alone where money was taken, and the other way round; and 累犯 where
    the law knows none, of negligence."""
    if charge not in offences():
        return ()
    offence = offences()[charge]
    other = {"money", "harmed"} - offence.kinds
    return tuple(
        name
        for name, one in circumstances().items()
        if (name == "累犯" and name in offence.without)
        or (len(other) == 1 and one.only and one.only <= other)
    )


def told_circumstances(case: Case) -> frozenset[str]:
    """A case's traits but for those that say something else than a circumstance."""
    return frozenset(case.traits) - NO_CIRCUMSTANCES


def has_circumstances_told(cases: Sequence[Case]) -> Booleans:
    """Which cases are of a source that tells circumstances: there, one not told is absent."""
    sources = {case.source for case in cases if told_circumstances(case)}
    return np.array([case.source in sources for case in cases], bool)


def _find_unit(harms: Sequence[str]) -> str:
    """The unit of quantities; empty for grades."""
    if not all(harm[0].isdigit() for harm in harms):
        return ""
    found = [unit for unit in (*MEASURES, *COUNTS) if harms[0].endswith(unit)]
    return max(found, key=len, default="")


def _fit_grades(cases: Sequence[Case]) -> Hints:
    from sklearn.svm import LinearSVC

    counts = Counter(case.harm for case in cases)
    names = tuple(sorted(counts, key=lambda name: (-counts[name], name)))
    if len(names) == 1:
        return Hints(names, (), np.zeros((1, 1), np.float32))
    texts = [name_roles(read_text(case.fact)) for case in cases]
    truth = np.array([names.index(case.harm) for case in cases])
    runs, held = _count_runs(texts)
    own = {run for name in names for run in (name, *map("".join, pairwise(name)))}
    hints, matrix = _choose_hints(runs, held, truth, own, texts)
    scale = np.array([OWN_WEIGHT if hint in own else 1.0 for hint in hints])
    machine = LinearSVC(C=HINT_C, class_weight="balanced", random_state=0)
    machine.fit(matrix * scale, truth)
    weights, intercepts = machine.coef_ * scale, machine.intercept_
    if len(names) == 2:  # one column: the second's
        weights, intercepts = np.vstack([-weights, weights]), np.append(-intercepts, intercepts)
    return Hints(names, hints, np.vstack([intercepts[None, :], weights.T]).astype(np.float32))


def _fit_signs(cases: Sequence[Case]) -> Signs:
    """Sentences with a sign, labelled by whether their case has the circumstance."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    telling = list(compress(cases, has_circumstances_told(cases)))
    counts = Counter(name for case in telling for name in case.traits)
    names = [name for name in circumstances() if counts[name] >= MIN_TOLD]
    texts = [name_roles(read_text(case.fact)) for case in telling]
    sentences = [split_sentences(text) for text in texts]
    weights = np.zeros((len(names), HASHES), np.float32)
    barred = {charge: _find_barred(charge) for case in telling for charge in case.verdict.charges}
    for name, row in zip(names, weights, strict=True):
        found: list[Integers] = []
        truth: list[bool] = []
        for case, text, spans in zip(telling, texts, sentences, strict=True):
            if name in barred[case.verdict.charges[0]]:
                continue
            own = list(hash_signs(text, spans, circumstances()[name].signs))
            found += own
            truth += [name in case.traits] * len(own)
        if len(set(truth)) < 2:
            row[0] = -1.0
            continue
        starts = np.cumsum([0, *map(len, found)])
        columns = np.concatenate(found)
        matrix = csr_matrix((np.ones(len(columns)), columns, starts), (len(found), HASHES))
        model = LogisticRegression(C=SIGN_C, max_iter=200, tol=1e-3, fit_intercept=False)
        row[:] = model.fit(matrix, truth).coef_[0]
    known = [circumstances()[name] for name in names]
    return Signs(
        tuple(names), tuple(c.group for c in known), tuple(c.signs for c in known), weights
    )


@cache
def _fit_own(charge: str) -> SentenceReader | None:
    """The circumstances that no other charge has; None for a charge without any.

    They are rare, and of a case's dozen sentences one tells it: the generator says which.
    """
    if charge not in offences() or not (names := tuple(offences()[charge].circumstances)):
        return None
    marked = generate_marked(charge, MARKED_CASES, "marked")
    return _fit_names(names, [row for case, told in marked if (row := _mark(case, told))])


def _mark(case: Case, told: Sequence[str]) -> tuple[Integers, Integers, dict[str, int]] | None:
    """A case's hashed sentences, and in which of them each of its traits is told.

    None where a name holds the end of a sentence, so that roles put for names move them.
    """
    text = read_text(case.fact)
    named, spans = name_roles(text), split_sentences(text)
    if len(spans) != len(split_sentences(named)):
        return None
    ends = [end for _, end in spans]
    where = {
        name: bisect_right(ends, place)
        for name, words in zip(case.traits, told, strict=True)
        if (place := text.find(read_text(words).rstrip("。；"))) >= 0
    }
    return *hash_sentences(named), where


def _fit_names(
    names: tuple[str, ...], rows: Sequence[tuple[Integers, Integers, dict[str, int]]]
) -> SentenceReader:
    """A balanced logistic regression a name, over every sentence of the rows."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    offsets = np.cumsum([0, *(len(hashes) for hashes, _, _ in rows)])
    starts = [begins + offset for (_, begins, _), offset in zip(rows, offsets, strict=False)]
    columns = np.concatenate([hashes for hashes, _, _ in rows])
    edges = np.concatenate([*starts, offsets[-1:]])
    matrix = csr_matrix(
        (np.ones(len(columns), np.float32), columns, edges), (len(edges) - 1, HASHES + 1)
    )
    matrix.sum_duplicates()
    weights = np.zeros((HASHES + 1, len(names)), np.float32)
    for column, name in enumerate(names):
        truth = np.concatenate(
            [np.arange(len(begins)) == where.get(name, -1) for _, begins, where in rows]
        )
        if not truth.any():
            weights[HASHES, column] = NEVER
            continue
        model = LogisticRegression(
            C=SENTENCE_C, max_iter=200, tol=1e-3, fit_intercept=False, class_weight="balanced"
        )
        weights[:, column] = model.fit(matrix, truth).coef_[0]
    return SentenceReader(names, weights)


def _count_runs(texts: Sequence[str], least: int = 2) -> tuple[NDArray[Any], Any]:
    """The runs of two to six characters that `least` texts hold, and which text holds which."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(
        analyzer="char", ngram_range=(2, 6), min_df=least, binary=True, lowercase=False
    )
    held = counter.fit_transform(texts)
    return counter.get_feature_names_out(), held


def _choose_hints(
    runs: NDArray[Any], held: Any, truth: NDArray[Any], own: set[str], texts: Sequence[str]
) -> tuple[tuple[str, ...], Doubles]:
    """The runs that tell most, with the names' own, and which text holds which: (texts, hints)."""
    from sklearn.feature_selection import chi2

    telling = np.nan_to_num(chi2(held, truth)[0])
    order = np.argsort(-telling, kind="stable")[:MOST_HINTS]
    places = {str(runs[place]): place for place in order}
    hints = tuple(sorted(own | places.keys()))
    columns = [
        held[:, [places[hint]]].toarray()[:, 0]
        if hint in places
        else np.array([hint in text for text in texts])
        for hint in hints
    ]
    return hints, np.column_stack(columns).astype(np.float64)


def _fit_figures(cases: Sequence[Case], units: dict[str, str]) -> Floats:
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    rows: list[Integers] = []
    kinds: list[int] = []
    for case in cases:
        for row, kind in _label_figures(case, units[case.verdict.charges[0]]):
            rows.append(row)
            kinds.append(kind)
    weights = np.full((HASHES, len(CLASSES)), NEVER, np.float32)
    present = sorted(set(kinds))
    if len(present) < 2:
        weights[:, present] = 0
        return weights
    starts = np.cumsum([0, *map(len, rows)])
    columns = np.concatenate(rows)
    matrix = csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(rows), HASHES))
    model = LogisticRegression(C=0.3, max_iter=200, tol=1e-3, fit_intercept=False)
    model.fit(matrix, kinds)
    coefficients = model.coef_
    if len(present) == 2:
        coefficients = np.vstack([-coefficients / 2, coefficients / 2])
    weights[:, present] = coefficients.T
    return weights


def _label_figures(case: Case, unit: str) -> Iterator[tuple[Integers, int]]:
    told = split_sum(case.harm, unit)
    assert told is not None
    parts, total = told
    text = read_text(case.fact)
    figures = read_figures_in(text, unit)
    for place, figure in enumerate(figures):
        kind = 1 if figure.value in parts else 2 if figure.value == total else 0
        yield hash_figure(text, figures, place), kind
