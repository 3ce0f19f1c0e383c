"""Pictures of the simulation: against real replicas, and what a fleet gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks.run import to_png


def draw_validation(results: Mapping[str, Any], raw: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG: distributions of latency, real and simulated, at each rate."""
    rows = results["rates"]
    figure = Figure(figsize=(4.2 * len(rows), 3.8), layout="constrained")
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        rate = row["rate_per_s"]
        for kind, style in (("real", "-"), ("simulated", "--")):
            ordered = sorted(
                each["latency_ms"]
                for each in raw
                if each["kind"] == kind and each["rate_per_s"] == rate
            )
            beyond = [1 - place / len(ordered) for place in range(len(ordered))]
            axes.step(ordered, beyond, style, label=kind)
        axes.axhline(0.01, color="black", linestyle=":", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="latency (ms)")
        axes.set_ylabel("share of requests beyond")
        axes.set_title(f"{rate:g}/s: p99 {row['error']['p99']:+.0%}")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    return to_png(figure)


def draw_sizes(results: Mapping[str, Any]) -> bytes:
    """A PNG: what a server gives as its rate rises, and the servers that rates need."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = results["one_server"]
    rates = [row["rate_per_s"] for row in rows]
    for name in ("p50", "p99"):
        left.plot(rates, [row["latency_ms"][name] for row in rows], marker="o", label=name)
    left.axhline(results["target"]["p99_ms"], color="black", linestyle=":", label="target")
    left.set(xlabel="arrivals a second at one server", ylabel="latency (ms)")
    left.legend(fontsize=8)
    shares = left.twinx()
    shares.plot(rates, [row["uncut_share"] for row in rows], "--", color="grey")
    shares.set_ylabel("thinking not cut short (dashed)", color="grey")
    shares.set_ylim(0, 1.02)
    sizes = {row["rate_per_s"]: row["replicas"] for row in results["sizes"]}
    right.plot(list(sizes), list(sizes.values()), marker="o")
    for x, y in sizes.items():
        right.annotate(f"{y:,}", (x, y), textcoords="offset points", xytext=(4, -12), fontsize=9)
    right.set(xscale="log", yscale="log", xlabel="arrivals a second", ylabel="servers needed")
    left.grid(alpha=0.3)
    right.grid(alpha=0.3, which="both")
    return to_png(figure)
