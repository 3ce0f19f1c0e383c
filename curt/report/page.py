"""The page: what each section shows, and plainly "not run" where a part is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from curt.drawing import SERIES
from curt.html import render_html
from curt.report import claims, figures
from curt.report.claims import NOT_RUN
from curt.report.figures import LABELS
from curt.report.inputs import Artifact, Evaluation, Parity, RunParts, WorkedExample
from curt.scores.statistics import bootstrap_mean, wilson

BEFORE, CONTROL, AFTER = "warm-start", "grpo-none", "grpo-default"
WARM_START_HISTORY = "warm-start"
MAX_EXAMPLES = 4


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure and the sentence that says what it shows; no figure where nothing was run."""

    title: str
    sentence: str
    svg: Markup | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """One case before and after; a side is None where that evaluation did not keep the case."""

    fact: str
    reference: str
    sides: tuple[tuple[str, WorkedExample | None], ...]


def render_page(run: RunParts) -> str:
    """The whole report as one HTML text that loads nothing from anywhere."""
    evaluations = [e for _, e in _in_order(run.evaluations)]
    return render_html(
        "report.html.j2",
        run=run,
        before=run.evaluations.get(BEFORE),
        control=run.evaluations.get(CONTROL),
        after=run.evaluations.get(AFTER),
        labels={"before": LABELS[BEFORE], "after": LABELS[AFTER]},
        claims=claims,
        length_interval=_length_interval,
        exact_interval=_exact_interval,
        panels=list(make_panels(run)),
        named=[(LABELS.get(name, name), e) for name, e in _in_order(run.evaluations)],
        metrics=list(dict.fromkeys(metric for e in evaluations for metric in e.scores)),
        traits=list(dict.fromkeys(trait for e in evaluations for trait in e.by_trait)),
        no_parity=Parity(),
        exact_of=lambda folder: claims.exact_of(_evaluation_of(folder, run.evaluations)),
        pairs=pair_examples(run.evaluations),
        tools=tool_versions(run.artifacts),
        not_run=NOT_RUN,
    )


def make_panels(run: RunParts) -> Iterator[Panel]:
    """Every figure of the page, in reading order."""
    yield _lengths_panel(run)
    yield _training_panel(run)
    yield _budgets_panel(run)
    yield _latency_panel(run)
    yield _artifacts_panel(run)
    title = "Warm start: loss"
    rows = run.histories.get(WARM_START_HISTORY, [])
    if claims.column_of(rows, "loss"):
        yield Panel(title, claims.say_loss(rows), figures.draw_loss(rows))
    else:
        yield Panel(title, f"Warm start: {NOT_RUN}.")


def _lengths_panel(run: RunParts) -> Panel:
    title = "Thinking length before and after"
    named = [
        (LABELS[name], evaluation.thinking_lengths)
        for name in (BEFORE, CONTROL, AFTER)
        if (evaluation := run.evaluations.get(name)) and evaluation.thinking_lengths
    ]
    if not named:
        return Panel(title, f"Evaluation with thinking lengths: {NOT_RUN}.")
    before, after = run.evaluations.get(BEFORE), run.evaluations.get(AFTER)
    sentence = (
        claims.say_thinking(before, after)
        if before and after
        else f"Only {' and '.join(name for name, _ in named)} was evaluated; the other side: "
        f"{NOT_RUN}."
    )
    return Panel(title, sentence, figures.draw_lengths(named))


def _training_panel(run: RunParts) -> Panel:
    title = "GRPO over its steps"
    named = [
        (LABELS.get(name, name), rows)
        for name, rows in run.histories.items()
        if name.startswith("grpo")
        and any(claims.column_of(rows, c) for c in ("reward", "exact", "thinking_tokens"))
    ]
    if not named:
        return Panel(title, f"GRPO: {NOT_RUN}.")
    sentence = " ".join(claims.say_training(name, rows) for name, rows in named)
    return Panel(title, sentence, figures.draw_training(named))


