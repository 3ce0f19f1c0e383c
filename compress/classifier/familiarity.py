"""Fit what tells facts unlike the training facts: see `curt.classifier.familiarity`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from curt.classifier.familiarity import Counts, Familiarity, Names, name_grams, read_plain

QUANTILE = 0.995  # of the development facts are below the threshold
MAX_PAIRS = 65_536  # of characters, the commonest first: half a megabyte at most


def fit_familiarity(train: Sequence[str], dev: Sequence[str]) -> Familiarity:
    """Count the training facts' characters and pairs; the development facts set the threshold.

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
    threshold = float(np.quantile(costs, QUANTILE, method="higher"))
    return Familiarity(fit.ones, fit.one_counts, fit.twos, fit.two_counts, fit.total, threshold)


def share_unfamiliar(fit: Familiarity, facts: Sequence[str]) -> float:
    """Share of facts above the threshold: false alarms on one's own kind, hits on another's."""
    return float(np.mean([fit.is_unfamiliar(fact) for fact in facts]))


def _keep_commonest(names: Names, counts: npt.NDArray[np.int64]) -> tuple[Names, Counts]:
    kept = np.sort(np.argsort(-counts, kind="stable")[:MAX_PAIRS])
    return names[kept], counts[kept].astype(np.uint32)
