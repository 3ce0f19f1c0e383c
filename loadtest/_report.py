"""The report of a run, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from loadtest._plan import LoadPlan
from loadtest._reply import Outcome
from loadtest._slo import summarise, summarise_windows


def make_report(
    plan: LoadPlan,
    outcomes: Sequence[Outcome],
    duration_s: float,
    *,
    ready: bool,
    workers: int = 0,
    problems: Sequence[str] = (),
) -> dict[str, Any]:
    """Settings, figures and verdict of a run; `problems` are reasons to fail it besides the SLO.

    `workers` counts the processes that shared it; 0 when Locust ran as one.
    """
    shape = plan.make_shape()
    figures = summarise(outcomes, plan.slo, require_proof=plan.require_proof)
    verdict = figures.pop("verdict")
    reasons = [*verdict["reasons"], *problems]
    window_s = plan.window_s(duration_s)
    settings = plan.describe()
    return {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": settings.pop("host"),
        "ready": ready,
        "settings": settings,
        "workers": workers,
        "duration_s": round(duration_s, 3),
        "achieved_rate_per_s": len(outcomes) / duration_s if duration_s else 0.0,
        "expected_requests": shape.expected_arrivals(duration_s),
        "mix": plan.make_mix(plan.seed).describe(),
        **figures,
        "window_s": window_s,
        "windows": [
            {**row, "planned_per_s": shape.rate_at(row["from_s"] + window_s / 2)}
            for row in summarise_windows(outcomes, window_s)
        ],
        "verdict": {"passed": not reasons, "reasons": reasons},
    }
