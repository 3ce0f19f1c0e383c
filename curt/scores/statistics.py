"""95% intervals of shares, means and differences. Pure functions.

scipy takes seconds to import, so it is imported where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

Z = 1.959964  # two-sided 95%

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Span:
    """An estimate and its 95% interval."""

    value: float
    low: float
    high: float
    n: int = field(default=0, compare=False)  # cases of a share; 0 where that is not one number

    def minus(self, other: Span) -> Span:
        """The difference of two independent estimates, from both their intervals.

        Zou and Donner, Statistics in Medicine 27 (2008) 1693; for shares with Wilson's intervals
        it is Newcombe's (1998, method 10). On the same cases it is on the safe side.
        """
        change = self.value - other.value
        down = math.hypot(self.value - self.low, other.high - other.value)
        up = math.hypot(self.high - self.value, other.value - other.low)
        return Span(change, change - down, change + up)


def wilson(rate: float, n: int) -> Interval:
    """95% Wilson score interval of a proportion seen in n cases.

    Wilson, JASA 22 (1927); stays within 0..1 and honest for small n. Raises ValueError on a
    rate outside 0..1 or n below 1.
    """
    if not 0 <= rate <= 1 or n < 1:
        raise ValueError(f"a rate of {rate} in {n} cases: use 0 to 1 in at least one case")
    centre = (rate + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half))


def share(rate: float, n: int) -> Span:
    """A proportion seen in n cases with Wilson's interval."""
    return Span(rate, *wilson(rate, n), n)


def quantile(values: Sequence[float], q: float) -> Span | None:
    """A quantile with the interval between two order statistics; None where there are too few.

    The number of values below the quantile is binomial, so that ranks n·q ± Z·sqrt(n·q·(1-q))
    hold it between them (Conover 1999); outside of 1..n there is no bound.
    """
    n, ordered = len(values), sorted(values)
    reach = Z * math.sqrt(n * q * (1 - q))
    low, high = math.floor(n * q - reach), math.ceil(n * q + reach) + 1
    if low < 1 or high > n:
        return None
    return Span(ordered[math.ceil(n * q) - 1], ordered[low - 1], ordered[high - 1])


def paired_difference(before: Sequence[bool], after: Sequence[bool]) -> Span:
    """Share right after minus share right before on the same cases, with its 95% interval.

    Newcombe, Statistics in Medicine 17 (1998) 2635, method 10: Wilson limits of both shares,
    joined with a continuity-corrected correlation. Cases on which both agree narrow it, so it
    resolves more than two separate intervals. Raises ValueError on unequal or no cases.
    """
    n = len(before)
    if n != len(after) or not n:
        raise ValueError(f"{n} cases before, {len(after)} after: give the same ones, at least one")
    pairs = list(zip(before, after, strict=True))
    both, lost = pairs.count((True, True)), pairs.count((True, False))
    won, neither = pairs.count((False, True)), pairs.count((False, False))
    old, new = share((both + lost) / n, n), share((both + won) / n, n)
    margins = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    product: float = both * neither - lost * won
    if product > 0:
        product = max(product - n / 2, 0.0)
    phi = product / math.sqrt(margins) if margins else 0.0
    change = new.value - old.value

    def reach(own: float, other: float) -> float:
        # Rounding may take a square that should be zero below it.
        return math.sqrt(max(0.0, own**2 - 2 * phi * own * other + other**2))

    return Span(
        value=change,
        low=max(-1.0, change - reach(new.value - new.low, old.high - old.value)),
        high=min(1.0, change + reach(new.high - new.value, old.value - old.low)),
    )


def bootstrap_mean(values: Sequence[float], *, draws: int = 2000, seed: int = 0) -> Interval:
    """95% percentile-bootstrap interval of a mean (Efron 1979), the same for the same seed.

    Raises ValueError without values.
    """
    if not values:
        raise ValueError("the mean of no values: evaluate at least one case")
    if len(values) == 1:
        return values[0], values[0]
    import numpy as np
    from scipy.stats import bootstrap

    source = np.random.default_rng(seed)
    result = bootstrap(
        (values,), np.mean, n_resamples=draws, batch=100, method="percentile", rng=source
    )
    interval = result.confidence_interval
    return float(interval.low), float(interval.high)
