from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest._arrivals import arrival_times_s
from loadtest._plan import RateShare
from loadtest._shapes import KINDS, LoadShape, make_shape


def within(shape: LoadShape, seed: int, start_s: float, end_s: float) -> int:
    times = itertools.takewhile(lambda at_s: at_s < end_s, shape.arrival_times_s(seed))
    return sum(at_s >= start_s for at_s in times)


@given(st.sampled_from(KINDS), st.floats(0.5, 50), st.floats(0.5, 50), st.floats(0, 100))
def test_no_shape_exceeds_its_highest_rate_or_falls_below_both_ends(
    kind: str, rate: float, peak: float, at_s: float
) -> None:
    shape = make_shape(kind, rate, peak_per_s=peak, run_s=100.0)
    assert min(rate, peak) - 1e-9 <= shape.rate_at(at_s) <= shape.highest_per_s + 1e-9


@pytest.mark.parametrize("kind", ["steady", "soak"])
def test_a_constant_shape_is_the_plain_stream(kind: str) -> None:
    shape = make_shape(kind, 5.0)
    plain = list(itertools.islice(arrival_times_s(5.0, 3), 50))
    assert list(itertools.islice(shape.arrival_times_s(3), 50)) == plain


@pytest.mark.parametrize("kind", KINDS)
def test_arrivals_follow_the_shape(kind: str) -> None:
    """Counts of every tenth of the run lie within five standard deviations of the integral."""
    shape = make_shape(kind, 20.0, peak_per_s=200.0, run_s=100.0)
    for start_s in range(0, 100, 10):
        expected = shape.expected_arrivals(start_s + 10.0) - (
            shape.expected_arrivals(float(start_s)) if start_s else 0.0
        )
        seen = within(shape, 11, start_s, start_s + 10)
        assert abs(seen - expected) < 5 * math.sqrt(expected) + 1, (start_s, seen, expected)


def test_each_shape_has_its_rates_where_it_says() -> None:
    step = make_shape("step", 10.0, peak_per_s=40.0, run_s=60.0, steps=4)
    assert [step.rate_at(t) for t in (0, 14.9, 15, 30, 59.9, 61)] == [10, 10, 20, 30, 40, 40]
    spike = make_shape("spike", 5.0, peak_per_s=50.0, run_s=60.0, spike_at_s=20.0, spike_s=5.0)
    assert [spike.rate_at(t) for t in (19.9, 20, 24.9, 25)] == [5, 50, 50, 5]
    day = make_shape("diurnal", 10.0, peak_per_s=30.0, run_s=100.0)
    assert [round(day.rate_at(t), 6) for t in (0, 25, 50, 100)] == [10, 20, 30, 10]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shares", [1, 2, 5])
def test_the_shares_of_a_run_add_up_to_it(kind: str, shares: int) -> None:
    shape = make_shape(kind, 20.0, peak_per_s=100.0, run_s=60.0)
    part = shape.split(shares)
    for at_s in (0.0, 10.0, 21.0, 30.0, 59.0):
        assert part.rate_at(at_s) * shares == pytest.approx(shape.rate_at(at_s))
    seeds = {RateShare(index, shares).seed_of(7) for index in range(shares)}
    assert len(seeds) == shares
    seen = sum(within(part, seed, 0, 60) for seed in seeds)
    expected = shape.expected_arrivals(60.0)
    assert abs(seen - expected) < 5 * math.sqrt(expected)


@pytest.mark.parametrize(
    ("kind", "changes", "complaint"),
    [
        ("wave", {}, "use one of steady"),
        ("steady", {"rate_per_s": 0.0}, "use more than 0"),
        ("spike", {"run_s": None}, "give --run-time"),
        ("step", {"steps": 1}, "use 2 or more"),
        ("diurnal", {"peak_per_s": 0.0}, "use more than 0"),
        ("diurnal", {"period_s": 0.0}, "use more than 0"),
        ("spike", {"spike_at_s": 70.0}, "let it fall into"),
    ],
)
def test_a_shape_that_means_nothing_is_refused(
    kind: str, changes: dict[str, Any], complaint: str
) -> None:
    given_values = {"rate_per_s": 5.0, "run_s": 60.0, **changes}
    with pytest.raises(ValueError, match=complaint):
        make_shape(kind, **given_values)
