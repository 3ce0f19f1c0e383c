"""Figures outside pyplot: PNG files, and inline SVG that takes its colours from the page.

So dark mode reaches the SVG.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

# Okabe and Ito's palette, safe for colour-blind readers; the page brightens it in dark mode.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
INK = "#010203"  # stands for the page's text colour
WIDTH_IN, HEIGHT_IN = 4.2, 3.0  # narrow, so that text stays readable on a phone

STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.fontsize": 9,
}


def new_figure(
    panels: int, *, width_in: float = WIDTH_IN, height_in: float | None = None, columns: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure outside pyplot, whose global state a report has no use for."""
    with mpl.rc_context(STYLE):
        rows = panels // columns
        height = height_in or HEIGHT_IN + 1.5 * (rows - 1)
        figure = Figure(figsize=(width_in, height), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=columns == 1)
    return figure, [axes for row in grid for axes in row]


def scale_by_log(axes: Axes) -> None:
    """A log scale upwards with plain numbers beside it, since `STYLE` reads no mathematics."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def finish_figure(figure: Figure, axes: Sequence[Axes], title: str) -> Markup:
    """The figure as SVG text with its legend above the axes, for a page with our style sheet."""
    buffer = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": title}):
        if axes[0].get_legend_handles_labels()[1]:
            # Above the axes, where it hides no data.
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
        figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9]+_\d+"', "", svg)  # repeated in every figure of the page
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" role="img">', svg)
    svg = re.sub(r"<svg ([^>]*)>", rf"<svg \1><title>{title}</title>", svg, count=1)
    svg = svg.replace("xlink:href=", "href=").replace(INK, "currentColor")
    for index, colour in enumerate(SERIES):
        svg = svg.replace(colour, f"var(--series-{index + 1})")
    return Markup(svg)  # noqa: S704  matplotlib escapes the texts in it
