"""Fit what tells facts unlike the training facts: see `curt.classifier.familiarity`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from curt.classifier.familiarity import (
    LONGEST_GRAM,
    Counts,
    Familiarity,
    Names,
    largest_figures,
    name_grams,
    read_plain,
    read_text,
)
from curt.law.figures import MEASURES

QUANTILE = 0.995  # of the development facts lie `LEEWAY` and more below the threshold
LEEWAY = 1.0  # nats a character: other courts' facts surprise more, and hold the formulas too
BARE_QUANTILE = 0.95  # of them lie below the threshold of facts without formulas
FORMULA_SHARE = 0.1  # of the training facts hold a run of characters that counts as a formula
MAX_PAIRS = 65_536  # of characters, the commonest first: half a megabyte at most


def fit_familiarity(train: Sequence[str], dev: Sequence[str]) -> Familiarity:
    """Count the training facts' characters and pairs; the development facts set the threshold.

    Bounds of figures are those of the training facts.

    Raises ValueError when no training fact has two letters or digits.
    """
    plain = [text for text in map(read_plain, train) if len(text) > 1]
    if not plain:
        raise ValueError("no training fact holds two letters or digits: give facts of cases")
    ones, one_counts = np.unique(
        np.concatenate([name_grams(text, 1) for text in plain]), return_counts=True
    )
    twos, two_counts = _keep_commonest(
        *np.unique(np.concatenate([name_grams(text, 2) for text in plain]), return_counts=True)
    )
    fit = Familiarity(
        ones, one_counts.astype(np.uint32), twos, two_counts, int(one_counts.sum()), np.inf
    )
    costs = [fit.surprise(fact) for fact in dev]
    high, bare = np.quantile(costs, (QUANTILE, BARE_QUANTILE), method="higher")
    formulas = _find_formulas(plain)
    told = [largest_figures(read_text(fact)) for fact in train]
    of_unit = [[each[unit] for each in told if unit in each] for unit in MEASURES]
    return replace(
        fit,
        threshold=float(high) + LEEWAY,
        formulas=formulas,
        bare_threshold=float(bare),
        least=np.array([min(values, default=np.nan) for values in of_unit]),
        greatest=np.array([max(values, default=np.nan) for values in of_unit]),
    )


def share_unfamiliar(fit: Familiarity, facts: Sequence[str]) -> float:
    """Share of facts above the threshold: false alarms on one's own kind, hits on another's."""
    return float(np.mean([fit.is_unfamiliar(fact) for fact in facts]))


def _find_formulas(plain: Sequence[str]) -> Names:
    """Runs without digits (which say 0) that many texts hold; dates and amounts are in any text."""
    holders = Counter(
        run
        for text in plain
        for run in {text[i : i + LONGEST_GRAM] for i in range(len(text) - LONGEST_GRAM + 1)}
        if "0" not in run
    )
    common = [run for run, count in holders.items() if count >= FORMULA_SHARE * len(plain)]
    names = [name_grams(run, LONGEST_GRAM) for run in common]
    return np.unique(np.concatenate([*names, np.zeros(0, np.uint32)]))


def _keep_commonest(names: Names, counts: npt.NDArray[np.int64]) -> tuple[Names, Counts]:
    kept = np.sort(np.argsort(-counts, kind="stable")[:MAX_PAIRS])
    return names[kept], counts[kept].astype(np.uint32)
