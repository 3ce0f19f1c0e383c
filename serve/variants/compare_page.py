"""The page of `serve.variants.compare`: what each variant did, and by how much it differs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from markupsafe import Markup
from matplotlib.ticker import PercentFormatter

from curt.drawing import INK, LINES, SERIES, finish_figure, new_figure
from curt.html import render_html
from curt.report.page import Panel
from curt.scores.statistics import Span
from serve.variants.compare import Evidence, Pairs, Requests, differences, quantile, share

MISSING = "–"
SERIOUS = ("errors", "degraded", "late")


def render_page(evidence: Evidence, baseline: str) -> str:
    """The whole report as one HTML text that loads nothing from anywhere."""
    names = [baseline, *sorted(evidence.variants.keys() - {baseline})]
    variants = {name: evidence.variants[name] for name in names}
    return render_html(
        "variants.html.j2",
        baseline=baseline,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        summary=summarise(evidence, baseline),
        counts=[
            (name, r.total, r.answered, r.degraded, r.late, r.refused, r.errors, r.judged)
            for name, r in variants.items()
        ],
        rates=table(variants, lambda r: r.shares(), percent),
        rate_changes=change_table(differences(evidence, baseline, Requests.shares), points),
        latencies=table(variants, lambda r: r.quantiles_ms(), milliseconds),
        latency_changes=change_table(
            differences(evidence, baseline, Requests.quantiles_ms), milliseconds
        ),
        shadows=[shadow_row(*names, pairs) for names, pairs in sorted(evidence.pairs.items())],
        panels=make_panels(variants),
        unread=evidence.unread,
        unmatched=evidence.unmatched,
    )


def summarise(evidence: Evidence, baseline: str) -> list[str]:
    """The sentences under the title: only differences that their interval keeps from zero."""
    changes = differences(evidence, baseline, Requests.shares)
    slower = differences(evidence, baseline, Requests.quantiles_ms)
    sentences = []
    for name in changes:
        said = []
        for figure, span in {**changes[name], **slower[name]}.items():
            if span is not None and (span.low > 0 or span.high < 0):
                form = milliseconds if figure in slower[name] else points
                said.append(f"{figure} {form(span)}")
        many = "; ".join(said)
        sentences.append(
            f"{name} differs from {baseline} beyond chance in: {many}."
            if said
            else f"{name}: no difference from {baseline} that could be told from chance."
        )
    if not changes:
        sentences.append(f"All requests went to {baseline}: there is nothing to compare it with.")
    return sentences


def table(
    variants: Mapping[str, Requests],
    measure: Callable[[Requests], Mapping[str, Span | None]],
    form: Callable[[Span | None], str],
) -> list[tuple[str, ...]]:
    """A heading row, then one row a variant."""
    measured = {name: measure(requests) for name, requests in variants.items()}
    heads = next(iter(measured.values()))
    return [("variant", *heads)] + [
        (name, *(form(span) for span in spans.values())) for name, spans in measured.items()
    ]


def change_table(
    changes: Mapping[str, Mapping[str, Span | None]], form: Callable[[Span | None], str]
) -> list[tuple[str, ...]]:
    """The same for differences; empty where there is but one variant."""
    if not changes:
        return []
    heads = next(iter(changes.values()))
    return [("variant", *heads)] + [
        (name, *(form(span) for span in spans.values())) for name, spans in changes.items()
    ]


def shadow_row(live: str, shadow: str, pairs: Pairs) -> tuple[str, ...]:
    """One row on a shadow: how many pairs, how often alike, how far apart."""
    same = [percent(share(sum(hits), len(hits))) for hits in (pairs.same[p] for p in PARTS)]
    apart = pairs.months_apart
    return (
        f"{shadow} beside {live}",
        str(pairs.compared),
        str(pairs.failed),
        *same,
        f"{statistics.fmean(apart):+.1f}" if apart else MISSING,
        f"{statistics.fmean(map(abs, apart)):.1f}" if apart else MISSING,
        milliseconds(quantile(pairs.extra_ms, 0.5)),
        f"{pairs.live_degraded} / {pairs.shadow_degraded}",
    )


PARTS = ("charges", "articles", "term", "verdict")


def make_panels(variants: Mapping[str, Requests]) -> list[Panel]:
    """The figures, where there is something to draw."""
    panels = []
    if any(requests.latencies_ms for requests in variants.values()):
        svg = draw_latencies({name: r.latencies_ms for name, r in variants.items()})
        told = "Share of answers that came within a time; refusals are not answers."
        panels.append(Panel("Latency", told, Markup(svg)))  # noqa: S704 our own SVG, its texts escaped
    rates = {name: requests.shares() for name, requests in variants.items()}
    svg = draw_rates(rates, SERIOUS, "Errors, degraded and late answers")
    told = "Shares with 95% intervals."
    panels.append(Panel("What went wrong", told, Markup(svg)))  # noqa: S704 our own SVG, its texts escaped
    judged = ("judged correct", "charges right", "articles right", "term right")
    if any(spans[figure] for spans in rates.values() for figure in judged):
        svg = draw_rates(rates, judged, "Agreement with what people said")
        told = "Of answers that someone judged, with 95% intervals."
        panels.append(Panel("Agreement with corrections", told, Markup(svg)))  # noqa: S704 our own SVG, its texts escaped
    return panels


def draw_latencies(latencies_ms: Mapping[str, list[float]]) -> str:
    """Empirical distributions of latency as SVG."""
    figure, axes = new_figure(1)
    for index, (name, values) in enumerate(latencies_ms.items()):
        if values:
            axes[0].ecdf(
                values,
                color=SERIES[index % len(SERIES)],
                linestyle=LINES[index % len(LINES)],
                label=name,
            )
    axes[0].set(xlabel="latency, ms", ylabel="answers within it")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    return finish_figure(figure, axes, "Latency by variant")


def draw_rates(
    rates: Mapping[str, Mapping[str, Span | None]], figures: tuple[str, ...], title: str
) -> str:
    """Shares with their intervals as SVG: a row a figure, a mark a variant."""
    figure, axes = new_figure(1, height_in=1.2 + 0.55 * len(figures))
    step = 0.6 / max(1, len(rates))
    for index, (name, spans) in enumerate(rates.items()):
        rows = [(row, span) for row, key in enumerate(figures) if (span := spans[key])]
        axes[0].errorbar(
            [span.value for _, span in rows],
            [row + (index - (len(rates) - 1) / 2) * step for row, _ in rows],
            xerr=[
                [span.value - span.low for _, span in rows],
                [span.high - span.value for _, span in rows],
            ],
            fmt="o",
            color=SERIES[index % len(SERIES)],
            label=name,
            capsize=2,
        )
    axes[0].axvline(0, color=INK, linewidth=0.5)
    axes[0].set_yticks(range(len(figures)), figures)
    axes[0].set_ylim(len(figures) - 0.5, -0.5)
    axes[0].xaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    return finish_figure(figure, axes, title)


def percent(span: Span | None) -> str:
    """A share and its interval: 5.0% (3.1% to 7.9%)."""
    return MISSING if span is None else f"{span.value:.1%} ({span.low:.1%} to {span.high:.1%})"


def points(span: Span | None) -> str:
    """A difference of shares in points: +2.0 points (-0.5 to +4.5)."""
    if span is None:
        return MISSING
    return f"{span.value * 100:+.1f} points ({span.low * 100:+.1f} to {span.high * 100:+.1f})"


def milliseconds(span: Span | None) -> str:
    """A time and its interval: 120 ms (110 to 131)."""
    return MISSING if span is None else f"{span.value:.1f} ms ({span.low:.1f} to {span.high:.1f})"
