"""The picture of the confidence benchmark."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

NAMES = {"real": "real cases", "demo": "generated cases"}


def draw_confidence(results: Mapping[str, Any]) -> bytes:
    """A PNG: reliability of charge probabilities, interval coverage, risk against abstention."""
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    reliability, coverage, risk = figure.subplots(1, 3)
    for colour, (name, row) in enumerate(sorted(results["classifier"].items(), reverse=True)):
        _draw_reliability(reliability, row, NAMES[name], f"C{colour}")
        _draw_coverage(coverage, row, NAMES[name], f"C{colour}")
    for axes in (reliability, coverage):
        axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
        axes.legend(fontsize=8)
    reliability.set_xlabel("probability given to a charge")
    reliability.set_ylabel("share of these charges in the verdict")
    reliability.set_title("Charge probabilities (five best; area = cases)")
    coverage.set_xlim(0.4, 1)
    coverage.set_ylim(0.4, 1)
    coverage.set_xlabel("stated coverage")
    coverage.set_ylabel("share of terms inside (95%)")
    coverage.set_title("Term intervals of the classifier")
    _draw_risk(risk, results["model_verdicts"])
    risk.set_title(f"Abstention, verdicts of {results['model']}")
    for axes in (reliability, coverage, risk):
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _draw_reliability(axes: Axes, row: Mapping[str, Any], name: str, colour: str) -> None:
    bins = row["reliability"]
    error = row["charge_top_ece"]
    axes.scatter(
        [b["mean_probability"] for b in bins],
        [b["share_right"] for b in bins],
        s=[8 + 3 * b["n"] ** 0.5 for b in bins],
        color=colour,
        label=f"{name}, n={row['cases']}, ECE {error['ece']:.3f}",
    )


def _draw_coverage(axes: Axes, row: Mapping[str, Any], name: str, colour: str) -> None:
    rows = row["intervals"]
    shares = [r["interval_coverage"] for r in rows]
    axes.errorbar(
        [r["interval_stated"] for r in rows],
        shares,
        yerr=[
            [s - r["interval_coverage_low"] for s, r in zip(shares, rows, strict=True)],
            [r["interval_coverage_high"] - s for s, r in zip(shares, rows, strict=True)],
        ],
        fmt="o-",
        capsize=3,
        color=colour,
        label=name,
    )


def _draw_risk(axes: Axes, verdicts: Mapping[str, Any]) -> None:
    shown = [name for name in ("all", "128", "16", "0") if name in verdicts]
    for colour, name in enumerate(shown):
        row = verdicts[name]
        curve = row["risk_curve"]
        answered = [point["answered"] for point in curve]
        label = "all budgets" if name == "all" else f"budget {name}"
        axes.plot(
            answered,
            [point["risk"] for point in curve],
            color=f"C{colour}",
            label=f"{label}, area {row['area_under_risk']:.3f} "
            f"(random {row['area_under_risk_at_random']:.3f})",
        )
        if name == "all":
            axes.plot(
                answered,
                [point["best"] for point in curve],
                ":",
                color=f"C{colour}",
                label="all budgets, perfect foresight",
            )
    axes.set_xlabel("share of verdicts given")
    axes.set_ylabel("wrong among them (charges, or term short of full score)")
    axes.legend(fontsize=8)
