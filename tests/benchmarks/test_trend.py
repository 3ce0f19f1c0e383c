from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.load.trend import fit_trend, thin

TIMES = [i / 39 for i in range(40)]


def noisy(slope: float, seed: int, noise: float = 1.0) -> list[tuple[float, float]]:
    rng = random.Random(seed)
    return [(at, 100 + slope * at + rng.gauss(0, noise)) for at in TIMES]


@settings(max_examples=15, deadline=None)
@given(st.floats(-50, 50), st.floats(-1000, 1000))
def test_a_straight_line_is_found_exactly(slope, level):
    trend = fit_trend([(at, level + slope * at) for at in TIMES])
    assert trend.slope == pytest.approx(slope, abs=1e-6)
    assert trend.low == pytest.approx(slope, abs=1e-6)
    assert trend.high == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("slope", [0.0, 20.0])
def test_the_interval_holds_the_slope_that_was_drawn(slope):
    held = [
        trend.low <= slope <= trend.high
        for trend in (fit_trend(noisy(slope, seed)) for seed in range(12))
    ]
    assert sum(held) >= 9


def test_spikes_do_not_look_like_growth():
    points = noisy(0.0, 1)
    spiked = [(at, value + (500 if i in (30, 35) else 0)) for i, (at, value) in enumerate(points)]
    assert abs(fit_trend(spiked).slope) < 3


def test_a_step_late_in_the_run_widens_the_interval():
    flat = fit_trend(noisy(0.0, 2))
    stepped = fit_trend([(at, value + (30 if at > 0.7 else 0)) for at, value in noisy(0.0, 2)])
    assert stepped.high > flat.high + 5


@given(
    st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=50).map(sorted),
    st.integers(1, 20),
)
def test_thinning_keeps_order_and_bounds(points, most):
    thinned = thin(points, most)
    assert len(thinned) == min(most, len(points))
    assert [at for at, _ in thinned] == sorted(at for at, _ in thinned)
    assert min(v for _, v in points) <= min(v for _, v in thinned)


@pytest.mark.parametrize("points", [[], [(0.0, 1.0), (1.0, 1.0)], [(1.0, 1.0)] * 5])
def test_too_few_points_are_refused(points):
    with pytest.raises(ValueError, match="three or more"):
        fit_trend(points)
