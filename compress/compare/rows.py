"""What is known of each artifact: what was measured, and the row of the table made from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compress.compare.speed import Speed
from curt.config import FrozenModel
from curt.scores.metrics import length_statistics
from curt.scores.statistics import Span, paired_difference, share

ANSWER_TOKENS = 25  # of the demo's answers, with the end of thinking


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

    engine: str
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
