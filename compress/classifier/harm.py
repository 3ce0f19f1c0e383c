"""Learn to read harm (`curt.classifier.harm`) from cases that tell theirs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from curt.classifier.familiarity import read_text
from curt.classifier.harm import (
    CLASSES,
    HASHES,
    Floats,
    Grades,
    HarmReader,
    Integers,
    hash_figure,
    split_sum,
)
from curt.corpus.case import Case
from curt.law.figures import COUNTS, MEASURES, read_figures

MOST_HINTS = 60  # of the grades of one charge
OWN_WEIGHT = 3  # of a grade's own name and its pairs of characters, beside other hints
GRADE_C = 0.1  # inverse regularisation
NEVER = -1.0  # weight of every feature for a class that no case showed
MIN_CASES = 4  # of a charge, to learn its grades from


def fit_harm(cases: Sequence[Case]) -> HarmReader:
    """The reader of the harm that some cases tell; it reads none where no case does."""
    told: dict[str, list[int]] = defaultdict(list)
    for place, case in enumerate(cases):
        if case.harm and len(case.verdict.charges) == 1:
            told[case.verdict.charges[0]].append(place)
    units = {charge: unit for charge, places in sorted(told.items())
             if (unit := _find_unit([cases[i].harm for i in places]))}  # fmt: skip
    grades = {}
    for charge, places in sorted(told.items()):
        if charge not in units and len(places) >= MIN_CASES:
            texts = [read_text(cases[i].fact) for i in places]
            grades[charge] = _fit_grades([cases[i].harm for i in places], texts)
    counted = [cases[i] for charge in units for i in told[charge]]
    return HarmReader(units, *([_fit_figures(counted, units)] if counted else []), grades=grades)


def _find_unit(harms: Sequence[str]) -> str:
    """The unit of quantities; empty for grades."""
    if not all(harm[0].isdigit() for harm in harms):
        return ""
    found = [unit for unit in (*MEASURES, *COUNTS) if harms[0].endswith(unit)]
    return max(found, key=len, default="")


def _fit_grades(harms: Sequence[str], texts: Sequence[str]) -> Grades:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.feature_selection import chi2
    from sklearn.svm import LinearSVC

    names = tuple(sorted(set(harms)))
    if len(names) == 1:
        return Grades(names, (), np.zeros((1, 1), np.float32))
    truth = [names.index(harm) for harm in harms]
    counter = CountVectorizer(analyzer="char", ngram_range=(2, 6), min_df=2, binary=True)
    held = counter.fit_transform(texts)
    telling, _ = chi2(held, truth)
    own = {run for name in names for run in (name, *map("".join, pairwise(name)))}
    found = counter.get_feature_names_out()[np.argsort(-telling, kind="stable")[:MOST_HINTS]]
    hints = tuple(sorted(own | set(found.tolist())))
    scale = np.array([OWN_WEIGHT if hint in own else 1.0 for hint in hints])
    machine = LinearSVC(C=GRADE_C, class_weight="balanced", random_state=0)
    machine.fit(np.array([[hint in text for hint in hints] for text in texts]) * scale, truth)
    weights, intercepts = machine.coef_ * scale, machine.intercept_
    if len(names) == 2:  # one column: the second's
        weights, intercepts = np.vstack([-weights, weights]), np.append(-intercepts, intercepts)
    stacked = np.vstack([intercepts[None, :], weights.T]).astype(np.float32)
    return Grades(names, hints, stacked)


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
    figures = [figure for figure in read_figures(text) if figure.unit == unit]
    for place, figure in enumerate(figures):
        kind = 1 if figure.value in parts else 2 if figure.value == total else 0
        yield hash_figure(text, figures, place), kind
