"""The picture of the comparison with peers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from benchmarks.run import to_png


def draw_peers(report: Mapping[str, Any], slo_ms: float) -> bytes:
    """A PNG: the highest rate each server keeps, and p99 against the rate."""
    servers = report["servers"]
    names = sorted(servers, key=lambda name: servers[name]["highest_per_s"]["median"])
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, name in enumerate(names):
        row = servers[name]
        shown = row.get("equal_accuracy_highest_per_s", row["highest_per_s"])
        low, high = shown["range"]
        middle = shown["median"]
        colour = f"C{place % 10}"
        left.barh(place, middle, color=colour, xerr=[[middle - low], [high - middle]], capsize=3)
        if shown is not row["highest_per_s"]:
            left.plot(row["highest_per_s"]["median"], place, "k|", markersize=14)
        points = sorted((s["rate_per_s"], s["p99_ms"]) for s in row["steps"] if s["p99_ms"])
        if points:
            right.plot(*zip(*points, strict=True), ".-", color=colour, label=name, linewidth=1)
    left.set_yticks(range(len(names)), [f"{n}\n{servers[n]['setting']}" for n in names], fontsize=7)
    left.set_xlabel(f"requests a second at p99 < {slo_ms:.0f} ms, at the peers' accuracy")
    left.set_title("Highest rate (bar: median and range; tick: at any accuracy)", fontsize=9)
    right.axhline(slo_ms, color="black", linewidth=1)
    right.set_yscale("log")
    right.set_xlabel("arrivals a second")
    right.set_ylabel("p99 (ms), errors and degraded answers counted as infinite")
    right.legend(fontsize=7)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return to_png(figure)
