"""What a search found: p99 and goodput against the rate as a picture, and all of it as a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from curt.drawing import INK, SERIES, finish_figure, new_figure, scale_by_log, to_png
from curt.html import render_html
from loadtest.capacity._search import Capacity

TITLE = "p99 and goodput against the rate of arrivals"


def draw_capacity(capacity: Capacity, slo_ms: float) -> bytes:
    """A PNG: p99 on a log scale on the left, goodput on the right."""
    figure, (left, right) = new_figure(2, width_in=10, height_in=4.2, columns=2)
    _plot([left, right], capacity, slo_ms)
    left.set_xlabel(right.get_xlabel())
    left.legend(fontsize=8)
    return to_png(figure)


def render_page(settings: Mapping[str, Any], capacity: Capacity) -> str:
    """The verdict, the plot, every step and the settings."""
    told = capacity.to_json()
    flat = {**settings, **settings["plan"]}
    flat.pop("plan")
    slo_ms = settings["plan"]["slo_ms"]
    steps = sorted(told["steps"], key=lambda step: float(step["rate_per_s"]))
    figure = None
    if steps:
        drawn, axes = new_figure(2)  # one above the other
        _plot(axes, capacity, slo_ms)
        figure = finish_figure(drawn, axes, TITLE)
    return render_html(
        "capacity.html.j2",
        host=settings["host"],
        found=told,
        steps=steps,
        figure=figure,
        slo_ms=slo_ms,
        settings=flat,
        figures=sorted({name for step in steps for name in step["figures"]}),
    )


def _plot(axes: Sequence[Axes], capacity: Capacity, slo_ms: float) -> None:
    left, right = axes
    steps = sorted(capacity.steps, key=lambda step: step.rate_per_s)
    p99s_ms = [step.quantile_ms(0.99) for step in steps]
    style: dict[str, Any] = {"color": SERIES[0], "marker": "o", "ms": 4}
    left.plot(
        [step.rate_per_s for step in steps],
        [math.nan if value is None else value for value in p99s_ms],
        label="p99",
        **style,
    )
    if capacity.rate_per_s:
        left.axvline(capacity.rate_per_s, color=SERIES[0], lw=0.8, alpha=0.6)
    ended = [step for step in steps if not step.stopped_early]
    right.plot([step.rate_per_s for step in ended], [step.goodput_per_s for step in ended], **style)
    left.axhline(slo_ms, color=INK, ls="--", lw=1.2, label=f"SLO {slo_ms:g} ms")
    scale_by_log(left)
    left.set(ylabel="p99, ms, log scale")
    right.set(xlabel="arrivals/s", ylabel="good answers/s", ylim=(0, None))
    for panel in axes:
        panel.grid(alpha=0.3)
