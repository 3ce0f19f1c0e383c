"""Which artifact to take: the Pareto front and the rule of choice. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from compress.compare.rows import ArtifactRow
from curt.config import FrozenModel

MAX_LOSS = 0.005  # exact accuracy: half a point
RULE = (
    "Of the artifacts that lose at most 0.5 points of exact accuracy against the parent, the one "
    "that takes the least time for a whole request, prompt and answer, at the fewest threads "
    "measured; at equal time the smaller. The interval says whether the cases can settle it."
)


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
