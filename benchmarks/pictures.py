"""The pictures of the benchmarks, each from the summary that it stands beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from curt.drawing import new_figure, scale_by_log, to_png

Row = Mapping[str, Any]

METHODS = {
    "warm_start": "warm start",
    "truncation": "warm start, cut off",
    "smaller_budget": "warm start, told less",
}
MODELS = {"warm_start": "before: long reasoning", "penalised": "after: length-penalised"}
COLOURS = {"warm_start": "C1", "penalised": "C0"}


def draw_penalties(summary: Mapping[str, Row]) -> bytes:
    """Accuracy against thinking tokens, and accuracy against the enforced budget."""
    figure, (left, right) = _grid(11, 4.6)
    marks = {summary[mark]["method"]: f" ({mark})" for mark in ("default", "winner")}
    rows = {method: row for method, row in summary.items() if "method" not in row}
    for index, (method, row) in enumerate(rows.items()):
        label = METHODS.get(method, method) + marks.get(method, "")
        style: dict[str, Any] = {
            "color": colormaps["tab20"](index % 20),
            "linewidth": 1 + 1.5 * (method in marks),
        }
        is_rl = row["kind"] == "rl"
        if method != "truncation":  # at the widest budget it is the warm start itself
            tokens, exact = row["thinking_tokens"], row["exact_accuracy"]
            reach = _reach([exact], [row["exact_accuracy_interval"]])
            left.errorbar(tokens, exact, yerr=reach, fmt="o" if is_rl else "s", capsize=3, **style)
            left.annotate(
                label, (tokens, exact), textcoords="offset points", xytext=(6, 5), fontsize=8
            )
        shares = {int(budget): share for budget, share in row["accuracy_at_budget"].items()}
        curve = {budget: share for budget, share in shares.items() if budget}  # on a log scale
        label = f"{label} ({row['area_under_curve']:.3f})"
        dashes = "-" if is_rl else "--"
        right.plot(list(curve), list(curve.values()), dashes, marker=".", label=label, **style)
    left.set(
        xlabel="mean thinking tokens, budget 128",
        ylabel="exact accuracy (95% over cases)",
        title="Accuracy against reasoning length (circles: by RL)",
    )
    right.set(
        xlabel="thinking budget, stated and enforced (tokens)",
        ylabel="exact accuracy",
        title="Accuracy under a budget (area under the curve)",
    )
    right.set_xscale("log", base=2)
    _mark(right, sorted({int(b) for row in rows.values() for b in row["accuracy_at_budget"]} - {0}))
    right.legend(fontsize=7)
    return to_png(figure)


def draw_before_after(result: Row, runs: Mapping[str, Any]) -> bytes:
    """Latencies, thinking tokens with accuracy, and highest rates.

    `runs` holds the answers by mode and model.
    """
    figure, (latency, tokens, rates) = _grid(16, 4.6, columns=3)
    deadline_ms = result["settings"]["deadline_ms"]
    longest_ms = 0.0
    most_tokens = max(one.thinking_tokens for own in runs["off"].values() for one in own)
    for place, (name, label) in enumerate(MODELS.items()):
        style: dict[str, Any] = {"color": COLOURS[name]}
        for mode, dashes, told in (("off", "-", "deadline off"), ("deadline", ":", "with it")):
            times_ms = sorted(one.ms for one in runs[mode][name])
            shares = [(rank + 1) / len(times_ms) for rank in range(len(times_ms))]
            latency.plot(times_ms, shares, dashes, label=f"{label}, {told}", **style)
            longest_ms = max(longest_ms, times_ms[int(0.99 * len(times_ms))])
        row, rate = result["models"][name]["off"], result["models"][name]["max_rate_per_s"]
        low, high = row["exact_interval"]
        tokens.hist(
            [one.thinking_tokens for one in runs["off"][name]],
            bins=40,
            range=(0, most_tokens + 1),
            alpha=0.6,
            label=f"{label}\nmean {row['mean_thinking_tokens']:.1f} tokens, "
            f"exact {row['exact']:.1%} ({low:.1%} to {high:.1%})",
            **style,
        )
        if rate["median"] is not None:
            reach = _reach([rate["median"]], [(rate["low"], rate["high"])])
            rates.bar(place, rate["median"], yerr=reach, capsize=6, **style)
            told = f"{rate['median']:.0f}/s\nexact {row['exact']:.1%}"
            rates.text(place, rate["median"] / 2, told, ha="center")
    ratio = result["penalised_to_warm_start"]["thinking_tokens"]
    latency.set(
        xlabel="milliseconds of one request",
        ylabel="share of requests answered by then",
        title=f"Latency on the same server, deadline {deadline_ms} ms",
        xlim=(0, 1.15 * longest_ms),
    )
    fewer = f": 1/{1 / ratio:.1f} of the tokens" if ratio else ""
    tokens.set(xlabel="thinking tokens", ylabel="cases", title=f"Reasoning, uncut{fewer}")
    rates.set(
        ylabel="requests a second",
        title=f"Highest rate with p99 under {deadline_ms} ms, reasoning uncut",
    )
    rates.set_xticks(range(len(MODELS)), list(MODELS.values()))
    latency.legend(fontsize=8, loc="lower right")
    tokens.legend(fontsize=8)
    return to_png(figure)


def draw_rates(results: Row) -> bytes:
    """Latency and accuracy under load, and both against the deadline."""
    figure, panels = _grid(11, 8.4, panels=4)
    for (left, right), key, x, label in (
        (panels[:2], "rates", "rate_per_s", f"arrivals/s, deadline {results['deadline_ms']} ms"),
        (panels[2:], "deadlines", "deadline_ms", "deadline (ms) at the first rate"),
    ):
        rows = [row for row in results[key] if row["answer_ms"]]
        if not rows:
            left.set_visible(False)
            right.set_visible(False)
            continue
        xs = [row[x] for row in rows]
        for name in ("p50", "p99", "p999"):
            latencies_ms = [row["answer_ms"][name] for row in rows]
            left.plot(xs, latencies_ms, marker="o", label=name.replace("p999", "p99.9"))
        left.plot(xs, [row["deadline_ms"] for row in rows], "k:", label="deadline")
        left.set_ylabel("latency of an answer (ms)")
        scale_by_log(left)
        left.legend(fontsize=8)
        in_time = [1 - row["miss_share"] for row in rows]
        right.plot(xs, in_time, marker="o", label="full verdict in time")
        right.plot(xs, [row["exact_share"] for row in rows], marker="o", label="exact verdict")
        right.set(ylabel="share of all requests", ylim=(0, 1.02))
        right.legend(fontsize=8, loc="lower right")
        _draw_thinking(right, xs, rows)
        for axes in (left, right):
            axes.set(xscale="log", xlabel=label)
            _mark(axes, xs)
    return to_png(figure)


def draw_peers(report: Row, slo_ms: float) -> bytes:
    """The highest rate each server keeps, and p99 against the rate."""
    servers = report["servers"]
    names = sorted(servers, key=lambda name: servers[name]["highest_per_s"]["median"])
    figure, (left, right) = _grid(12, 4.8)
    for place, name in enumerate(names):
        row = servers[name]
        shown = row.get("equal_accuracy_highest_per_s", row["highest_per_s"])
        style: dict[str, Any] = {"color": f"C{place}"}
        reach = _reach([shown["median"]], [shown["range"]])
        left.barh(place, shown["median"], xerr=reach, capsize=3, **style)
        if shown is not row["highest_per_s"]:
            left.plot(row["highest_per_s"]["median"], place, "k|", markersize=14)
        points = sorted((s["rate_per_s"], s["p99_ms"]) for s in row["steps"] if s["p99_ms"])
        if points:
            right.plot(*zip(*points, strict=True), ".-", label=name, linewidth=1, **style)
    left.set_yticks(range(len(names)), [f"{n}\n{servers[n]['setting']}" for n in names], fontsize=7)
    left.set_xlabel(f"requests a second at p99 < {slo_ms:.0f} ms, at the peers' accuracy")
    left.set_title("Highest rate (bar: median and range; tick: at any accuracy)", fontsize=9)
    right.axhline(slo_ms, color="black", linewidth=1)
    scale_by_log(right)
    right.set(
        xlabel="arrivals a second",
        ylabel="p99 (ms), errors and degraded answers counted as infinite",
    )
    if right.get_legend_handles_labels()[1]:  # no server has a p99 where all were too slow
        right.legend(fontsize=7)
    return to_png(figure)


def _grid(
    width_in: float, height_in: float, *, columns: int = 2, panels: int | None = None
) -> tuple[Figure, list[Axes]]:
    """Panels with thin lines behind what is drawn."""
    figure, found = new_figure(
        panels or columns, width_in=width_in, height_in=height_in, columns=columns
    )
    for axes in found:
        axes.grid(alpha=0.3)
    return figure, found


def _reach(middles: Sequence[float], ends: Sequence[Sequence[float]]) -> list[list[float]]:
    """How far error bars go down and up from the middles to their intervals' ends."""
    pairs = list(zip(middles, ends, strict=True))
    return [[middle - low for middle, (low, _) in pairs], [high - mid for mid, (_, high) in pairs]]


def _mark(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at exactly these places, on a log scale too."""
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.xaxis.minorticks_off()


def _draw_thinking(axes: Axes, xs: Sequence[float], rows: Sequence[Row]) -> None:
    """The median of the thinking that was allowed, on a scale of its own at the right."""
    own = axes.twinx()
    allowed = [row["thinking_allowed"].get("p50", 0) for row in rows]
    own.plot(xs, allowed, "--", marker=".", color="grey")
    own.set_ylabel("thinking tokens allowed, median (dashed)", color="grey")
    own.set_ylim(bottom=0)
