"""The sequential test of a canary, on simulated requests."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.variants.canary import MIN_REQUESTS, CanaryTest, Rate, log_evidence


def simulate(
    seed: int,
    *,
    baseline: float,
    canary: float,
    share: float = 0.1,
    requests: int = 3000,
    rate: Rate = "errors",
) -> int | None:
    """Requests the canary had when it was rolled back; None when it never was."""
    draw = random.Random(seed)
    test = CanaryTest(share)
    had = 0
    for _ in range(requests):
        is_canary = draw.random() < share
        failed = draw.random() < (canary if is_canary else baseline)
        had += is_canary
        if test.observe("canary" if is_canary else "baseline", rate if failed else None):
            return had
    return None


def naive_alarm(seed: int, rate: float, requests: int, share: float) -> bool:
    """What looking at an ordinary one-sided 1% test after every request would do."""
    draw = random.Random(seed)
    hits, total = {True: 0, False: 0}, {True: 0, False: 0}
    for _ in range(requests):
        arm = draw.random() < share
        total[arm] += 1
        hits[arm] += draw.random() < rate
        if arm and total[True] >= 50 and total[False]:
            pooled = sum(hits.values()) / sum(total.values())
            spread = (pooled * (1 - pooled) * (1 / total[True] + 1 / total[False])) ** 0.5
            gap = hits[True] / total[True] - hits[False] / total[False]
            if spread and gap / spread > 2.326:
                return True
    return False


def test_a_canary_as_good_as_the_baseline_is_not_rolled_back_by_noise() -> None:
    runs = 150
    alarms = sum(simulate(seed, baseline=0.05, canary=0.05) is not None for seed in range(runs))
    naive = sum(naive_alarm(seed, 0.05, 3000, 0.1) for seed in range(runs))
    assert alarms <= 3  # 1% of 150 promised; above 3 has a chance of 7%
    assert naive > 10  # what the sequence is there to prevent


def each_user_alike(draw: random.Random) -> Callable[[int], float]:
    """Ten users, and of three of them most requests fail; they come in runs."""
    chances = [0.6 if number < 3 else 0.01 for number in range(10)]
    draw.shuffle(chances)
    return lambda number: chances[number // 20 % 10]


def bad_hour(draw: random.Random) -> Callable[[int], float]:
    """A third of the time everything is slow."""
    start = draw.randrange(1000)
    return lambda number: 0.5 if start <= number < start + 500 else 0.01


@pytest.mark.parametrize("world", [each_user_alike, bad_hour])
@pytest.mark.parametrize("share", [0.05, 0.5])
def test_identical_models_are_rarely_told_apart_whatever_fails_together(
    world: Callable[[random.Random], Callable[[int], float]], share: float
) -> None:
    alarms = 0
    for seed in range(100):
        draw = random.Random(seed)
        chance, test = world(draw), CanaryTest(share)
        alarms += any(
            test.observe(
                "canary" if draw.random() < share else "baseline",
                "late" if draw.random() < chance(number) else None,
            )
            for number in range(1500)
        )
    assert alarms <= 4  # 1 promised of 100


def test_a_canary_whose_answers_are_not_cached_yet_is_no_worse_for_it() -> None:
    alarms = 0
    for seed in range(100):
        draw, test = random.Random(seed), CanaryTest(0.1)
        for _ in range(3000):
            arm = "canary" if draw.random() < 0.1 else "baseline"
            if arm == "baseline" and draw.random() < 0.7:
                continue  # from the cache: not counted
            if test.observe(arm, "errors" if draw.random() < 0.05 else None):
                alarms += 1
                break
    assert alarms <= 4


@pytest.mark.parametrize(("rate", "most"), [(1.0, 50), (0.5, 60), (0.2, 120), (0.1, 400)])
def test_a_bad_canary_is_found_within_so_many_of_its_requests(rate: float, most: int) -> None:
    delays = [simulate(seed, baseline=0.01, canary=rate, requests=9000) for seed in range(15)]
    assert None not in delays
    assert statistics.median(delay for delay in delays if delay) <= most


@pytest.mark.parametrize("rate", ["degraded", "late"])
def test_a_canary_that_degrades_or_is_late_is_found_though_it_makes_no_error(rate: Rate) -> None:
    delays = [simulate(n, baseline=0.02, canary=0.2, requests=9000, rate=rate) for n in range(10)]
    assert None not in delays
    assert statistics.median(delay for delay in delays if delay) < 300


def test_a_difference_within_the_margin_is_borne_however_certain() -> None:
    test = CanaryTest(0.5)
    for number in range(20_000):
        test.observe("baseline")
        assert test.observe("canary", "errors" if number % 125 == 124 else None) is None
    assert log_evidence(160, 160, 0.5) > 100
    assert test.figures()["errors"]["canary"] == 0.008


def test_nothing_is_decided_on_few_requests() -> None:
    test = CanaryTest(0.05)
    decided = [test.observe("canary", "errors") for _ in range(MIN_REQUESTS)]
    assert decided[:-1] == [None] * (MIN_REQUESTS - 1)


@given(st.integers(1, 30), st.floats(0.05, 0.95))
def test_the_evidence_exceeds_its_bound_no_more_often_than_promised(
    total: int, chance: float
) -> None:
    # Its mean under the chance itself is 1, so that Markov's inequality bounds every single look.
    mean = sum(
        math.comb(total, hits)
        * chance**hits
        * (1 - chance) ** (total - hits)
        * math.exp(log_evidence(hits, total, chance))
        for hits in range(total + 1)
    )
    assert mean == pytest.approx(1, rel=1e-6)
