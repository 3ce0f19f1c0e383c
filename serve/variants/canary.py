"""Whether a canary does worse than the baseline: a test that may be looked at after every request.

A p-value looked at again and again ends below any threshold by chance. Here each rate has a
confidence *sequence*, an interval that holds at all times at once: the values of p whose evidence
against them, the beta-binomial mixture likelihood ratio, never reached 1/alpha (Ville 1939;
Robbins 1970). The canary is worse when its whole sequence lies above the baseline's and a margin.
The level is shared by the three rates and in each by both arms, so that the chance of ever rolling
back a canary that is no worse than the margin is at most FALSE_ALARM, however long it runs.

Three rates: errors, degraded answers, and slow answers. Slow is what takes longer than the
baseline's p99, for the canary longer than LATENCY_RATIO times that: where more than one in a
hundred does, the canary's own p99 lies above it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Arm = Literal["baseline", "canary"]
Rate = Literal["errors", "degraded", "latency"]

# How much higher the canary's rate may be; slow answers have LATENCY_RATIO as their margin.
MARGINS: dict[Rate, float] = {"errors": 0.01, "degraded": 0.02, "latency": 0.0}
LATENCY_RATIO = 1.25
MIN_REQUESTS = 50  # of the canary, before anything is decided
FALSE_ALARM = 0.01
ALPHA = FALSE_ALARM / len(MARGINS) / 2  # of one rate of one arm
PRIOR = 0.5  # Jeffreys: as good for rates near 0 as in the middle
LATENCIES_FOR_P99 = 300  # fewer say too little about it
RENEWED_AT = 1.05  # the baseline's bound is computed again when its count has grown by this factor


@dataclass(frozen=True, slots=True)
class CanaryObservation:
    """How one request went. `seconds` is None where there was no answer to time."""

    error: bool = False
    degraded: bool = False
    seconds: float | None = None


def log_evidence(hits: int, total: int, rate: float) -> float:
    """Natural log of the mixture likelihood ratio against a rate, 0 < rate < 1."""

    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    mixture = log_beta(PRIOR + hits, PRIOR + total - hits) - log_beta(PRIOR, PRIOR)
    return mixture - hits * math.log(rate) - (total - hits) * math.log1p(-rate)


def upper_bound(hits: int, total: int, alpha: float) -> float:
    """The highest rate that the evidence up to now does not reject at level alpha."""
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


@dataclass(slots=True)
class Comparison:
    """How often something happened in each arm, and the lowest bound yet on the baseline's rate."""

    rate: Rate
    hits: dict[Arm, int] = field(default_factory=lambda: {"baseline": 0, "canary": 0})
    totals: dict[Arm, int] = field(default_factory=lambda: {"baseline": 0, "canary": 0})
    _bound: float = 1.0
    _bound_total: int = 0

    def add(self, arm: Arm, hit: bool) -> None:
        """Count one request."""
        self.hits[arm] += hit
        self.totals[arm] += 1

    def share(self, arm: Arm) -> float:
        """Hits by requests; 0 without any."""
        return self.hits[arm] / (self.totals[arm] or 1)

    def is_worse(self) -> bool:
        """Whether the canary's rate lies above the baseline's by more than the margin."""
        hits, total = self.hits["baseline"], self.totals["baseline"]
        if total and total >= self._bound_total * RENEWED_AT:
            # Every bound holds at all times, so the lowest one does.
            self._bound = min(self._bound, upper_bound(hits, total, ALPHA))
            self._bound_total = total
        limit = self._bound + MARGINS[self.rate]
        if limit >= 1.0 or self.share("canary") <= limit:
            return False
        evidence = log_evidence(self.hits["canary"], self.totals["canary"], limit)
        return evidence >= -math.log(ALPHA)

    def figures(self) -> dict[str, float]:
        """Rate and count of each arm, for people."""
        return {
            "canary": round(self.share("canary"), 5),
            "canary_requests": self.totals["canary"],
            "baseline": round(self.share("baseline"), 5),
            "baseline_requests": self.totals["baseline"],
        }

    def __str__(self) -> str:
        """Why the canary is rolled back, in words."""
        return (
            f"{self.rate}: {self.share('canary'):.1%} of {self.totals['canary']} against "
            f"{self.share('baseline'):.1%} of {self.totals['baseline']} of the baseline"
        )


class CanaryTest:
    """Compares a canary with the baseline, request by request."""

    def __init__(self, earlier_s: Sequence[float] = ()) -> None:
        """`earlier_s`: latencies of the baseline from before; they set what counts as slow."""
        self._earlier_s = list(earlier_s)
        self._slow_s: float | None = None
        self._rates = {rate: Comparison(rate) for rate in MARGINS}

    def observe(self, arm: Arm, observation: CanaryObservation) -> Comparison | None:
        """Count one request; the comparison in which the canary is worse now, if there is one."""
        self._rates["errors"].add(arm, observation.error)
        self._rates["degraded"].add(arm, observation.degraded)
        if observation.seconds is not None:
            self._time(arm, observation.seconds)
        if arm == "baseline" or self._rates["errors"].totals["canary"] < MIN_REQUESTS:
            return None  # a request of the baseline alone never makes a canary worse
        return next((rate for rate in self._rates.values() if rate.is_worse()), None)

    def figures(self) -> dict[str, dict[str, float]]:
        """All rates of both arms, for people."""
        return {name: rate.figures() for name, rate in self._rates.items()}

    def _time(self, arm: Arm, seconds: float) -> None:
        if self._slow_s is None and len(self._earlier_s) >= LATENCIES_FOR_P99:
            self._slow_s = sorted(self._earlier_s)[math.ceil(0.99 * len(self._earlier_s)) - 1]
        if self._slow_s is not None:
            limit_s = self._slow_s * (LATENCY_RATIO if arm == "canary" else 1)
            self._rates["latency"].add(arm, seconds > limit_s)
        elif arm == "baseline":  # sets the threshold, so it is not counted against it
            self._earlier_s.append(seconds)
