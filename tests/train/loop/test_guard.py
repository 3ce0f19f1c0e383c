from __future__ import annotations

import pickle
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from train.loop.guard import AccuracyGuard, weigh_penalty
from train.penalties.base import GroupOutcome, History

shares = st.floats(0, 1)
guards = st.builds(
    AccuracyGuard,
    tolerance=st.floats(0.01, 0.5),
    window=st.integers(1, 6),
    floor=shares,
    recovery=st.floats(0.01, 1),
)


def history_of(accuracies):
    """One group a step with that share of right completions."""
    return History(
        tuple(GroupOutcome(step, (share,), (10,)) for step, share in enumerate(accuracies, 1))
    )


def weights(guard, accuracies):
    return [guard.weight(history_of(accuracies[:end])) for end in range(len(accuracies) + 1)]


@pytest.mark.parametrize(
    ("now", "weight"),
    [(0.80, 1.0), (0.70, 1.0), (0.65, 1.0), (0.625, 0.5), (0.60, 0.0), (0.2, 0.0)],
)
def test_the_weight_falls_between_one_and_two_tolerances(now, weight):
    guard = AccuracyGuard(window=2)
    assert guard.weight(history_of([0.7, 0.7, now, now])) == pytest.approx(weight, abs=1e-9)


def test_the_weight_stops_at_the_floor():
    guard = AccuracyGuard(window=1, floor=0.2)
    assert guard.weight(history_of([0.7, 0.625])) == pytest.approx(0.6)
    assert guard.weight(history_of([0.7, 0.1])) == pytest.approx(0.2)


def test_one_bad_step_in_a_window_is_no_alarm():
    guard = AccuracyGuard(window=5)
    assert guard.weight(history_of([0.7] * 5 + [0.5])) == 1
    assert guard.weight(history_of([0.7] * 5 + [0.5] * 3)) == 0


def test_the_best_counts_whole_windows_alone():
    """A lucky first step is no standard to be held to."""
    assert weights(AccuracyGuard(window=3), [1.0, 0.5, 0.5, 0.6]) == [1, 1, 1, 1, 0]
    assert weights(AccuracyGuard(window=3), [1.0, 0.5]) == [1, 1, 1]


def test_the_weight_falls_at_once_and_comes_back_step_by_step():
    guard = AccuracyGuard(window=1, recovery=0.25)
    assert weights(guard, [0.7, 0.2, 0.7, 0.7, 0.7, 0.7, 0.7]) == pytest.approx(
        [1, 1, 0, 0.25, 0.5, 0.75, 1, 1]
    )


def test_noise_alone_moves_the_default_little_and_a_real_loss_takes_the_penalty_away():
    rng = random.Random(4)

    def step_accuracy(loss):
        chances = [max(0.0, rng.betavariate(1.3, 0.7) - loss) for _ in range(8)]
        return fmean(rng.random() < chance for chance in chances for _ in range(8))

    guard = AccuracyGuard()
    steady, fallen = [], []
    for _ in range(20):
        accuracies = [step_accuracy(0.0) for _ in range(100)]
        steady.append(guard.weight(history_of(accuracies)))
        accuracies += [step_accuracy(0.15) for _ in range(30)]
        fallen.append(guard.weight(history_of(accuracies)))
    assert fmean(steady) > 0.75
    assert fmean(fallen) < 0.1


def test_groups_of_a_step_count_together():
    guard = AccuracyGuard(window=1)
    steady = [GroupOutcome(s, c, (5, 5)) for s in (1, 2) for c in ((1.0, 1.0), (0.0, 0.0))]
    assert guard.weight(History(tuple(steady))) == 1


@given(guards, st.lists(shares, max_size=30))
def test_the_weight_lies_between_the_floor_and_one(guard, accuracies):
    assert all(guard.floor - 1e-9 <= w <= 1 for w in weights(guard, accuracies))


@given(guards, st.lists(shares, max_size=30))
def test_accuracy_that_never_falls_leaves_the_penalty_alone(guard, accuracies):
    assert guard.weight(history_of(sorted(accuracies))) == 1


@given(guards, st.lists(shares, max_size=30), st.integers(0, 30))
def test_a_resumed_run_goes_on_with_the_same_weight(guard, accuracies, cut):
    whole = history_of(accuracies)
    resumed = History(whole.groups[:cut]).extend(whole.groups[cut:])
    again = pickle.loads(pickle.dumps(guard))
    assert again.weight(resumed) == guard.weight(whole)


@given(guards, shares, shares)
def test_a_larger_shortfall_never_weighs_more(guard, one, other):
    small, large = sorted((one, other))
    assert guard.scale(large) <= guard.scale(small)


def test_weighing_worked_by_hand():
    assert weigh_penalty([0.6, 1.2, -0.2], [1.0, 1.0, 0.0], 0.5) == pytest.approx([0.8, 1.1, -0.1])


rows = st.lists(st.tuples(st.floats(-2, 2), st.sampled_from([0.0, 1.0])), min_size=1)


@given(rows, shares)
def test_weighing_stays_between_correctness_and_the_penalty(pairs, weight):
    shaped, correct = zip(*pairs, strict=True)
    for value, s, c in zip(weigh_penalty(shaped, correct, weight), shaped, correct, strict=True):
        assert min(s, c) - 1e-9 <= value <= max(s, c) + 1e-9
    assert weigh_penalty(shaped, correct, 1.0) == list(shaped)
    assert weigh_penalty(shaped, correct, 0.0) == pytest.approx(list(correct))


@given(rows, shares)
def test_weighing_lifts_no_wrong_completion_over_a_right_one(pairs, weight):
    """Where the penalty kept right above wrong, any weight does."""
    shaped = [min(max(s, 0.5), 1.5) if c else min(s, 0.0) for s, c in pairs]
    correct = [c for _, c in pairs]
    values = weigh_penalty(shaped, correct, weight)
    right = [v for v, c in zip(values, correct, strict=True) if c]
    wrong = [v for v, c in zip(values, correct, strict=True) if not c]
    assert not right or not wrong or max(wrong) < min(right)


@pytest.mark.parametrize("weight", [-0.1, 1.1])
def test_a_weight_outside_its_range_is_refused(weight):
    with pytest.raises(ValueError, match=f"weight of {weight}"):
        weigh_penalty([1.0], [1.0], weight)


def test_uneven_rows_are_refused():
    with pytest.raises(ValueError, match="zip"):
        weigh_penalty([1.0], [1.0, 0.0], 0.5)


@pytest.mark.parametrize(
    "bad", [{"tolerance": 0}, {"window": 0}, {"floor": 1.5}, {"recovery": 0}, {"tolerence": 0.1}]
)
def test_bad_settings_are_refused_by_name(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        AccuracyGuard(**bad)
