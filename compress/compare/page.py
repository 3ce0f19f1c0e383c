"""The page: the default, the table, both trade-offs and every recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import PercentFormatter

from compress.compare.choice import ArtifactRow, Choice, pareto_front
from curt.drawing import INK, MARKERS, SERIES, finish_figure, new_figure
from curt.html import render_html
from curt.report.claims import SMALL_SAMPLE
from curt.scores.statistics import Span


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure and the sentence that says what it shows."""

    title: str
    sentence: str
    svg: Markup


def render_page(rows: Sequence[ArtifactRow], choice: Choice, settings: Mapping[str, Any]) -> str:
    """The whole report as one HTML text that loads nothing from anywhere."""
    return render_html(
        "compress.html.j2",
        parent=rows[0],
        choice=choice,
        chosen=next((row for row in rows if row.identity.name == choice.name), None),
        small_sample=SMALL_SAMPLE,
        rows=rows,
        thread_counts=sorted({speed.threads for row in rows for speed in row.speeds}),
        panels=make_panels(rows),
        settings=settings,
    )


def make_panels(rows: Sequence[ArtifactRow]) -> list[Panel]:
    """Accuracy against size and against decode speed, each with its Pareto front."""
    sizes = {r.identity.name: (r.identity.weights_mb, r.exact) for r in rows if r.exact}
    speeds = {
        r.identity.name: (r.decode_tokens_per_s, r.exact)
        for r in rows
        if r.exact and r.decode_tokens_per_s is not None
    }
    panels = []
    for title, label, points, sign in (
        ("Exact accuracy against size", "weights, MB", sizes, -1),
        ("Exact accuracy against decode speed", "decode, tokens/s", speeds, 1),
    ):
        if not points:
            continue
        front = pareto_front({n: (sign * x, exact.value) for n, (x, exact) in points.items()})
        names = [name for name in points if name in front]
        beaten = [name for name in points if name not in front]
        sentence = f"On the front: {', '.join(names)}."
        if beaten:
            sentence += f" Beaten on both counts, or on one at a tie: {', '.join(beaten)}."
        panels.append(Panel(title, sentence, draw_front(points, names, title, label)))
    return panels


def draw_front(
    points: Mapping[str, tuple[float, Span]], front: Sequence[str], title: str, label: str
) -> Markup:
    """Exact accuracy with its interval over a cost or speed, the Pareto front joined by a line.

    `points` maps a name to (x, accuracy); names keep their colour by their place in it.
    """
    figure, axes = new_figure(1)
    panel = axes[0]
    line = sorted((points[name][0], points[name][1].value) for name in front)
    if len(line) > 1:
        panel.plot(*zip(*line, strict=True), color=INK, linewidth=1, linestyle=":", label="front")
    for index, (name, (x, exact)) in enumerate(points.items()):
        panel.errorbar(
            x,
            exact.value,
            yerr=[[exact.value - exact.low], [exact.high - exact.value]],
            color=SERIES[index % len(SERIES)],
            marker=MARKERS[index // len(SERIES) % len(MARKERS)],
            markersize=8 if name in front else 5,
            elinewidth=0.8,
            linestyle="none",
            label=name,
        )
    panel.set(xlabel=label, ylabel="exact verdicts")
    panel.set_xlim(left=0)
    panel.margins(x=0.1)
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    return finish_figure(figure, axes, title)
