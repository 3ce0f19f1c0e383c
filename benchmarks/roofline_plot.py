"""The picture of the roofline benchmark."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

SHOWN = 6  # operators with a colour of their own
OTHERS, OUTSIDE = "other operators", "outside the session"
BETWEEN = "between operators, and the profiler"


def draw_roofline(models: Mapping[str, Mapping[str, Any]]) -> bytes:
    """A PNG: a token's floors and measured times, and where a profiled token's time goes."""
    figure = Figure(figsize=(12, 2.6 + 1.8 * len(models)), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_times(left, models)
    _draw_shares(right, models)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _draw_times(axes: Any, models: Mapping[str, Mapping[str, Any]]) -> None:
    labels, values, colours = [], [], []
    for name, result in models.items():
        for row in result["loops"]:
            unit = "thread" if row["threads"] == 1 else "threads"
            shown = {
                "floor by memory": (row["floor_memory_ms"], "C7"),
                "floor at the model's size": (row["floor_model_sized_ms"], "C8"),
                "bare loop": (row["bare_ms"]["median"], "C0"),
                "our engine": (row["engine_ms"]["median"], "C1"),
            }
            if row["threads"] == 1 and result["served"]:
                shown["served"] = (result["served"]["served_ms"]["median"], "C2")
            for what, (value, colour) in shown.items():
                labels.append(f"{name}, {row['threads']} {unit}: {what}")
                values.append(value)
                colours.append(colour)
    bars = axes.barh(range(len(values)), values, color=colours)
    axes.bar_label(bars, [f" {value:.3g}" for value in values], fontsize=8)
    axes.set_yticks(range(len(values)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("milliseconds a decoded token (median; floors at the best bandwidth)")
    axes.set_title("Decoding against the bytes it reads")
    axes.grid(alpha=0.3, axis="x")


def _draw_shares(axes: Any, models: Mapping[str, Mapping[str, Any]]) -> None:
    kinds = sorted(
        {kind for result in models.values() for kind in result["profile"]["operators"]},
        key=lambda kind: (
            -max(
                result["profile"]["operators"].get(kind, {"us": 0})["us"]
                / result["profile"]["token_us"]
                for result in models.values()
            )
        ),
    )
    shown = [
        *kinds[:SHOWN],
        "other operators",
        "between operators, and the profiler",
        "outside the session",
    ]
    starts = [0.0] * len(models)
    for index, part in enumerate(shown):
        shares = [_share(result["profile"], part, kinds[:SHOWN]) for result in models.values()]
        label = _count_nodes(part, models)
        axes.barh(range(len(models)), shares, left=starts, color=f"C{index}", label=label)
        starts = [start + share for start, share in zip(starts, shares, strict=True)]
    axes.set_yticks(range(len(models)), list(models), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("share of a token's time, profiler on, bare loop, 1 thread")
    axes.set_title("Where a token's time goes")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)


def _share(profile: Mapping[str, Any], part: str, named: list[str]) -> float:
    operators = profile["operators"]
    if part == OUTSIDE:
        us = profile["token_us"] - profile["session_us"]
    elif part == "between operators, and the profiler":
        us = profile["between_operators_us"]
    elif part == OTHERS:
        us = sum(row["us"] for kind, row in operators.items() if kind not in named)
    else:
        us = operators.get(part, {"us": 0.0})["us"]
    return float(max(0.0, us) / profile["token_us"])


def _count_nodes(part: str, models: Mapping[str, Mapping[str, Any]]) -> str:
    counts = [
        result["profile"]["operators"][part]["nodes"]
        for result in models.values()
        if part in result["profile"]["operators"]
    ]
    return f"{part} ({', '.join(f'{count:.0f}' for count in counts)})" if counts else part
