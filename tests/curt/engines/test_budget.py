from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.dialogue import MAX_ANSWER_TOKENS
from curt.engines.budget import (
    ENOUGH,
    Estimates,
    Observation,
    SpeedEstimator,
    SpeedLine,
    allowed_thinking_tokens,
    fit_line,
    upper_quantile,
)

SPEEDS = st.builds(
    Estimates,
    tokens_of_chars=st.just(SpeedLine(0, 1)),
    prefill_ms_of_tokens=st.builds(SpeedLine, st.floats(-50, 50), st.floats(0, 5)),
    tpot_ms=st.floats(0.05, 50),
    answer_tokens=st.just(32),
)


def at_speed(prefill_ms_per_token: float, tpot_ms: float) -> Estimates:
    return Estimates(SpeedLine(0, 1), SpeedLine(0, prefill_ms_per_token), tpot_ms, 30)


def seen(
    prompt: int, prefill_ms: float, tpot_ms: float = 1.0, answer: int | None = 30
) -> Observation:
    return Observation(prompt - 40, prompt, prefill_ms, 40, 40 * tpot_ms, answer)


CALIBRATION = [seen(100, 20.0), seen(200, 40.0)]


def test_what_the_deadline_leaves_becomes_thinking() -> None:
    # 400 - 15 - 100 x 0.5 - (31 + 1) x 5 = 175 ms, at 5 ms a token
    assert allowed_thinking_tokens(400, 100, 31, at_speed(0.5, 5), 15, cap=512) == 35


def test_cap_bounds_a_long_deadline() -> None:
    assert allowed_thinking_tokens(60_000, 100, 31, at_speed(0.5, 5), 15, cap=64) == 64


def test_zero_thinking_is_allowed_to_the_last_millisecond() -> None:
    assert allowed_thinking_tokens(225, 100, 31, at_speed(0.5, 5), 15, cap=64) == 0
    assert allowed_thinking_tokens(224.9, 100, 31, at_speed(0.5, 5), 15, cap=64) is None


@given(
    speeds=SPEEDS,
    remaining=st.floats(-1e4, 1e5),
    more=st.floats(0, 1e4),
    prompt=st.integers(0, 2000),
    answer=st.integers(0, 64),
    cap=st.integers(0, 1024),
)
def test_more_time_never_allows_less(
    speeds: Estimates, remaining: float, more: float, prompt: int, answer: int, cap: int
) -> None:
    little = allowed_thinking_tokens(remaining, prompt, answer, speeds, 10, cap)
    much = allowed_thinking_tokens(remaining + more, prompt, answer, speeds, 10, cap)
    assert little is None or (much is not None and 0 <= little <= much <= cap)


@given(
    speeds=SPEEDS,
    remaining=st.floats(0, 1e5),
    prompt=st.integers(0, 2000),
    cap=st.integers(0, 1024),
)
def test_what_is_allowed_fits(speeds: Estimates, remaining: float, prompt: int, cap: int) -> None:
    allowed = allowed_thinking_tokens(remaining, prompt, 32, speeds, 10, cap)
    if allowed is not None:
        spent = speeds.prefill_ms_of_tokens.at(prompt) + (allowed + 33) * speeds.tpot_ms + 10
        assert spent <= remaining + 1e-6


@given(speeds=SPEEDS, remaining=st.floats(max_value=0, allow_nan=False), cap=st.integers(0, 64))
def test_a_deadline_in_the_past_is_hopeless(speeds: Estimates, remaining: float, cap: int) -> None:
    assert allowed_thinking_tokens(remaining, 100, 32, speeds, 1, cap) is None


def test_nan_remaining_time_is_hopeless() -> None:
    assert allowed_thinking_tokens(math.nan, 100, 31, at_speed(0.5, 5), 15, cap=64) is None


def test_nonsense_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="TPOT of 0"):
        allowed_thinking_tokens(400, 100, 31, at_speed(0.5, 0), 15, cap=64)
    with pytest.raises(ValueError, match="cap -1"):
        allowed_thinking_tokens(400, 100, 31, at_speed(0.5, 1), 15, cap=-1)
    with pytest.raises(ValueError, match="quantile 0"):
        SpeedEstimator(quantile=0)
    with pytest.raises(ValueError, match="calibrate"):
        SpeedEstimator().estimates(0.0)


def test_calibration_alone_gives_the_speed() -> None:
    estimates = SpeedEstimator(CALIBRATION).estimates(now_s=0.0)
    assert estimates.prefill_ms_of_tokens.at(150) == pytest.approx(30)
    assert estimates.tokens_of_chars.at(100) == pytest.approx(140)
    assert estimates.tpot_ms == pytest.approx(1.0)
    assert estimates.answer_tokens == 30


