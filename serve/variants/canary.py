"""Whether a canary does worse than the live variant: a test that may be looked at at any time.

Every request is assigned at random, so while both are equally good each failure is the canary's
with the chance of its share, whatever the cause: hard cases, a client that repeats itself, a slow
hour. The mixture likelihood ratio against that chance (beta-binomial) reaches 1/alpha with a
chance of at most alpha, however often one looks (Ville 1939; Robbins 1970). The rates share
FALSE_ALARM, so a canary that is no worse is rolled back with at most that chance.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Literal

Arm = Literal["baseline", "canary"]
Rate = Literal["errors", "degraded", "late"]

# A canary whose rate is higher by less is kept, however certain the difference.
MARGINS: dict[Rate, float] = {"errors": 0.01, "degraded": 0.02, "late": 0.02}
MIN_REQUESTS = 50  # of the canary, before anything is decided
FALSE_ALARM = 0.01
ALPHA = FALSE_ALARM / len(MARGINS)
PRIOR = 0.5  # Jeffreys: as good for shares near 0 as in the middle


def log_evidence(hits: int, total: int, chance: float) -> float:
    """Natural log of the mixture likelihood ratio against a chance of each hit, 0 < chance < 1."""

    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    mixture = log_beta(PRIOR + hits, PRIOR + total - hits) - log_beta(PRIOR, PRIOR)
    return mixture - hits * math.log(chance) - (total - hits) * math.log1p(-chance)


class CanaryTest:
    """Compares a canary with the live variant, request by request, under one split of traffic."""

    def __init__(self, share: float) -> None:
        """`share`: the canary's, of the requests that it and the live variant get."""
        self._share = share
        self._requests: Counter[Arm] = Counter()
        self._failed: dict[Rate, Counter[Arm]] = {rate: Counter() for rate in MARGINS}

    def observe(self, arm: Arm, failure: Rate | None = None) -> Rate | None:
        """Count a request and how it failed; a rate in which the canary is worse now, if any."""
        self._requests[arm] += 1
        if failure:
            self._failed[failure][arm] += 1
        if arm == "baseline" or self._requests["canary"] < MIN_REQUESTS:
            return None
        return next((rate for rate in MARGINS if self._is_worse(rate)), None)

    def figures(self) -> dict[Rate, dict[str, float]]:
        """Every rate and the requests of both arms, for people."""
        return {
            rate: {
                "canary": round(self._rate(rate, "canary"), 5),
                "canary_requests": self._requests["canary"],
                "baseline": round(self._rate(rate, "baseline"), 5),
                "baseline_requests": self._requests["baseline"],
            }
            for rate in MARGINS
        }

    def explain(self, rate: Rate) -> str:
        """How the arms compare in a rate, in words."""
        return (
            f"{rate}: {self._rate(rate, 'canary'):.1%} of {self._requests['canary']} against "
            f"{self._rate(rate, 'baseline'):.1%} of {self._requests['baseline']} of the baseline"
        )

    def _rate(self, rate: Rate, arm: Arm) -> float:
        return self._failed[rate][arm] / max(1, self._requests[arm])

    def _is_worse(self, rate: Rate) -> bool:
        hits, total = self._failed[rate]["canary"], self._failed[rate].total()
        # Answers from the result cache are not counted, and a new model's cache is empty: more than
        # its share of what is counted may be the canary's.
        chance = max(self._share, self._requests["canary"] / self._requests.total())
        excess = self._rate(rate, "canary") - self._rate(rate, "baseline")
        if excess <= MARGINS[rate] or hits <= chance * total:
            return False
        return log_evidence(hits, total, chance) >= -math.log(ALPHA)
