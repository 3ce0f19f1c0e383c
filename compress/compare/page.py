"""The page: the default, the table, both trade-offs and every recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import PercentFormatter

from compress.compare.choice import ArtifactRow, Choice, pareto_front
from compress.compare.speed import Speed, Spread
from curt.drawing import INK, MARKERS, SERIES, finish_figure, new_figure
from curt.html import render_html
from curt.report.claims import SMALL_SAMPLE
from curt.report.page import Panel
from curt.scores.statistics import Span

MISSING = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """A heading for every column and a row of texts for every artifact."""

    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class RecipeText:
    """How an artifact was made, from its manifest."""

    name: str
    stage: str
    made_from: str
    manifest_sha256: str
    settings: list[tuple[str, str]]


def render_page(rows: Sequence[ArtifactRow], choice: Choice, settings: Mapping[str, Any]) -> str:
    """The whole report as one HTML text that loads nothing from anywhere."""
    return render_html(
        "compress.html.j2",
        parent=rows[0],
        choice=choice,
        chosen=next((row for row in rows if row.identity.name == choice.name), None),
        summary=summarise(rows, choice, settings),
        quality=None if settings["speed_only"] else quality_table(rows),
        sizes=size_table(rows),
        speeds=[
            (count, speed_table(rows, count))
            for count in sorted({speed.threads for row in rows for speed in row.speeds})
        ],
        panels=make_panels(rows),
        recipes=[make_recipe(row) for row in rows],
        notes=[(row.identity.name, note) for row in rows for note in row.notes],
        settings=[(name, _plain(value)) for name, value in settings.items()],
        speed_only=settings["speed_only"],
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        change=_points,
    )


def summarise(
    rows: Sequence[ArtifactRow], choice: Choice, settings: Mapping[str, Any]
) -> list[str]:
    """The sentences under the title."""
    if settings["speed_only"]:
        return [
            "Sizes and speeds only: the weights are random, so accuracy and closeness mean "
            "nothing, were not measured, and no default is chosen."
        ]
    cases = rows[0].cases or 0
    said = [
        f"{cases} cases, each answered greedily under a thinking budget of "
        f"{settings['budget']} tokens, stated and enforced."
    ]
    if cases < SMALL_SAMPLE:
        said.append("That is a small sample; read the intervals, not the points.")
    if choice.name is None:
        said.append("No artifact qualifies: there is no default.")
    if choice.caveat:
        said.append(choice.caveat)
    return said


def quality_table(rows: Sequence[ArtifactRow]) -> Table:
    """Accuracy, official scores, thinking, closeness, and the time of a whole request."""
    heads = (
        "artifact", "exact, 95%", "against parent, points, 95%", "charge score",
        "article score", "term score", "readable", "thinking, mean", "thinking, p95",
        "same verdict", "KL, nats", "same next token", "exact points per MB", "request, ms",
    )  # fmt: skip
    return Table(
        heads,
        [
            (
                row.identity.name,
                _share(row.exact),
                "parent" if row.is_parent else _points(row.change),
                _number(row.score_charge, ".1f"),
                _number(row.score_article, ".1f"),
                _number(row.score_term, ".3f"),
                _number(row.parsed, ".1%"),
                _number(row.thinking_mean, ".1f"),
                _number(row.thinking_p95, ".0f"),
                _number(row.same_verdict, ".1%"),
                _number(row.kl, ".2g"),
                _number(row.argmax_agreement, ".2%"),
                _number(row.exact_points_per_mb, ".3g"),
                _number(row.request_ms, ".1f"),
            )
            for row in rows
        ],
    )


def size_table(rows: Sequence[ArtifactRow]) -> Table:
    """What each folder is and how much room it takes."""
    heads = ("artifact", "format", "precision", "weights, MB", "folder, MB", "smaller than fp32")
    return Table(
        heads,
        [
            (
                row.identity.name,
                row.identity.format,
                row.identity.precision,
                f"{row.identity.weights_mb:,.2f}",
                f"{row.identity.folder_mb:,.2f}",
                f"{row.times_smaller:.2f}×",
            )
            for row in rows
        ],
    )


def speed_table(rows: Sequence[ArtifactRow], threads: int) -> Table:
    """Speeds of every measured artifact at one thread count."""
    heads = (
        "artifact", "load, s", "peak memory, MB", "prompt", "prefill, tokens/s",
        "decode, tokens/s", "decode, × parent", "prefill, × bare loop", "decode, × bare loop",
    )  # fmt: skip
    pairs = [(row, s) for row in rows for s in row.speeds if s.threads == threads]
    return Table(heads, [(row.identity.name, *_speed_cells(speed)) for row, speed in pairs])


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
        # matplotlib escapes the texts in its SVG: hence Markup.
        svg = Markup(draw_front(points, names, title, label))  # noqa: S704
        panels.append(Panel(title, sentence, svg))
    return panels


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


def make_recipe(row: ArtifactRow) -> RecipeText:
    """An artifact's settings in the order its manifest has them."""
    identity = row.identity
    origin = identity.made_from
    if not row.is_parent and not identity.of_this_parent:
        origin += " (not the parent of this report)"
    return RecipeText(
        name=identity.name,
        stage=identity.stage,
        made_from=origin,
        manifest_sha256=identity.manifest_sha256,
        settings=[(name, _plain(value)) for name, value in identity.recipe.items()],
    )


def _speed_cells(speed: Speed) -> tuple[str, ...]:
    return (
        f"{speed.load_s:.2f}",
        f"{speed.peak_rss_mb:,.0f}",
        f"{speed.prompt_tokens}",
        _spread(speed.prefill_tokens_per_s, ",.0f"),
        _spread(speed.decode_tokens_per_s, ",.0f" if speed.decode_tokens_per_s.low > 99 else ".1f"),
        _spread(speed.decode_to_first, ".2f"),
        _spread(speed.prefill_to_bare, ".2f"),
        _spread(speed.decode_to_bare, ".2f"),
    )


def _spread(value: Spread, form: str) -> str:
    return f"{value.median:{form}} ({value.low:{form}} to {value.high:{form}})"


def _share(span: Span | None) -> str:
    return MISSING if span is None else f"{span.value:.1%} ({span.low:.1%} to {span.high:.1%})"


def _points(span: Span | None) -> str:
    if span is None:
        return MISSING
    value, low, high = (
        f"{100 * v:+.1f}".replace("-", "−") for v in (span.value, span.low, span.high)
    )
    return f"{value} ({low} to {high})"


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
