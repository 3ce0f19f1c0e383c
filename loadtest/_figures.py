"""The figures of a load test: latencies, time, phases and misses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from curt.drawing import INK, LINES, SERIES, finish_figure, new_figure
from loadtest._slo import PHASES


def draw_timeline(windows: Sequence[Mapping[str, Any]], window_s: float, slo_ms: float) -> Markup:
    """Percentiles over the run above the arrivals, planned and made."""
    figure, axes = new_figure(2)
    middles = [row["from_s"] + window_s / 2 for row in windows]
    for index, name in enumerate(("p50", "p99")):
        values = [float("nan") if row[name] is None else row[name] for row in windows]
        colour = SERIES[2 * index]
        axes[0].plot(middles, values, label=name, color=colour, ls=LINES[index], marker=".")
    axes[0].axhline(slo_ms, color=SERIES[1], linewidth=1.6, label=f"SLO {slo_ms:g} ms")
    axes[0].set(ylabel="latency, ms", ylim=(0, None))
    missed = [row["misses"] / window_s for row in windows]
    rates = [row["requests"] / window_s for row in windows]
    axes[1].bar(middles, rates, width=window_s * 0.9, color=SERIES[0], alpha=0.5, label="arrived")
    axes[1].bar(middles, missed, width=window_s * 0.9, color=SERIES[1], label="missed")
    planned = [row["planned_per_s"] for row in windows]
    axes[1].plot(middles, planned, color=INK, linestyle="--", linewidth=1.2, label="planned rate")
    axes[1].legend(loc="upper left", fontsize=8)
    axes[1].margins(y=0.4)
    axes[1].set(xlabel="scheduled arrival, s from the start", ylabel="arrivals/s")
    return finish_figure(figure, axes, "Latency and arrivals over the run")


def draw_phases(phases_ms: Mapping[str, Mapping[str, float]]) -> Markup:
    """Where the mean answer's time goes, in one stacked bar; and the p99 of each phase alone."""
    figure, axes = new_figure(1, height_in=2.2)
    start = 0.0
    for index, name in enumerate(PHASES):
        mean = phases_ms[name]["mean"]
        axes[0].barh(["mean, stacked"], [mean], left=start, color=SERIES[index], label=name)
        axes[0].barh([f"{name}, p99"], [phases_ms[name]["p99"]], color=SERIES[index])
        start += mean
    axes[0].invert_yaxis()
    axes[0].set(xlabel="ms")
    return finish_figure(figure, axes, "Where the time goes")


def draw_misses(by_reason: Mapping[str, int]) -> Markup:
    """Misses by reason, most first."""
    figure, axes = new_figure(1, height_in=0.9 + 0.3 * len(by_reason))
    rows = sorted(by_reason.items(), key=lambda row: -row[1])
    bars = axes[0].barh([name for name, _ in rows], [n for _, n in rows], color=SERIES[1])
    axes[0].bar_label(bars, padding=2, fontsize=9, color=INK)
    axes[0].margins(x=0.15)
    axes[0].invert_yaxis()
    axes[0].set(xlabel="requests")
    return finish_figure(figure, axes, "Misses by reason")
