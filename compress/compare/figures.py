"""The two trade-offs as figures: accuracy against size and against decode speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.ticker import PercentFormatter

from curt.drawing import INK, MARKERS, SERIES, finish_figure, new_figure
from curt.scores.statistics import Span


def draw_front(
    points: Mapping[str, tuple[float, Span]], front: Sequence[str], title: str, label: str
) -> str:
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
