"""Whether a canary does worse than the baseline: a test that may be looked at after every request.

A p-value looked at again and again ends below any threshold by chance. Here each rate has a
confidence *sequence*, an interval that holds at all times at once: the values of p whose evidence
against them, the beta-binomial mixture likelihood ratio, never reached 1/alpha (Ville 1939;
Robbins 1970). The canary is worse when its whole sequence lies above the baseline's and a margin.
The level is shared by the three rates and in each by both arms, so that the chance of ever rolling
back a canary that is no worse than the margin is at most `false_alarm`, however long it runs.

Three rates: errors, degraded answers, and slow answers. Slow is what takes longer than the
baseline's p99, for the canary longer than `latency_ratio` times that: where more than one in a
hundred does, the canary's own p99 lies above it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Arm = Literal["baseline", "canary"]
Rate = Literal["errors", "degraded", "latency"]
RATES: tuple[Rate, ...] = ("errors", "degraded", "latency")

PRIOR = 0.5  # Jeffreys: as good for rates near 0 as in the middle
LATENCIES_FOR_P99 = 300  # fewer say too little about it
RENEWED_AT = 1.05  # the baseline's bound is worked out again when it has grown by this


class CanaryLimits(BaseModel):
    """How much worse a canary may be, and how sure one must be that it is."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    min_requests: int = Field(default=50, ge=1)
    """Requests a canary has had before anything is decided."""

    false_alarm: float = Field(default=0.01, gt=0, lt=0.5)
    """Highest chance of ever rolling back a canary that is within the margins."""

    error_margin: float = Field(default=0.01, ge=0, lt=1)
    """Points by which its error rate may be higher."""

    degraded_margin: float = Field(default=0.02, ge=0, lt=1)
    """Points by which its rate of degraded answers may be higher."""

    latency_ratio: float = Field(default=1.25, ge=1)
    """Times the baseline's p99 that its own may be."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request went. `seconds` is None where there was no answer to time."""

    error: bool = False
    degraded: bool = False
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Alarm:
    """Why a canary is rolled back."""

    rate: Rate
    canary: float
    baseline: float
    canary_requests: int
    baseline_requests: int

    def __str__(self) -> str:
        """In words."""
        return (
            f"{self.rate}: {self.canary:.1%} of {self.canary_requests} against "
            f"{self.baseline:.1%} of {self.baseline_requests} of the baseline"
        )


@dataclass(slots=True)
class Tally:
    """How often something happened in so many requests."""

    hits: int = 0
    total: int = 0

    def add(self, hit: bool) -> None:
        """Count one request."""
        self.hits += hit
        self.total += 1

    @property
    def share(self) -> float:
        """Hits by requests; 0 without any."""
        return self.hits / self.total if self.total else 0.0


def log_evidence(hits: int, total: int, rate: float) -> float:
    """Natural log of the mixture likelihood ratio against a rate, 0 < rate < 1."""
    mixture = _log_beta(PRIOR + hits, PRIOR + total - hits) - _log_beta(PRIOR, PRIOR)
    return mixture - hits * math.log(rate) - (total - hits) * math.log1p(-rate)


def upper_bound(hits: int, total: int, alpha: float) -> float:
    """The highest rate that the evidence up to now does not speak against at level alpha."""
    if hits == total:
        return 1.0
    low, high = hits / total, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if middle >= 1.0 or log_evidence(hits, total, middle) >= -math.log(alpha):
            high = middle
        else:
            low = middle
    return high


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


@dataclass(slots=True)
class _Comparison:
    """One rate of both arms, and the lowest bound there has been on the baseline's."""

    margin: float
    alpha: float
    baseline: Tally = field(default_factory=Tally)
    canary: Tally = field(default_factory=Tally)
    _bound: float = 1.0
    _bound_total: int = 0

    def add(self, arm: Arm, hit: bool) -> None:
        (self.baseline if arm == "baseline" else self.canary).add(hit)

    def is_worse(self) -> bool:
        """Whether the canary's rate lies above the baseline's by more than the margin."""
        if self.baseline.total and self.baseline.total >= self._bound_total * RENEWED_AT:
            bound = upper_bound(self.baseline.hits, self.baseline.total, self.alpha / 2)
            self._bound = min(self._bound, bound)  # it holds at all times, so the least one does
            self._bound_total = self.baseline.total
        limit = self._bound + self.margin
        if limit >= 1.0 or self.canary.share <= limit:
            return False
        evidence = log_evidence(self.canary.hits, self.canary.total, limit)
        return evidence >= -math.log(self.alpha / 2)


class Watch:
    """Holds a canary against the baseline, request by request."""

    def __init__(self, limits: CanaryLimits, earlier_s: Sequence[float] = ()) -> None:
        """`earlier_s`: latencies of the baseline from before; they set what counts as slow."""
        self._limits = limits
        self._earlier_s = list(earlier_s)
        self._requests = 0
        self._slow_s: float | None = None
        alpha = limits.false_alarm / len(RATES)
        self._rates: dict[Rate, _Comparison] = {
            "errors": _Comparison(limits.error_margin, alpha),
            "degraded": _Comparison(limits.degraded_margin, alpha),
            "latency": _Comparison(0.0, alpha),
        }

    def observe(self, arm: Arm, outcome: Outcome) -> Alarm | None:
        """Count one request; the alarm it raises, if it does."""
        self._rates["errors"].add(arm, outcome.error)
        self._rates["degraded"].add(arm, outcome.degraded)
        if outcome.seconds is not None:
            self._time(arm, outcome.seconds)
        if arm == "baseline":
            return None  # it alone never makes a canary worse
        self._requests += 1
        if self._requests < self._limits.min_requests:
            return None
        for rate, comparison in self._rates.items():
            if comparison.is_worse():
                return Alarm(
                    rate,
                    comparison.canary.share,
                    comparison.baseline.share,
                    comparison.canary.total,
                    comparison.baseline.total,
                )
        return None

    def figures(self) -> dict[str, dict[str, float]]:
        """Both arms' rates and counts, for people."""
        return {
            rate: {
                "canary": round(comparison.canary.share, 5),
                "canary_requests": comparison.canary.total,
                "baseline": round(comparison.baseline.share, 5),
                "baseline_requests": comparison.baseline.total,
            }
            for rate, comparison in self._rates.items()
        }

    def _time(self, arm: Arm, seconds: float) -> None:
        if self._slow_s is None:
            # What sets the threshold is not counted against it: it was chosen to fit.
            if len(self._earlier_s) >= LATENCIES_FOR_P99:
                self._slow_s = _p99(self._earlier_s)
            elif arm == "baseline":
                self._earlier_s.append(seconds)
                return
            else:
                return
        slow_s = self._slow_s if arm == "baseline" else self._slow_s * self._limits.latency_ratio
        self._rates["latency"].add(arm, seconds > slow_s)


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]
