from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.scores.statistics import (
    Span,
    bootstrap_mean,
    paired_difference,
    quantile,
    share,
    wilson,
)

CASES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_holds_the_rate_and_narrows_with_cases(successes: int, n: int) -> None:
    rate = min(successes, n) / n
    low, high = wilson(rate, n)
    assert 0 <= low <= rate <= high <= 1
    wider = wilson(rate, n)
    narrower = wilson(rate, n * 10)
    assert narrower[1] - narrower[0] < wider[1] - wider[0]


def test_wilson_on_a_published_case() -> None:
    # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3: 81 of 263.
    low, high = wilson(81 / 263, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_the_difference_on_a_published_case() -> None:
    # Newcombe, Statistics in Medicine 17 (1998) 873, table II, method 10: 56/70 - 48/80.
    change = share(56 / 70, 70).minus(share(48 / 80, 80))
    assert (round(change.low, 4), round(change.high, 4)) == (0.0524, 0.3339)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 300), st.integers(1, 300))
def test_a_difference_lies_in_its_interval(a: float, b: float, n: int, m: int) -> None:
    change = share(b, m).minus(share(a, n))
    assert change.low - 1e-9 <= b - a <= change.high + 1e-9


def test_the_bootstrap_repeats_and_brackets_the_mean() -> None:
    lengths = [float(i % 40) for i in range(400)]
    assert bootstrap_mean(lengths) == bootstrap_mean(lengths)
    low, high = bootstrap_mean(lengths)
    assert low < 19.5 < high
    # The textbook standard error of these lengths is 11.54/20 = 0.577.
    assert high - low == pytest.approx(2 * 1.96 * 0.577, rel=0.1)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60))
def test_a_bootstrap_holds_the_mean_and_stays_within_the_values(values: list[float]) -> None:
    low, high = bootstrap_mean(values)
    assert min(values) <= low <= sum(values) / len(values) <= high <= max(values)


def test_a_published_example_of_the_paired_interval() -> None:
    # Newcombe 1998, table II, e=36, f=12, g=2, h=0: 0.2 from 0.0569 to 0.3404 by method 10
    before = [True] * 36 + [True] * 12 + [False] * 2
    after = [True] * 36 + [False] * 12 + [True] * 2
    span = paired_difference(after, before)
    assert span.value == pytest.approx(0.2)
    assert (span.low, span.high) == pytest.approx((0.0569, 0.3404), abs=5e-4)


@given(CASES)
def test_a_paired_interval_holds_its_difference_and_turns_with_it(
    cases: list[tuple[bool, bool]],
) -> None:
    before, after = [b for b, _ in cases], [a for _, a in cases]
    span, back = paired_difference(before, after), paired_difference(after, before)
    assert -1 <= span.low <= span.value + 1e-12
    assert span.value - 1e-12 <= span.high <= 1
    assert (back.value, back.low, back.high) == pytest.approx((-span.value, -span.high, -span.low))


def test_agreeing_on_the_cases_narrows_the_interval() -> None:
    before = [i % 5 > 0 for i in range(200)]
    shuffled = random.Random(0).sample(before, len(before))
    same, other = paired_difference(before, before), paired_difference(before, shuffled)
    assert same.value == other.value == 0
    assert same.high < other.high / 2


def test_unequal_or_no_cases_are_refused() -> None:
    with pytest.raises(ValueError, match="2 cases before, 1 after"):
        paired_difference([True, False], [True])
    with pytest.raises(ValueError, match="at least one"):
        paired_difference([], [])


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_intervals_of_quantiles_cover_what_they_promise(q: float) -> None:
    draw = np.random.default_rng(0)
    truth = -np.log(1 - q)
    spans = [quantile(list(draw.exponential(size=400)), q) for _ in range(600)]
    covered = [span.low <= truth <= span.high for span in spans if span]
    assert len(covered) == 600
    assert 0.93 <= np.mean(covered) <= 0.985


def test_too_few_values_have_no_p99() -> None:
    assert quantile([1.0] * 100, 0.99) is None
    assert quantile([1.0] * 1000, 0.99) == Span(1.0, 1.0, 1.0)
    assert quantile([], 0.5) is None
