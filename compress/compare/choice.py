"""What is known of each artifact, the table made from it, and which artifact to take. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compress.compare.speed import Speed
from curt.config import FrozenModel
from curt.scores.metrics import length_statistics
from curt.scores.statistics import Span, paired_difference, share

ANSWER_TOKENS = 25  # of the demo's answers, with the end of thinking
MAX_LOSS = 0.005  # exact accuracy: half a point
RULE = (
    "Of the artifacts that lose at most 0.5 points of exact accuracy against the parent, the one "
    "that takes the least time for a whole request, prompt and answer, at the fewest threads "
    "measured; at equal time the smaller. The interval says whether the cases can settle it."
)


class ArtifactIdentity(FrozenModel):
    """Which folder, from what, by which recipe."""

    name: str
    folder: str
    manifest_sha256: str
    format: str
    precision: str
    stage: str
    made_from: str
    """The parent's path as its manifest gives it, or the base where there is none."""
    of_this_parent: bool
    """Whether that is the very folder this report compares with."""
    recipe: dict[str, Any]
    weights_mb: float
    folder_mb: float


class Quality(FrozenModel):
    """One artifact on the test cases, in their order."""

    scores: dict[str, float]
    exact_cases: list[bool]
    verdicts: list[str]
    """A key of charges, articles and principal penalty; empty where nothing was readable."""
    thinking_lengths: list[int]


class Closeness(FrozenModel):
    """Next-token distributions along the parent's own completions."""

    kl: float
    """Mean KL(parent ‖ artifact), nats a token."""
    argmax_agreement: float
    positions: int


class Measured(FrozenModel):
    """Everything measured of one folder; None where it was not."""

    identity: ArtifactIdentity
    quality: Quality | None = None
    closeness: Closeness | None = None
    speeds: list[Speed] = []
    notes: list[str] = []
    """Why something is missing."""


class ArtifactRow(FrozenModel):
    """One line of the table. Shares run from 0 to 1, `score_*` to 100 except `score_term`."""

    identity: ArtifactIdentity
    is_parent: bool
    times_smaller: float
    """Weights of the parent at 32 bits each, over this folder's weights."""
    cases: int | None = None
    exact: Span | None = None
    change: Span | None = None
    """Exact accuracy minus the parent's on the same cases."""
    score_charge: float | None = None
    score_article: float | None = None
    score_term: float | None = None
    parsed: float | None = None
    thinking_mean: float | None = None
    thinking_p95: float | None = None
    same_verdict: float | None = None
    kl: float | None = None
    argmax_agreement: float | None = None
    exact_points_per_mb: float | None = None
    speeds: list[Speed] = []
    notes: list[str] = []

    @property
    def speed(self) -> Speed | None:
        """The speed at the fewest threads measured."""
        return min(self.speeds, key=lambda speed: speed.threads, default=None)

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Median decode speed at the fewest threads measured."""
        return self.speed.decode_tokens_per_s.median if self.speed else None

    @property
    def request_ms(self) -> float | None:
        """Time of a whole request at the fewest threads: the prompt, mean thinking and an answer.

        The prompt is as long as that of the speed measurement; tokens are written one a pass.
        """
        if self.speed is None or self.thinking_mean is None:
            return None
        prefill_s = self.speed.prompt_tokens / self.speed.prefill_tokens_per_s.median
        written = self.thinking_mean + ANSWER_TOKENS
        return 1e3 * (prefill_s + written / self.speed.decode_tokens_per_s.median)


def make_rows(measured: Sequence[Measured], fp32_mb: float) -> list[ArtifactRow]:
    """The table: the parent, which comes first, and its artifacts.

    `fp32_mb` is what the parent's weights take at 32 bits. Raises ValueError when two folders
    were not evaluated on the same number of cases.
    """
    parent = measured[0]
    return [_make_row(one, parent, fp32_mb) for one in measured]


def _make_row(one: Measured, parent: Measured, fp32_mb: float) -> ArtifactRow:
    is_parent = one is parent
    close = one.closeness
    row: dict[str, Any] = {
        "identity": one.identity,
        "is_parent": is_parent,
        "times_smaller": fp32_mb / one.identity.weights_mb,
        "kl": 0.0 if is_parent and one.quality else close.kl if close else None,
        "argmax_agreement": close.argmax_agreement if close else None,
        "speeds": one.speeds,
        "notes": one.notes,
    }
    if one.quality is None:
        return ArtifactRow(**row)
    own, n = one.quality, len(one.quality.exact_cases)
    exact = sum(own.exact_cases) / n
    lengths = length_statistics(own.thinking_lengths)
    row |= {
        "cases": n,
        "exact": share(exact, n),
        "score_charge": own.scores["charge_score_official"],
        "score_article": own.scores["article_score_official"],
        "score_term": own.scores["term_score_official"],
        "parsed": own.scores["parsed"],
        "thinking_mean": lengths["mean"],
        "thinking_p95": lengths["p95"],
        "exact_points_per_mb": 100 * exact / one.identity.weights_mb,
    }
    if parent.quality is not None and not is_parent:
        row["change"] = paired_difference(parent.quality.exact_cases, own.exact_cases)
        row["same_verdict"] = _agreement(parent.quality.verdicts, own.verdicts)
    return ArtifactRow(**row)


def _agreement(parent: Sequence[str], child: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(parent, child, strict=True)) / len(parent)


class Choice(FrozenModel):
    """The default, if any, and why each other artifact is not it."""

    rule: str = RULE
    name: str | None
    qualified: list[str]
    refused: dict[str, str]
    """Why an artifact does not qualify."""
    caveat: str | None = None
    """What the sample can't settle."""


def pareto_front(points: Mapping[str, Sequence[float]]) -> set[str]:
    """Names that no other point beats: at least as good everywhere and better somewhere.

    Every coordinate counts as better when larger; negate a cost.
    """
    return {
        name
        for name, own in points.items()
        if not any(
            tuple(other) != tuple(own) and all(o >= s for o, s in zip(other, own, strict=True))
            for other in points.values()
        )
    }


def choose(rows: Iterable[ArtifactRow]) -> Choice:
    """Apply `RULE` to the table; the parent itself is no candidate."""
    candidates = [row for row in rows if not row.is_parent]
    refused = {
        row.identity.name: reason for row in candidates if (reason := _why_not(row)) is not None
    }
    fit = [row for row in candidates if row.identity.name not in refused]
    fit.sort(key=lambda row: (row.request_ms or 0.0, row.identity.weights_mb))
    best = fit[0] if fit else None
    return Choice(
        name=best.identity.name if best else None,
        qualified=[row.identity.name for row in fit],
        refused=refused,
        caveat=_caveat(best) if best else None,
    )


def _why_not(row: ArtifactRow) -> str | None:
    if row.change is None:
        return "its accuracy was not measured"
    reasons = []
    # An exact half point is within the rule, however the division rounds.
    if row.change.value < -MAX_LOSS - 1e-9:
        reasons.append(f"it loses {-100 * row.change.value:.1f} points of exact accuracy")
    if row.request_ms is None:
        reasons.append("its speed was not measured")
    return " and ".join(reasons) or None


def _caveat(row: ArtifactRow) -> str | None:
    assert row.change is not None
    assert row.cases is not None
    if row.change.low >= -MAX_LOSS:
        return None
    low = f"{100 * row.change.low:.1f}".replace("-", "−")
    return (
        f"The rule is met by the measured difference, but its interval reaches down to {low} "
        f"points: {row.cases} cases can't settle half a point (one case weighs "
        f"{1 / row.cases:.2%}). Evaluate on more cases before relying on it."
    )
