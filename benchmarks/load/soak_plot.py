"""The picture of the soak."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure


def draw_soak(result: Mapping[str, Any]) -> bytes:
    """A PNG: p99, misses and the memory of each process over the run, with the verdicts."""
    figure = Figure(figsize=(10.5, 8), layout="constrained")
    latency, misses, memory = figure.subplots(3, 1, sharex=True)
    minutes = result["settings"]["minutes"]
    series, trends = result["series"], result["trends"]

    def draw(axes: Any, name: str, label: str, scale: float = 1.0) -> None:
        points = series[name]
        axes.plot(
            [at * minutes for at, _ in points],
            [value * scale for _, value in points],
            marker="o" if len(points) < 40 else None,
            label=f"{label} ({trends[name]['verdict']})",
        )

    draw(latency, "p99_ms", "p99")
    latency.axhline(result["settings"]["deadline_ms"], color="C3", linestyle="--", label="deadline")
    latency.set_ylabel("milliseconds")
    latency.set_title(
        f"{result['requests']} requests at {result['rate_per_s']:.1f} a second, "
        f"{result['settings']['share']:.0%} of the capacity"
    )
    draw(misses, "miss_share", "misses", 100.0)
    misses.set_ylabel("% of requests")
    for name in series:
        if name.endswith("_mib"):
            draw(memory, name, name.removesuffix("_mib"))
    memory.set_ylabel("resident MiB")
    memory.set_xlabel("minutes")
    settled = result["settings"]["settle"] * minutes
    for axes in (latency, misses, memory):
        axes.axvspan(0, settled, color="0.9")  # not judged
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
