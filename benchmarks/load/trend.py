"""Whether a series rises with time: a robust slope and its interval. Pure functions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

RESAMPLES = 400
MOST_POINTS = 60  # pairs grow with the square; longer series are averaged down to this
BLOCKS = 8  # a block is so much of the series: what is near in time is alike


@dataclass(frozen=True, slots=True)
class Trend:
    """Change of the value for one unit of time, with its 95% interval."""

    slope: float
    low: float
    high: float


def fit_trend(points: Sequence[tuple[float, float]], seed: int = 0) -> Trend:
    """Theil and Sen's slope of (time, value) points, which a share of wild ones does not move.

    The interval resamples blocks of the residues around the line. Raises ValueError with fewer
    than three points or all at one time.
    """
    points = thin(sorted(points), MOST_POINTS)
    times = [time for time, _ in points]
    if len(points) < 3 or times[0] == times[-1]:
        raise ValueError(f"a trend of {len(points)} points: give three or more at several times")
    values = [value for _, value in points]
    slope, level = _fit_line(times, values)
    residues = [value - level - slope * time for time, value in points]
    size = max(1, len(points) // BLOCKS)
    rng = random.Random(seed)
    slopes = []
    for _ in range(RESAMPLES):
        drawn: list[float] = []
        while len(drawn) < len(points):
            start = rng.randrange(len(points) - size + 1)
            drawn += residues[start : start + size]
        # zip ends with the shorter: the last block may reach beyond
        moved = [level + slope * t + r for t, r in zip(times, drawn, strict=False)]
        slopes.append(_fit_line(times, moved)[0])
    slopes.sort()
    return Trend(slope, slopes[int(0.025 * RESAMPLES)], slopes[int(0.975 * RESAMPLES) - 1])


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points, each the median of its neighbours in time; order is kept."""
    if len(points) <= most:
        return list(points)
    edges = [len(points) * i // most for i in range(most + 1)]
    parts = [points[low:high] for low, high in pairwise(edges)]
    return [(median(t for t, _ in part), median(v for _, v in part)) for part in parts]


def _fit_line(times: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Theil and Sen's slope, and the level that leaves residues of median 0."""
    from scipy.stats import theilslopes

    slope, level, *_ = theilslopes(values, times, method="joint")
    return float(slope), float(level)
