"""How the rate of arrivals changes over a run.

A shape is the intensity of an inhomogeneous Poisson process. Arrivals are drawn by thinning:
candidates at the highest rate, each kept with probability rate(t) / highest (Lewis and Shedler,
Naval Research Logistics Quarterly 26, 1979). Nothing here is Locust's `LoadTestShape`, which
counts users and would become active by being found.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from loadtest._arrivals import arrival_times_s

ShapeKind = Literal["steady", "step", "spike", "soak", "diurnal"]
KINDS: tuple[ShapeKind, ...] = get_args(ShapeKind)
CONSTANT: frozenset[ShapeKind] = frozenset({"steady", "soak"})
SOAK_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class LoadShape:
    """The rate over a run of `run_s` seconds.

    steady, soak: `rate_per_s` throughout (a soak is looked at by the minute).
    step: `steps` equal levels from `rate_per_s` to `peak_per_s`, each as long as the others.
    spike: `rate_per_s`, with `peak_per_s` for `spike_s` seconds from `spike_at_s` on.
    diurnal: a cosine from `rate_per_s` up to `peak_per_s` and back in every `period_s`.
    """

    kind: ShapeKind
    rate_per_s: float
    peak_per_s: float
    run_s: float
    steps: int = 4
    spike_at_s: float = 0.0
    spike_s: float = 0.0
    period_s: float = 0.0

    def rate_at(self, at_s: float) -> float:
        """Arrivals a second at `at_s` seconds from the start."""
        rise = self.peak_per_s - self.rate_per_s
        if self.kind == "step":
            level = min(self.steps - 1, int(at_s / self.run_s * self.steps))
            return self.rate_per_s + rise * level / (self.steps - 1)
        if self.kind == "spike":
            inside = self.spike_at_s <= at_s < self.spike_at_s + self.spike_s
            return self.peak_per_s if inside else self.rate_per_s
        if self.kind == "diurnal":
            return self.rate_per_s + rise * (1 - math.cos(math.tau * at_s / self.period_s)) / 2
        return self.rate_per_s

    @property
    def highest_per_s(self) -> float:
        """A rate that is never exceeded."""
        return self.rate_per_s if self.kind in CONSTANT else max(self.rate_per_s, self.peak_per_s)

    def expected_arrivals(self, span_s: float, parts: int = 10_000) -> float:
        """Mean number of arrivals in the first `span_s` seconds (midpoint rule)."""
        width_s = span_s / parts
        return width_s * math.fsum(self.rate_at((part + 0.5) * width_s) for part in range(parts))

    def split(self, shares: int) -> LoadShape:
        """One of `shares` equal parts: together, drawn apart, they are this process again."""
        return replace(
            self, rate_per_s=self.rate_per_s / shares, peak_per_s=self.peak_per_s / shares
        )

    def arrival_times_s(self, seed: int) -> Iterator[float]:
        """Endless arrivals in seconds from the start, in order, the same for the same seed."""
        if self.kind in CONSTANT:
            return arrival_times_s(self.rate_per_s, seed)
        return self._thinned(seed)

    def _thinned(self, seed: int) -> Iterator[float]:
        highest = self.highest_per_s
        chance = random.Random(f"thinning {seed}")
        for at_s in arrival_times_s(highest, seed):
            if chance.random() * highest < self.rate_at(at_s):
                yield at_s


def make_shape(
    kind: str,
    rate_per_s: float,
    *,
    peak_per_s: float | None = None,
    run_s: float | None = None,
    steps: int = 4,
    spike_at_s: float | None = None,
    spike_s: float | None = None,
    period_s: float | None = None,
) -> LoadShape:
    """A checked shape: the peak is four times the rate where none is given.

    A spike comes after a third of the run and lasts a tenth of it; a period is the whole run.
    Raises ValueError naming the value and the remedy.
    """
    if kind not in KINDS:
        raise ValueError(f"shape {kind!r}: use one of {', '.join(KINDS)}")
    if not 0 < rate_per_s < math.inf:
        raise ValueError(f"a rate of {rate_per_s} arrivals a second: use more than 0")
    if kind in CONSTANT:
        return LoadShape(kind, rate_per_s, rate_per_s, run_s or math.inf)
    if not run_s:
        raise ValueError(f"shape {kind} needs the length of the run: give --run-time")
    peak = 4 * rate_per_s if peak_per_s is None else peak_per_s
    if not 0 < peak < math.inf:
        raise ValueError(f"a peak of {peak} arrivals a second: use more than 0")
    if steps < 2:
        raise ValueError(f"{steps} steps: use 2 or more")
    at_s = run_s / 3 if spike_at_s is None else spike_at_s
    long_s = run_s / 10 if spike_s is None else spike_s
    if kind == "spike" and not (0 <= at_s < run_s and long_s > 0):
        raise ValueError(f"a spike of {long_s:g} s at {at_s:g} s: let it fall into {run_s:g} s")
    period = run_s if period_s is None else period_s
    if period <= 0:
        raise ValueError(f"a period of {period:g} s: use more than 0")
    return LoadShape(kind, rate_per_s, peak, run_s, steps, at_s, long_s, period)
