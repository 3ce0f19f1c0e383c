"""Figures of the penalty benchmark from the evaluations of its runs; pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from curt.scores.statistics import bootstrap_mean


def area_under_curve(accuracy_at_budget: Mapping[int, float]) -> float:
    """Mean accuracy over the logarithm of the budget: the trapezoid rule on log2(budget).

    1 means always right at every budget. Raises ValueError with fewer than two budgets above 0.
    """
    points = sorted((math.log2(b), a) for b, a in accuracy_at_budget.items() if b > 0)
    if len(points) < 2:
        raise ValueError(f"a curve over {len(points)} budgets: give at least two above 0")
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))
    return area / (points[-1][0] - points[0][0])


def summarise_method(
    runs: Sequence[Mapping[str, Any]], warm_start: Mapping[str, Any] | None
) -> dict[str, Any]:
    """One row of the summary from the evaluations of a method's seeds.

    Intervals resample cases of the mean over seeds; `*_range` spans the seeds themselves. The
    difference to the warm start is paired by case.
    """
    per_case = [fmean(flags) for flags in zip(*(r["exact_cases"] for r in runs), strict=True)]
    thinking = [
        fmean(tokens) for tokens in zip(*(r["thinking_lengths"] for r in runs), strict=True)
    ]
    curves = [{row["budget"]: row["exact"] for row in r["by_budget"]} for r in runs]
    areas = [area_under_curve(curve) for curve in curves]
    exact = [fmean(r["exact_cases"]) for r in runs]
    row: dict[str, Any] = {
        "seeds": len(runs),
        "n": len(per_case),
        "exact_accuracy": fmean(per_case),
        "exact_accuracy_interval": bootstrap_mean(per_case),
        "exact_accuracy_range": (min(exact), max(exact)),
        "thinking_tokens": fmean(thinking),
        "thinking_tokens_interval": bootstrap_mean(thinking),
        "term_score": fmean(r["scores"]["term_score_official"] for r in runs),
        "accuracy_at_budget": {b: fmean(c[b] for c in curves) for b in curves[0]},
        "area_under_curve": fmean(areas),
        "area_under_curve_range": (min(areas), max(areas)),
    }
    if warm_start is not None:
        base = warm_start["exact_cases"]
        change = [a - b for a, b in zip(per_case, base, strict=True)]
        row["exact_change"] = fmean(change)
        row["exact_change_interval"] = bootstrap_mean(change)
        row["thinking_change"] = fmean(thinking) / fmean(warm_start["thinking_lengths"]) - 1
    return row


def obedience_rows(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Realised tokens by stated budget, nothing enforced, over the evaluations of the seeds."""
    rows = []
    for same in zip(*(r["by_budget"] for r in runs), strict=True):
        rows.append(
            {
                "stated": same[0]["budget"],
                "mean": fmean(row["mean_thinking"] for row in same),
                "p95": max(row["p95_thinking"] for row in same),
                "within": fmean(row["within"] for row in same),
                "exact": fmean(row["exact"] for row in same),
            }
        )
    return rows