def _budgets_panel(run: RunParts) -> Panel:
    title = "Accuracy by thinking budget"
    named = [
        (LABELS.get(name, name), evaluation)
        for name, evaluation in _in_order(run.evaluations)
        if evaluation.by_budget
    ][: len(SERIES)]
    if not named:
        return Panel(title, f"Evaluation under forced budgets: {NOT_RUN}.")
    return Panel(title, claims.say_budgets(named), figures.draw_budgets(named))


def _latency_panel(run: RunParts) -> Panel:
    title = "Latency under open arrivals"
    load = run.load_test
    if load is None:
        return Panel(title, f"Load test: {NOT_RUN}.")
    if not load.latencies_ms:
        return Panel(title, claims.say_load(load) + " No valid answer came, so none is drawn.")
    return Panel(title, claims.say_load(load), figures.draw_latency(load))


def _artifacts_panel(run: RunParts) -> Panel:
    title = "Size and speed"
    rows = [
        (artifact.name, artifact.weights_bytes / 1e6, _speed(artifact))
        for artifact in run.artifacts
    ]
    if not any(artifact.parity for artifact in run.artifacts):
        return Panel(title, f"Compression: {NOT_RUN}.")
    small, large = (f(rows, key=lambda row: row[1]) for f in (min, max))
    sentence = (
        f"The smallest weights are {small[0]}'s ({small[1]:.1f} MB), the largest {large[0]}'s "
    )
    sentence += f"({large[1]:.1f} MB)."
    timed = [(speed, name) for name, _, speed in rows if speed is not None]
    if timed:
        speed, name = max(timed)
        lead = "decodes" if len(timed) == 1 else f"decodes fastest of {len(timed)} measured,"
        sentence += f" {name} {lead} at {speed:,.0f} tokens/s on one CPU thread."
    return Panel(title, sentence, figures.draw_artifacts(rows))


def pair_examples(evaluations: Mapping[str, Evaluation]) -> list[Pair]:
    """Cases worked by both sides first, then those only one side kept."""
    by_side = {
        name: {example.fact: example for example in evaluations[name].examples}
        for name in (BEFORE, AFTER)
        if name in evaluations
    }
    facts = list(dict.fromkeys(fact for examples in by_side.values() for fact in examples))
    facts.sort(key=lambda fact: -sum(fact in examples for examples in by_side.values()))
    pairs = []
    for fact in facts[:MAX_EXAMPLES]:
        sides = tuple((LABELS[name], by_side.get(name, {}).get(fact)) for name in (BEFORE, AFTER))
        reference = next(example.reference for _, example in sides if example)
        pairs.append(Pair(fact, reference, sides))
    return pairs


def tool_versions(artifacts: Sequence[Artifact]) -> dict[str, str]:
    """Versions recorded in the manifests; several where the folders differ."""
    found: dict[str, set[str]] = {}
    for artifact in artifacts:
        for tool, version in (artifact.manifest.tools if artifact.manifest else {}).items():
            found.setdefault(tool, set()).add(version)
    return {tool: ", ".join(sorted(versions)) for tool, versions in sorted(found.items())}


def _in_order(evaluations: Mapping[str, Evaluation]) -> Iterator[tuple[str, Evaluation]]:
    first = [name for name in (BEFORE, CONTROL, AFTER) if name in evaluations]
    for name in [*first, *(name for name in evaluations if name not in first)]:
        yield name, evaluations[name]


def _evaluation_of(folder: str, evaluations: Mapping[str, Evaluation]) -> Evaluation | None:
    """The evaluation named after a folder, or else one made on the model in it."""
    if folder in evaluations:
        return evaluations[folder]
    return next((e for e in evaluations.values() if Path(e.model).name == folder), None)


def _speed(artifact: Artifact) -> float | None:
    return artifact.parity.decode_tokens_per_s_1_threads if artifact.parity else None


def _length_interval(evaluation: Evaluation | None) -> str:
    if evaluation is None or not evaluation.thinking_lengths:
        return NOT_RUN
    low, high = bootstrap_mean(evaluation.thinking_lengths)
    return f"{low:.1f} to {high:.1f}"


def _exact_interval(evaluation: Evaluation | None) -> str:
    exact = claims.exact_of(evaluation)
    if evaluation is None or exact is None:
        return NOT_RUN
    return claims.percent_between(wilson(exact, evaluation.n))
