"""The picture of the batching benchmark."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

STYLES = {"single": "-", "padded": "--", "engine": "-.", "rows": ":"}


def draw_batching(results: Mapping[str, Mapping[str, Any]]) -> bytes:
    """A PNG: p99 against the rate of every variant, one panel a model."""
    figure = Figure(figsize=(7.5, 4.8 * len(results)), layout="constrained")
    panels = figure.subplots(len(results), 1, squeeze=False)[:, 0]
    for axes, (model, result) in zip(panels, results.items(), strict=True):
        deadline_ms = result["config"]["deadline_ms"]
        for index, name in enumerate(result["summary"]):
            rows = [row for row in result["rows"] if row["variant"] == name]
            rows = [row for row in rows if row["latency_ms"]["p99"] is not None]
            axes.plot(
                [row["rate_per_s"] for row in rows],
                [row["latency_ms"]["p99"] for row in rows],
                STYLES[name.partition("-")[0]],
                marker=".",
                color=f"C{index % 10}",
                label=name,
            )
        axes.axhline(deadline_ms, color="grey", linewidth=0.8)
        axes.set_yscale("log")
        axes.set_xlabel("arrivals a second (Poisson); a line ends where requests were given up")
        axes.set_ylabel("p99 from the scheduled instant (ms)")
        axes.set_title(f"{model}: workers x threads x batch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, ncols=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
