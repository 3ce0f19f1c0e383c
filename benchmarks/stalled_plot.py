"""The picture of the stalled server: what each of the two runs saw of it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

PERIODS = 4  # shown of each run, so that single requests can be told apart


def draw_stalled(results: Mapping[str, Any]) -> bytes:
    """A PNG: latencies over the first periods, and their distribution, closed beside open."""
    settings = results["settings"]
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    times, spread = figure.subplots(1, 2, width_ratios=(3, 2))
    until_s = PERIODS * settings["period_s"]
    runs = (("open", "C1", "x"), ("closed", "C0", "o"))
    for name, colour, marker in runs:
        run = results[name]
        pairs = [
            (at_s, latency_ms)
            for at_s, latency_ms in zip(run["answered_at_s"], run["latencies_ms"], strict=True)
            if at_s < until_s
        ]
        verdict = "passes" if run["exit_code"] == 0 else "fails"
        label = f"{name}: {verdict}, {run['miss_rate']:.1%} missed"
        times.plot(*zip(*pairs, strict=True), marker, ms=4, alpha=0.5, color=colour, label=label)
        ranked = sorted(run["latencies_ms"])
        shares = [100 * (index + 1) / len(ranked) for index in range(len(ranked))]
        p99_ms = run["latency_ms"]["p99"]
        told = "no p99" if p99_ms is None else f"p99 {p99_ms:.0f} ms"
        spread.step(ranked, shares, color=colour, where="post", label=f"{name}: {told}")
    for axes, line in ((times, times.axhline), (spread, spread.axvline)):
        line(settings["slo_p99_ms"], color="black", ls="--", lw=1, label="SLO")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    times.set(xlabel="s from the start (open: scheduled; closed: sent)", ylabel="latency, ms")
    times.set_title(f"A server that stalls {settings['stall_s']:g} s in {settings['period_s']:g} s")
    spread.set(xlabel="latency, ms, log scale", ylabel="% of answers", xscale="log")
    spread.set_title("What each run makes of it")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
