"""Whether a series rises with time: a robust slope and its interval. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

MOST_POINTS = 20  # what is near in time is alike; medians of so many stretches hardly are


@dataclass(frozen=True, slots=True)
class Trend:
    """Change of the value for one unit of time, with its 95% interval."""

    slope: float
    low: float
    high: float


def fit_trend(points: Sequence[tuple[float, float]]) -> Trend:
    """Theil and Sen's slope of (time, value) points, which a share of wild ones does not move.

    The interval is Sen's (Journal of the American Statistical Association 63, 1968). Raises
    ValueError with fewer than three points or all at one time.
    """
    from scipy.stats import theilslopes

    points = thin(sorted(points), MOST_POINTS)
    times, values = [time for time, _ in points], [value for _, value in points]
    if len(points) < 3 or times[0] == times[-1]:
        raise ValueError(f"a trend of {len(points)} points: give three or more at several times")
    slope, _, low, high = theilslopes(values, times)
    return Trend(float(slope), float(low), float(high))


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points, each the median of its neighbours in time; order is kept."""
    if len(points) <= most:
        return list(points)
    edges = [len(points) * i // most for i in range(most + 1)]
    parts = [points[low:high] for low, high in pairwise(edges)]
    return [(median(t for t, _ in part), median(v for _, v in part)) for part in parts]
