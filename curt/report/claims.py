"""Sentences that follow the numbers wherever they lead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from curt.report.inputs import Evaluation, LoadTest, TrainingStep
from curt.scores.statistics import Interval, Span, paired_difference, share, wilson

SMALL_SAMPLE = 200  # below, a proportion's interval is wider than about ±7 points
NOT_RUN = "not run"


def exact_of(evaluation: Evaluation | None) -> float | None:
    """Share of cases with charge, article and term all right."""
    return evaluation.scores.get("exact") if evaluation else None


def mean_thinking(evaluation: Evaluation | None) -> float | None:
    """Mean thinking tokens of an evaluation, from its lengths where it kept them."""
    if evaluation is None:
        return None
    if evaluation.thinking_lengths:
        return sum(evaluation.thinking_lengths) / len(evaluation.thinking_lengths)
    return evaluation.thinking_tokens.mean if evaluation.thinking_tokens else None


def percent(value: float | None, digits: int = 1) -> str:
    """A share as text: 57.5%."""
    return NOT_RUN if value is None else f"{value:.{digits}%}"


def percent_between(interval: Interval) -> str:
    """An interval of shares as text: 53.5% to 61.4%."""
    return f"{interval[0]:.1%} to {interval[1]:.1%}"


def direction(before: float, after: float, tolerance: float = 0.0) -> str:
    """fell, rose or stayed."""
    if abs(after - before) <= tolerance:
        return "stayed"
    return "rose" if after > before else "fell"


def say_thinking(before: Evaluation, after: Evaluation) -> str:
    """How the thinking length moved."""
    old, new = mean_thinking(before), mean_thinking(after)
    if old is None or new is None:
        return "Thinking lengths were not recorded on both sides, so no change can be stated."
    if direction(old, new, 0.05) == "stayed":
        return f"Mean thinking stayed at {new:.1f} tokens."
    share = f" ({_signed((new - old) / old, '.0%')})" if old else ""
    text = f"Mean thinking {direction(old, new)} from {old:.1f} to {new:.1f} tokens{share}."
    if before.thinking_lengths and after.thinking_lengths:
        median = sorted(before.thinking_lengths)[len(before.thinking_lengths) // 2]
        shorter = sum(length < median for length in after.thinking_lengths)
        text += (
            f" {shorter / len(after.thinking_lengths):.0%} of the cases after training think "
            f"less than the median of {median} tokens before."
        )
    return text


def say_accuracy(before: Evaluation, after: Evaluation) -> str:
    """How exact accuracy moved, and whether chance could have moved it."""
    old, new = exact_of(before), exact_of(after)
    if old is None or new is None:
        return "Exact accuracy was not measured on both sides, so no change can be stated."
    same = before.corpus_sha256 == after.corpus_sha256 and len(before.exact_cases) == before.n
    if same and before.n == after.n == len(after.exact_cases):
        change = paired_difference(before.exact_cases, after.exact_cases)
    else:
        change = share(new, after.n).minus(share(old, before.n))
    way = direction(old, new, 1e-9)
    moved = (
        f"Exact accuracy stayed at {new:.1%}"
        if way == "stayed"
        else f"Exact accuracy {way} from {old:.1%} to {new:.1%}"
    )
    judgement = _judge(
        change,
        "better by more than chance explains",
        "worse by more than chance explains",
        "a difference that chance alone could make",
    )
    return f"{moved} ({_points(change)}): {judgement}."


def say_rival(evaluation: Evaluation) -> str:
    """The model against its classifier alone on the same cases; empty where that was not asked."""
    mine, alone = evaluation.exact_cases, evaluation.classifier.exact_cases
    if not alone or len(mine) != len(alone):
        return ""
    change = paired_difference(alone, mine)
    judgement = _judge(
        change,
        "the model earns its time",
        "the classifier is better, for no thinking at all",
        "no difference beyond chance, and the classifier does not think",
    )
    return (
        f"The classifier alone is exact in {sum(alone) / len(alone):.1%} of the same cases, "
        f"the model in {sum(mine) / len(mine):.1%} ({_points(change)}, paired): {judgement}."
    )


def say_disputes(figures: Mapping[str, float]) -> str:
    """Who was nearer where model and classifier differ, by a classifier's figures; else empty."""
    if not figures.get("agreement_disputes"):
        return ""
    nearer = {who: figures[f"agreement_disputes_{who}_nearer"] for who in ("classifier", "model")}
    served = (
        "a server answers with the classifier's charges, articles and term in such cases"
        if figures["agreement_disputes_overruled"]
        else "a server answers with the model's verdict all the same"
    )
    return (
        f"On the development cases the two differ in {figures['agreement_disputes']:.0f}, of which "
        f"the classifier is nearer the truth in {nearer['classifier']:.0f} and the model in "
        f"{nearer['model']:.0f}: {served}."
    )


def say_comparable(before: Evaluation, after: Evaluation) -> str:
    """A warning where the two sides were not measured alike; empty where they were."""
    flaws = []
    if before.corpus != after.corpus:
        flaws.append(f"different corpora ({before.corpus} and {after.corpus})")
    if before.n != after.n:
        flaws.append(f"different numbers of cases ({before.n} and {after.n})")
    if before.stated_budget != after.stated_budget:
        flaws.append(f"different stated budgets ({before.stated_budget}, {after.stated_budget})")
    if before.engine != after.engine:
        flaws.append(f"different engines ({before.engine} and {after.engine})")
    if flaws:
        return f"Before and after were measured on {'; '.join(flaws)}: compare with care."
    return ""


def say_sample(evaluation: Evaluation) -> str:
    """How far the number of cases carries."""
    low, high = wilson(0.5, evaluation.n)
    text = f"{evaluation.n} cases: a share carries about ±{(high - low) * 50:.0f} points."
    if evaluation.n < SMALL_SAMPLE:
        text += " That is a small sample; read the intervals, not the points."
    return text


def column_of(rows: Sequence[TrainingStep], column: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that logged a column."""
    pairs = [(row.step, getattr(row, column)) for row in rows]
    return [(step, value) for step, value in pairs if value is not None]


def say_load(load: LoadTest) -> str:
    """What the load test saw, against its promise."""
    limit = load.settings.slo_p99_ms
    if not load.requests:
        return "No request was made, so nothing can be said about latency."
    p99 = load.latency_ms.get("p99")
    rate = f"{load.settings.rate_per_s:g} arrivals a second"
    if p99 is None:
        head = f"At {rate} p99 falls on a request without a valid answer"
    else:
        side = "within" if p99 <= limit else "over"
        head = f"At {rate} p99 is {p99:.0f} ms, {side} the {limit:g} ms line"
    reasons = ", ".join(f"{count} {reason}" for reason, count in load.misses_by_reason.items())
    missed = f"{load.misses} of {load.requests} requests missed"
    return f"{head}; {missed}{f' ({reasons})' if reasons else ''}."


def _signed(value: float, form: str) -> str:
    return format(value, "+" + form).replace("-", "−")


def _points(change: Span) -> str:
    value, low, high = (_signed(100 * v, ".1f") for v in (change.value, change.low, change.high))
    return f"{value} points, 95% interval {low} to {high}"


def _judge(change: Span, better: str, worse: str, neither: str) -> str:
    if change.low > 0:
        return better
    return worse if change.high < 0 else neither
