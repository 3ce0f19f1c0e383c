"""The picture of the penalty benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from benchmarks.run import to_png

NAMES = {"warm_start": "warm start", "truncation": "warm start, cut off"}


def draw_penalties(summary: Mapping[str, Mapping[str, Any]]) -> bytes:
    """A PNG: accuracy against thinking tokens, and accuracy against the enforced budget."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    chosen = summary["default"]["method"]
    rows = {method: row for method, row in summary.items() if method != "default"}
    for index, (method, row) in enumerate(rows.items()):
        label = f"{method} (default)" if method == chosen else NAMES.get(method, method)
        style = {"color": f"C{index % 10}", "linewidth": 2.5 if method == chosen else 1.2}
        if method != "truncation":  # at the widest budget it is the warm start itself
            low, high = row["exact_accuracy_interval"]
            middle = row["exact_accuracy"]
            left.errorbar(
                row["thinking_tokens"],
                middle,
                yerr=[[middle - low], [high - middle]],
                fmt="o",
                capsize=3,
                **style,
            )
            left.annotate(
                label,
                (row["thinking_tokens"], middle),
                textcoords="offset points",
                xytext=(6, 5),
                fontsize=8,
            )
        budgets = [int(b) for b in row["accuracy_at_budget"]]
        dashes = "--" if method in ("warm_start", "truncation") else "-"
        right.plot(
            budgets,
            list(row["accuracy_at_budget"].values()),
            dashes,
            marker=".",
            label=f"{label} ({row['area_under_curve']:.3f})",
            **style,
        )
    left.set_xlabel("mean thinking tokens, budget 128")
    left.set_ylabel("exact accuracy (95% over cases)")
    left.set_title("Accuracy against reasoning length")
    right.set_xscale("log", base=2)
    ticks = sorted({int(b) for row in rows.values() for b in row["accuracy_at_budget"]})
    right.set_xticks(ticks, [str(t) for t in ticks])
    right.set_xlabel("thinking budget, stated and enforced (tokens)")
    right.set_ylabel("exact accuracy")
    right.set_title("Accuracy under a budget (area under the curve)")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return to_png(figure)
