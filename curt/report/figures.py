"""The figures of the report: lengths, training, loss, budgets, artifacts, latency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import NullFormatter, PercentFormatter, StrMethodFormatter

from curt.drawing import INK, LINES, MARKERS, SERIES, finish_figure, new_figure
from curt.report.claims import column_of
from curt.report.inputs import Evaluation, TrainingStep
from curt.scores.statistics import wilson

LABELS = {
    "warm-start": "Warm start",
    "grpo-default": "GRPO, length penalty",
    "grpo-none": "GRPO, no penalty",
}


def draw_lengths(named: Sequence[tuple[str, Sequence[int]]]) -> Markup:
    """Overlaid histograms of thinking tokens, one for each (name, lengths)."""
    figure, axes = new_figure(1)
    top = max(max(lengths) for _, lengths in named)
    width = max(1, round((top + 1) / 40))
    edges = list(range(0, top + 2 * width, width))
    for name, lengths in named:
        index = _place(name, named)
        colour = SERIES[index]
        weights = [1 / len(lengths)] * len(lengths)
        axes[0].hist(lengths, edges, weights=weights, color=colour, alpha=0.25)
        axes[0].hist(
            lengths, edges, weights=weights, histtype="step", color=colour,
            linestyle=LINES[index], linewidth=1.5, label=name,
        )  # fmt: skip
    axes[0].set(xlabel="thinking tokens", ylabel="share of cases")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    return finish_figure(figure, axes, "Distribution of thinking tokens")


def draw_training(named: Sequence[tuple[str, Sequence[TrainingStep]]]) -> Markup:
    """Reward, exact share and thinking tokens over the steps: raw faint, running mean bold."""
    wanted = (
        ("reward", "reward"),
        ("exact", "exact share of rollouts"),
        ("eval_exact", "exact share of dev cases"),
        ("thinking_tokens", "thinking tokens"),
    )
    panels = [
        (column, label)
        for column, label in wanted
        if any(column_of(rows, column) for _, rows in named)
    ]
    figure, axes = new_figure(len(panels))
    for panel, (column, label) in zip(axes, panels, strict=True):
        for name, rows in named:
            index = _place(name, named)
            pairs = column_of(rows, column)
            if not pairs:
                continue
            steps, values = [step for step, _ in pairs], [value for _, value in pairs]
            panel.plot(steps, values, color=SERIES[index], alpha=0.25, linewidth=0.7)
            panel.plot(
                steps, _running_mean(values, max(1, len(values) // 20)),
                color=SERIES[index], linestyle=LINES[index], linewidth=1.6, label=name,
            )  # fmt: skip
        panel.set_ylabel(label)
    axes[-1].set_xlabel("step")
    return finish_figure(figure, axes, "Training over its steps")


def draw_loss(rows: Sequence[TrainingStep]) -> Markup:
    """Warm-start loss over the steps."""
    figure, axes = new_figure(1)
    pairs = column_of(rows, "loss")
    axes[0].plot(*zip(*pairs, strict=True), color=SERIES[0], linewidth=1.4)
    axes[0].set(xlabel="step", ylabel="loss")
    return finish_figure(figure, axes, "Warm-start loss")


def draw_budgets(named: Sequence[tuple[str, Evaluation]]) -> Markup:
    """Exact accuracy under each forced budget, with 95% intervals, one line for each model."""
    figure, axes = new_figure(1)
    for name, evaluation in named:
        index = _place(name, named)
        rows = sorted(evaluation.by_budget, key=lambda row: row.budget)
        budgets, exact = [row.budget for row in rows], [row.exact for row in rows]
        bounds = [wilson(row.exact, row.n or evaluation.n) for row in rows]
        axes[0].plot(
            budgets, exact, color=SERIES[index], linestyle=LINES[index],
            marker=MARKERS[index], markersize=4, label=name,
        )  # fmt: skip
        axes[0].fill_between(
            budgets,
            [low for low, _ in bounds],
            [high for _, high in bounds],
            color=SERIES[index],
            alpha=0.15,
            linewidth=0,
        )
    axes[0].set(xlabel="thinking budget, tokens (enforced)", ylabel="exact verdicts")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    axes[0].set_ylim(bottom=0)
    return finish_figure(figure, axes, "Exact accuracy by thinking budget")


def draw_artifacts(rows: Sequence[tuple[str, float, float | None]]) -> Markup:
    """Bars of size in MB and of decode tokens a second for each (name, size, speed)."""
    figure, panels = new_figure(2, height_in=0.9 + 0.32 * len(rows), columns=2)
    names = [name for name, _, _ in rows]
    for panel, values, label in (
        (panels[0], [size for _, size, _ in rows], "weights, MB"),
        (panels[1], [speed or 0.0 for _, _, speed in rows], "decode, tokens/s on 1 thread"),
    ):
        bars = panel.barh(names, values, color=SERIES[0], height=0.6)
        known = [f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in values]
        if panel is panels[1]:
            known = [
                text if row[2] is not None else "not run"
                for text, row in zip(known, rows, strict=True)
            ]
        panel.bar_label(bars, known, padding=2, fontsize=9, color=INK)
        panel.margins(x=0.3)
        panel.set_xlabel(label)
        panel.invert_yaxis()
    panels[1].tick_params(labelleft=False)
    return finish_figure(figure, panels, "Size and decode speed of each model folder")


def draw_latencies(latencies_ms: Sequence[float], p99_ms: float | None, slo_ms: float) -> Markup:
    """Latencies of valid answers, counted on a log scale so that a tail of one shows."""
    figure, axes = new_figure(1)
    top = max(max(latencies_ms, default=0.0), slo_ms) * 1.05
    axes[0].hist(
        latencies_ms, bins=60, range=(0, top), color=SERIES[0], alpha=0.6, log=True, label="answers"
    )
    axes[0].axvline(slo_ms, color=SERIES[1], linewidth=1.6, label=f"SLO {slo_ms:g} ms")
    if p99_ms is not None:
        label = f"p99 {p99_ms:.0f} ms"
        axes[0].axvline(p99_ms, color=INK, linestyle="--", linewidth=1.2, label=label)
    axes[0].set(xlabel="latency from its schedule, ms", ylabel="answers, log scale")
    axes[0].yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))  # no mathematics in our SVG
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    return finish_figure(figure, axes, "Latency of the answers")


def _place(name: str, named: Sequence[tuple[str, Any]]) -> int:
    """The palette place of a series: a model keeps its colour in every figure of the page."""
    known = list(LABELS.values())
    if name in known:
        return known.index(name)
    others = [other for other, _ in named if other not in known]
    return len(known) + others.index(name) % (len(SERIES) - len(known))


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    return [
        sum(values[max(0, end - window) : end]) / len(values[max(0, end - window) : end])
        for end in range(1, len(values) + 1)
    ]