def test_a_machine_that_slows_down_is_noticed_by_its_upper_quantile() -> None:
    estimator = SpeedEstimator(CALIBRATION)
    for i in range(100):
        slow = 2.0 if i % 10 == 0 else 1.0  # one in ten takes twice as long
        estimator.observe(seen(150, 30.0 * slow, slow), now_s=i / 100)
    estimates = estimator.estimates(now_s=1.0)
    assert estimates.tpot_ms == pytest.approx(2.0)
    assert estimates.prefill_ms_of_tokens.at(150) == pytest.approx(60)


def test_the_average_stands_beside_the_upper_quantile() -> None:
    estimator = SpeedEstimator(CALIBRATION)
    for i in range(100):
        slow = 2.0 if i % 10 == 0 else 1.0
        estimator.observe(seen(150, 30.0 * slow, slow), now_s=i / 100)
    average = estimator.average(now_s=1.0)
    assert average.tpot_ms == pytest.approx(1.1)
    assert average.prefill_ms_of_tokens.at(150) == pytest.approx(33)
    assert average.zero_thinking_ms(150) < estimator.estimates(now_s=1.0).zero_thinking_ms(150)


def test_thinking_that_the_model_ends_itself_is_learned() -> None:
    estimator = SpeedEstimator(CALIBRATION)
    for i in range(ENOUGH):
        estimator.observe(Observation(110, 150, 30.0, 31 + 2 * i, 40.0, 20), now_s=float(i))
    assert estimator.average(now_s=8.0).thinking_tokens == pytest.approx(10 + ENOUGH - 1)
    assert Observation(110, 150, 30.0, 20, 40.0, 20).thinking_tokens == 0  # none was allowed
    assert Observation(110, 150, 30.0, 20, 40.0, None).thinking_tokens is None


def test_a_machine_that_was_slow_is_judged_anew_by_what_it_does_now() -> None:
    estimator = SpeedEstimator(CALIBRATION)
    for i in range(50):
        estimator.observe(seen(150, 300.0, 10.0), now_s=i / 100)
    assert estimator.estimates(now_s=1.0).tpot_ms == pytest.approx(10.0)
    estimator.begin_again([seen(150, 30.0), seen(200, 40.0)], now_s=1.0)
    assert estimator.estimates(now_s=1.0).tpot_ms == pytest.approx(1.0)


def test_old_observations_are_forgotten() -> None:
    estimator = SpeedEstimator(CALIBRATION, max_age_s=30)
    for i in range(ENOUGH):
        estimator.observe(seen(150, 300.0, 10.0), now_s=float(i))
    assert estimator.estimates(now_s=8.0).tpot_ms == pytest.approx(10.0)
    assert estimator.estimates(now_s=60.0).tpot_ms == pytest.approx(1.0)


def test_enough_observations_replace_a_bad_calibration() -> None:
    estimator = SpeedEstimator([seen(100, 2000.0, 50.0), seen(200, 4000.0, 50.0)])
    for i in range(ENOUGH):
        estimator.observe(seen(150, 30.0), now_s=float(i))
    estimates = estimator.estimates(now_s=8.0)
    assert estimates.tpot_ms == pytest.approx(1.0)
    assert estimates.prefill_ms_of_tokens.at(150) == pytest.approx(30.0)


def test_noise_on_a_tiny_prefill_does_not_scale_the_long_ones() -> None:
    # A cached prefix: prompts of 40 tokens cost nothing, 240 cost 40 ms.
    estimator = SpeedEstimator([seen(40, 0.01), seen(240, 40.0)])
    for i in range(ENOUGH):
        estimator.observe(seen(41, 3.0), now_s=float(i))
    assert estimator.estimates(now_s=8.0).prefill_ms_of_tokens.at(240) < 60


def test_an_answer_cut_by_the_deadline_does_not_count_as_short() -> None:
    estimator = SpeedEstimator(CALIBRATION)
    for i in range(ENOUGH):
        estimator.observe(seen(150, 30.0, answer=None), now_s=float(i))
    assert estimator.estimates(now_s=8.0).answer_tokens == MAX_ANSWER_TOKENS


def test_quiet_time_counts_from_the_last_observation() -> None:
    estimator = SpeedEstimator(CALIBRATION)
    assert estimator.quiet_s(5.0) == math.inf
    estimator.observe(seen(150, 30.0), now_s=3.0)
    assert estimator.quiet_s(5.0) == pytest.approx(2.0)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_upper_quantile_is_a_value_that_enough_do_not_exceed(
    values: list[float], quantile: float
) -> None:
    top = upper_quantile(values, quantile)
    assert top in values
    assert sum(v <= top for v in values) >= quantile * len(values) - 1e-9


@given(st.lists(st.tuples(st.integers(0, 2000), st.floats(0, 1e4)), min_size=1, max_size=30))
def test_a_fitted_line_never_falls_nor_goes_below_zero(points: list[tuple[int, float]]) -> None:
    line = fit_line(points)
    values = [line.at(x) for x in (0, 10, 100, 1000)]
    assert values == sorted(values)
    assert values[0] >= 0
