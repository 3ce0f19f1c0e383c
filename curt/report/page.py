"""The page: what each section shows, and plainly "not run" where a part is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from curt.corpus.augment.counterfactuals import STAYS
from curt.drawing import SERIES
from curt.html import render_html
from curt.report import claims, figures
from curt.report.claims import NOT_RUN
from curt.report.figures import LABELS
from curt.report.inputs import Artifact, Evaluation, Parity, RunParts, TrainingStep, WorkedExample
from curt.scores.statistics import bootstrap_mean, wilson

BEFORE, CONTROL, AFTER = "warm-start", "grpo-none", "grpo-default"
WARM_START_HISTORY = "warm-start"
MAX_EXAMPLES = 4


@dataclass(frozen=True, slots=True)
class Pair:
    """One case before and after; a side is None where that evaluation did not keep the case."""

    fact: str
    reference: str
    sides: tuple[tuple[str, WorkedExample | None], ...]


def render_page(run: RunParts) -> str:
    """The whole report as one HTML text that loads nothing from anywhere."""
    named = [(LABELS.get(name, name), e) for name, e in _in_order(run.evaluations)]
    evaluations = [e for _, e in named]
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
        figures=figures,
        lengths=_lengths(run),
        training=_training(run),
        budgets=[(name, e) for name, e in named if e.by_budget][: len(SERIES)],
        sizes=[(a.name, a.weights_bytes / 1e6, _speed(a)) for a in run.artifacts],
        warm_start=run.histories.get(WARM_START_HISTORY, []),
        named=named,
        rival=next((e for e in reversed(evaluations) if e.classifier.scores), None),
        metrics=list(dict.fromkeys(metric for e in evaluations for metric in e.scores)),
        traits=list(dict.fromkeys(trait for e in evaluations for trait in e.by_trait)),
        pairs_asked=[(name, e) for name, e in named if e.counterfactuals.by_kind],
        stays=STAYS,
        no_parity=Parity(),
        exact_of=lambda folder: claims.exact_of(_evaluation_of(folder, run.evaluations)),
        pairs=pair_examples(run.evaluations),
        tools=tool_versions(run.artifacts),
        not_run=NOT_RUN,
    )


def _lengths(run: RunParts) -> list[tuple[str, list[int]]]:
    return [
        (LABELS[name], evaluation.thinking_lengths)
        for name in (BEFORE, CONTROL, AFTER)
        if (evaluation := run.evaluations.get(name)) and evaluation.thinking_lengths
    ]


def _training(run: RunParts) -> list[tuple[str, list[TrainingStep]]]:
    return [
        (LABELS.get(name, name), rows)
        for name, rows in run.histories.items()
        if name.startswith("grpo")
        and any(claims.column_of(rows, c) for c in ("reward", "exact", "thinking_tokens"))
    ]


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
