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
class Card:
    """One headline number. `state` is "pass", "fail" or empty."""

    title: str
    value: str
    detail: str
    state: str = ""


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
        cards=list(make_cards(run)),
        summary=list(summarise(run)),
        panels=list(make_panels(run)),
        named=[(LABELS.get(name, name), e) for name, e in _in_order(run.evaluations)],
        metrics=list(dict.fromkeys(metric for e in evaluations for metric in e.scores)),
        traits=list(dict.fromkeys(trait for e in evaluations for trait in e.by_trait)),
        no_parity=Parity(),
        mean_thinking=claims.mean_thinking,
        exact_of=lambda folder: claims.exact_of(_evaluation_of(folder, run.evaluations)),
        pairs=pair_examples(run.evaluations),
        tools=tool_versions(run.artifacts),
        not_run=NOT_RUN,
    )


def make_cards(run: RunParts) -> Iterator[Card]:
    """The headline: thinking tokens, exact accuracy, p99."""
    before, after = run.evaluations.get(BEFORE), run.evaluations.get(AFTER)
    yield Card(
        "Thinking tokens a verdict",
        f"{_tokens(before)} → {_tokens(after)}",
        f"mean before → after GRPO; 95%: {_length_interval(before)} → {_length_interval(after)}",
    )
    yield Card(
        "Exact verdicts",
        f"{claims.percent(claims.exact_of(before))} → {claims.percent(claims.exact_of(after))}",
        "charge, article and term all right; "
        f"95%: {_exact_interval(before)} → {_exact_interval(after)}",
    )
    load = run.load_test
    if load is None:
        yield Card("p99 latency", NOT_RUN, "the load test was not run")
        return
    p99 = load.latency_ms.get("p99")
    yield Card(
        "p99 latency",
        "no valid answer" if p99 is None else f"{p99:.0f} ms",
        f"promise {load.settings.slo_p99_ms:g} ms; "
        f"{load.misses} misses in {load.requests} requests",
        "pass" if load.verdict.passed else "fail",
    )


def summarise(run: RunParts) -> Iterator[str]:
    """The sentences under the headline."""
    before, after = run.evaluations.get(BEFORE), run.evaluations.get(AFTER)
    if before and after:
        yield claims.say_thinking(before, after)
        yield claims.say_accuracy(before, after)
        warning = claims.say_comparable(before, after)
        if warning:
            yield warning
        yield claims.say_sample(after)
    else:
        for name, evaluation in ((BEFORE, before), (AFTER, after)):
            if evaluation is None:
                yield f"{LABELS[name]}: evaluation {NOT_RUN}."
    control = run.evaluations.get(CONTROL)
    if before and control:
        yield f"Control without a length penalty: {claims.say_thinking(before, control)}"
    if run.load_test:
        yield run.load_test.confidence.statement + "."
        yield from (f"Load test failed: {reason}." for reason in run.load_test.verdict.reasons)


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


def _measured(value: float | None, form: str) -> str:
    return NOT_RUN if value is None else format(value, form)


def _tokens(evaluation: Evaluation | None) -> str:
    return _measured(claims.mean_thinking(evaluation), ".1f")


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
