"""The page of a capacity search: one HTML text that loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from curt.html import render_html
from loadtest._page import MISSING, plain
from loadtest.capacity._drawing import draw_panels
from loadtest.capacity._search import Capacity


def render_page(settings: Mapping[str, Any], capacity: Capacity) -> str:
    """The verdict, the plot, every step and the settings."""
    told = capacity.to_json()
    flat = {**settings, **settings["plan"]}
    flat.pop("plan")
    slo_ms = settings["plan"]["slo_ms"]
    steps = sorted(told["steps"], key=lambda step: float(step["rate_per_s"]))
    # matplotlib escapes the texts in its SVG: hence Markup.
    figure = Markup(draw_panels({"p99": capacity}, slo_ms)) if steps else None  # noqa: S704
    return render_html(
        "capacity.html.j2",
        host=settings["host"],
        found=told,
        steps=steps,
        figure=figure,
        slo_ms=slo_ms,
        settings=[(name, plain(value)) for name, value in flat.items()],
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        figures=sorted({name for step in steps for name in step["figures"]}),
        number=lambda value: MISSING if value is None else f"{value:,.1f}",
    )
