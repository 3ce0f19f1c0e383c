"""Pictures of what a server does under load and under deadlines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.run import to_png

PARTS = {
    "exact": "all exact",
    "charge_accuracy": "charge",
    "article_accuracy": "article",
    "term_accuracy": "term",
}


def draw_rates(results: Mapping[str, Any]) -> bytes:
    """A PNG: latency at each rate, and misses with the thinking that was allowed."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [row for row in results["rates"] if row["latency_ms"]]
    rates = [row["rate_per_s"] for row in rows]
    _draw_quantiles(left, rates, [row["latency_ms"] for row in rows], ("p50", "p95", "p99", "max"))
    left.axhline(results["deadline_ms"], color="black", linestyle=":", label="deadline")
    left.set_xlabel("arrivals a second")
    left.set_ylabel("latency from the scheduled instant (ms)")
    left.set_title(f"Latency, {results['fact_chars']}-character facts")
    left.legend(fontsize=8)
    shares = [100 * row["miss_share"] for row in rows]
    ends = [row["miss_share_interval"] for row in rows]
    below = [share - 100 * low for share, (low, _) in zip(shares, ends, strict=True)]
    above = [100 * high - share for share, (_, high) in zip(shares, ends, strict=True)]
    right.errorbar(rates, shares, yerr=[below, above], marker="o", capsize=3, color="C3")
    right.set_xlabel("arrivals a second")
    right.set_ylabel("misses (% with 95% interval)", color="C3")
    right.set_ylim(bottom=0)
    _draw_thinking(right.twinx(), rates, [row["thinking_allowed"] for row in rows])
    right.set_title("Misses and allowed thinking")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return to_png(figure)


def draw_deadlines(results: Mapping[str, Any]) -> bytes:
    """A PNG: latency and accuracy against the deadline, and both under load at one deadline."""
    figure = Figure(figsize=(11, 8.4), layout="constrained")
    grid = figure.subplots(2, 2)
    for line, key, x, label in (
        (0, "deadlines", "deadline_ms", f"deadline (ms), {results['rate_per_s']:g} arrivals/s"),
        (1, "rates", "rate_per_s", f"arrivals a second, deadline {results['deadline_ms']} ms"),
    ):
        rows = [row for row in results[key] if row["latency_ms"]]
        left, right = grid[line]
        if not rows:
            left.set_visible(False)
            right.set_visible(False)
            continue
        xs = [row[x] for row in rows]
        _draw_quantiles(left, xs, [row["latency_ms"] for row in rows], ("p50", "p99", "p999"))
        left.plot(xs, [row["deadline_ms"] for row in rows], "k:", label="deadline")
        left.set_xscale("log")
        left.set_yscale("log")
        left.set_ylabel("latency of an answer (ms)")
        left.legend(fontsize=8)
        _draw_accuracy(right, xs, rows)
        _draw_thinking(right.twinx(), xs, [row["thinking_allowed"] for row in rows])
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xticks(xs, [f"{value:g}" for value in xs])
            axes.minorticks_off()
            axes.set_xlabel(label)
            axes.grid(alpha=0.3)
    return to_png(figure)


def _draw_accuracy(axes: Axes, xs: Sequence[float], rows: Sequence[Mapping[str, Any]]) -> None:
    for index, (part, name) in enumerate(PARTS.items()):
        scores = [row["of_requests"][part] for row in rows]
        middle = [score["share"] for score in scores]
        below = [score["share"] - score["low"] for score in scores]
        above = [score["high"] - score["share"] for score in scores]
        # "all exact" often lies right under "term": wider and paler, it is seen all the same.
        style: dict[str, Any] = {"linewidth": 5, "alpha": 0.4} if part == "exact" else {}
        axes.errorbar(
            xs,
            middle,
            yerr=[below, above],
            marker="o",
            capsize=3,
            color=f"C{index}",
            label=name,
            **style,
        )
    axes.set_ylabel("accuracy over all requests (95% interval)")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=8, loc="lower right")


def _draw_quantiles(
    axes: Axes, xs: Sequence[float], rows: Sequence[Mapping[str, float]], names: Sequence[str]
) -> None:
    for name in names:
        axes.plot(xs, [row[name] for row in rows], marker="o", label=name.replace("p999", "p99.9"))


def _draw_thinking(axes: Axes, xs: Sequence[float], rows: Sequence[Mapping[str, float]]) -> None:
    axes.plot(xs, [row.get("p50", 0) for row in rows], "--", marker=".", color="grey")
    axes.set_ylabel("thinking tokens allowed, median (dashed)", color="grey")
    axes.set_ylim(bottom=0)
