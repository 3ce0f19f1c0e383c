"""The picture of the mission: before and after the length penalty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.run import to_png

NAMES = {"warm_start": "before: long reasoning", "penalised": "after: length-penalised"}
COLOURS = {"warm_start": "C1", "penalised": "C0"}


def draw_before_after(result: Mapping[str, Any], runs: Mapping[str, Any]) -> bytes:
    """A PNG: latencies, thinking tokens with accuracy, rates, and what tokens cost elsewhere.

    `runs` holds the answers by mode and model.
    """
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    (latency, tokens), (rates, scaled) = figure.subplots(2, 2)
    _draw_latency(latency, runs, result["settings"]["deadline_ms"])
    _draw_tokens(tokens, runs["off"], result)
    _draw_rates(rates, result)
    _draw_arithmetic(scaled, result)
    for axes in (latency, tokens, rates, scaled):
        axes.grid(alpha=0.3)
    return to_png(figure)


def _draw_latency(axes: Any, runs: Mapping[str, Any], deadline_ms: float) -> None:
    base = float(np.median([one.ms for one in runs["off"]["penalised"]]))
    for name, label in NAMES.items():
        for mode, dashes, text in (
            ("off", "-", "deadline off"),
            ("deadline", ":", f"{deadline_ms} ms"),
        ):
            ms = sorted(one.ms for one in runs[mode][name])
            share = np.arange(1, len(ms) + 1) / len(ms)
            axes.plot(ms, share, dashes, color=COLOURS[name], label=f"{label}, {text}")
    axes.set_xlabel("milliseconds of one request, measured")
    axes.set_ylabel("share of requests answered by then")
    axes.set_xlim(left=0, right=_most(runs))
    above = axes.secondary_xaxis("top", functions=(lambda x: x / base, lambda x: x * base))
    above.set_xlabel("times the median after")
    axes.legend(fontsize=8, loc="lower right")
    axes.set_title("Latency on the same server")


def _most(runs: Mapping[str, Any]) -> float:
    """Where the latencies end but for the last hundredth."""
    return 1.15 * max(
        float(np.quantile([one.ms for one in own], 0.99))
        for both in runs.values()
        for own in both.values()
    )


def _draw_tokens(axes: Any, off: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    lengths = {name: [one.thinking_tokens for one in off[name]] for name in NAMES}
    bins = np.linspace(0, max(max(own) for own in lengths.values()) + 1, 40)
    for name, label in NAMES.items():
        row = result["models"][name]["off"]
        low, high = row["exact_interval"]
        axes.hist(
            lengths[name],
            bins=bins,
            alpha=0.6,
            color=COLOURS[name],
            label=f"{label}\nmean {row['mean_thinking_tokens']:.1f} tokens, "
            f"exact {row['exact']:.1%} ({low:.1%} to {high:.1%})",
        )
    ratio = result["penalised_to_warm_start"]["thinking_tokens"]
    axes.set_title(
        f"Reasoning, uncut: 1/{1 / ratio:.1f} of the tokens" if ratio else "Reasoning, uncut"
    )
    axes.set_xlabel("thinking tokens")
    axes.set_ylabel("cases")
    axes.legend(fontsize=8)


def _draw_rates(axes: Any, result: Mapping[str, Any]) -> None:
    for index, name in enumerate(NAMES):
        rate = result["models"][name]["max_rate_per_s"]
        if rate["median"] is None:
            continue
        axes.bar(
            index,
            rate["median"],
            color=COLOURS[name],
            yerr=[[rate["median"] - rate["low"]], [rate["high"] - rate["median"]]],
            capsize=6,
        )
        exact = result["models"][name]["off"]["exact"]
        axes.text(
            index, rate["median"] / 2, f"{rate['median']:.0f}/s\nexact {exact:.1%}", ha="center"
        )
    axes.set_xticks(range(len(NAMES)), list(NAMES.values()))
    axes.set_ylabel("requests a second")
    deadline_ms = result["settings"]["deadline_ms"]
    axes.set_title(f"Highest rate with p99 under {deadline_ms} ms, reasoning uncut")


def _draw_arithmetic(axes: Any, result: Mapping[str, Any]) -> None:
    worked = result["arithmetic"]
    for name, label in NAMES.items():
        row = worked["models"][name]
        axes.plot(
            worked["tpots_ms"],
            row["latency_ms"],
            marker=".",
            color=COLOURS[name],
            label=f"{label}: fits up to {row['longest_tpot_ms']:.1f} ms a token",
        )
    axes.axhline(result["settings"]["deadline_ms"], color="C3", linestyle="--", label="deadline")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(worked["tpots_ms"], [f"{tpot:g}" for tpot in worked["tpots_ms"]])
    axes.minorticks_off()
    axes.set_xlabel("milliseconds a token of some larger model")
    axes.set_ylabel("milliseconds of a request")
    axes.set_title(
        "ARITHMETIC, not measured:\n"
        f"{worked['prefill_ms']:.0f} + (p95 thinking + 1 + {worked['answer_tokens']:.0f}) × ms"
    )
    axes.legend(fontsize=8)
