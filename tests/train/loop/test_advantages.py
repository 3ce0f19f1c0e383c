from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.loop.advantages import ESTIMATORS, aggregate_scores, boost_right, estimate, gdpo
from train.penalties import Group
from train.penalties.group.gated import GatedPenalty
from train.penalties.group.gr3 import Gr3Penalty

reward = st.floats(-2, 2).map(lambda r: round(r, 3))


@st.composite
def batches(draw, missing=False):
    """A batch of groups of one size."""
    size = draw(st.integers(2, 6))
    value = st.none() | reward if missing else reward
    group = st.lists(value, min_size=size, max_size=size)
    return draw(st.lists(group, min_size=1, max_size=5))


def tensor(groups) -> torch.Tensor:
    rows = [[float("nan") if r is None else r for r in g] for g in groups]
    return torch.tensor(rows, dtype=torch.float64)


def nan_std(values: torch.Tensor, dim: tuple[int, ...]) -> torch.Tensor:
    """Sample deviation that skips NaN, NaN for fewer than two values."""
    count = (~values.isnan()).sum(dim=dim, keepdim=True)
    centred = values - values.nanmean(dim=dim, keepdim=True)
    return (centred.square().nansum(dim=dim, keepdim=True) / (count - 1)).sqrt()


def trl(groups, scale: str) -> torch.Tensor:
    """TRL's formulas for `scale_rewards`, on rewards of shape (groups, completions)."""
    rewards = tensor(groups)
    centred = rewards - rewards.nanmean(dim=1, keepdim=True)
    if scale != "none":
        centred = centred / (nan_std(rewards, (1,) if scale == "group" else (0, 1)) + 1e-4)
    return centred.nan_to_num(0.0)


def flat(groups) -> list[float]:
    return list(itertools.chain.from_iterable(groups))


def close(ours, theirs: torch.Tensor) -> bool:
    return flat(ours) == pytest.approx(theirs.flatten().tolist(), abs=1e-6)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@given(groups=batches())
def test_equals_trl(scale, groups):
    assert close(estimate(scale, groups), trl(groups, scale))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equals_trl_where_rewards_are_missing(scale):
    groups = [[1.0, None, 0.0, 0.5], [None, None, None, None], [0.25, None, 1.0, 1.0]]
    assert close(estimate(scale, groups), trl(groups, scale))


def test_group_scaling_makes_a_few_tokens_a_full_advantage_and_whitening_with_a_floor_does_not():
    """Lengths of 200 to 206 in a group of right answers."""
    noisy = Group((1,) * 7, tuple(range(200, 207)), 256)
    rewards = Gr3Penalty()(noisy)
    assert max(rewards) - min(rewards) < 0.01
    assert max(map(abs, estimate("group", [rewards])[0])) > 1
    batch = [rewards, [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]]
    calm = estimate("whitened", batch, spread_floor=0.02)
    assert calm[0] == [0.0] * 7
    assert max(map(abs, calm[1])) > 1
    assert max(map(abs, estimate("whitened", batch)[0])) < 0.02  # in proportion even without


def test_whitening_alone_does_not_help_where_the_whole_batch_is_noise():
    rewards = Gr3Penalty()(Group((1,) * 7, tuple(range(200, 207)), 256))
    assert max(map(abs, estimate("whitened", [rewards] * 4)[0])) > 1
    assert flat(estimate("whitened", [rewards] * 4, spread_floor=0.02)) == [0.0] * 28


def test_whitened_advantages_have_unit_deviation_over_the_batch():
    groups = [[1.0, 0.0, 0.0, 0.0], [5.0, 6.0, 5.0, 6.0]]
    values = torch.tensor(flat(estimate("whitened", groups)))
    assert float(values.mean()) == pytest.approx(0, abs=1e-6)
    assert float(values.std()) == pytest.approx(1, abs=1e-3)
    # TRL's "batch" divides by a deviation that holds the difference between the prompts as well
    assert float(torch.tensor(flat(estimate("batch", groups))).std()) < 0.3


def test_whitening_and_boost_equal_dlers():
    """Numbers of NVlabs/DLER, verl-dler: groups filtered, `reinforce_plus_plus_baseline`, boost.

    Responses of one token, as its whitening weighs by tokens; the last of the first group is right
    and was cut off. The group of ones is the one that its filter drops.
    """
    rewards = [[1.0, 0.0, 0.0, 0.1], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0]]
    correct = [[1.0, 0.0, 0.0, 1.0], [1.0] * 4, [1.0, 1.0, 0.0, 1.0]]
    advantages = estimate("whitened", rewards)
    assert advantages[1] == [0.0] * 4
    assert flat(advantages[::2]) == pytest.approx(
        [1.5888, -0.6027, -0.6027, -0.3835, 0.5479, 0.5479, -1.6436, 0.5479], abs=1e-3
    )
    boosted = boost_right(advantages, correct, 0.1)
    assert boosted[1] == [0.0] * 4
    assert flat(boosted[::2]) == pytest.approx(
        [1.6888, -0.6027, -0.6027, -0.2835, 0.6479, 0.6479, -1.6436, 0.6479], abs=1e-3
    )


def test_leave_one_out_worked_by_hand():
    assert estimate("rloo", [[1.0, 0.0, 0.5]]) == [pytest.approx([0.75, -0.75, 0.0])]
    assert estimate("rloo", [[1.0, None, 0.0]]) == [pytest.approx([1.0, 0.0, -1.0])]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(groups=batches(missing=True), shift=reward)
def test_advantages_ignore_a_shift_of_a_groups_rewards(estimator, groups, shift):
    if estimator == "batch":
        shifted = [[None if r is None else r + shift for r in g] for g in groups]
    else:
        first = [None if r is None else r + shift for r in groups[0]]
        shifted = [first, *groups[1:]]
    expected = flat(estimate(estimator, groups))
    assert flat(estimate(estimator, shifted)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(groups=batches(missing=True))
def test_a_missing_reward_gets_no_advantage_and_the_rest_sum_to_nothing(estimator, groups):
    advantages = estimate(estimator, groups)
    for rewards, values in zip(groups, advantages, strict=True):
        assert len(values) == len(rewards)
        assert all(a == 0 for r, a in zip(rewards, values, strict=True) if r is None)
        assert sum(values) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(value=reward, size=st.integers(1, 9))
def test_equal_rewards_teach_exactly_nothing(estimator, value, size):
    """Exactly: groups without an advantage are looked for by comparison with 0."""
    equal = [value + 1e-16 * i for i in range(size)]
    assert estimate(estimator, [equal, [0.0, 1.0]])[0] == [0.0] * size


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(groups=batches(), floor=st.floats(0, 1))
def test_below_the_floor_there_is_no_advantage(estimator, groups, floor):
    for rewards, values in zip(
        groups, estimate(estimator, groups, spread_floor=floor), strict=True
    ):
        if max(rewards) - min(rewards) < floor:
            assert values == [0.0] * len(values)


def test_group_scaling_never_divides_by_less_than_the_floor():
    assert estimate("group", [[0.0, 0.3]], spread_floor=0.25)[0][1] == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize(
    ("estimator", "floor", "said"), [("grpo", 0.0, "'grpo'"), ("group", -1.0, "0 or more")]
)
def test_unknown_estimators_and_negative_floors_are_refused(estimator, floor, said):
    with pytest.raises(ValueError, match=said):
        estimate(estimator, [[0.0, 1.0]], spread_floor=floor)


@given(exact=batches(), weight=st.floats(0.1, 2))
def test_gdpo_equals_trl_normalise_then_sum(exact, weight):
    charge = [[1 - r * r for r in g[::-1]] for g in exact]
    parts = [{"exact": e, "charge": c} for e, c in zip(exact, charge, strict=True)]
    total = torch.zeros(len(exact), len(exact[0]), dtype=torch.float64)
    for rewards, factor in ((exact, 1.0), (charge, weight)):
        values = tensor(rewards)
        mean, std = values.mean(dim=1, keepdim=True), nan_std(values, (1,))
        total += factor * (values - mean) / (std + 1e-4)
    whitened = (total - total.mean()) / (nan_std(total, (0, 1)) + 1e-4)
    assert close(gdpo(parts, {"exact": 1.0, "charge": weight}), whitened)


def test_gdpo_keeps_an_easy_reward_from_dominating():
    """Format spreads over 10, exactness over 1: summed raw, exactness would hardly count."""
    group = {"exact": [1.0, 0.0, 1.0, 0.0], "format": [0.0, 0.0, 10.0, 10.0]}
    summed = [e + f for e, f in zip(*group.values(), strict=True)]
    raw = estimate("group", [summed])[0]
    fair = gdpo([group], {"exact": 1.0, "format": 1.0})[0]
    assert raw[3] > 0 > raw[0]
    assert fair[0] == pytest.approx(fair[3], abs=1e-3)


def test_gdpo_leaves_out_what_has_no_reward_and_what_has_no_weight():
    group = {"exact": [1.0, None, 0.0], "judge": [None, None, 1.0], "logged": [9.0, 0.0, 3.0]}
    values = gdpo([group], {"exact": 1.0, "judge": 1.0})[0]
    assert values[1] == 0
    assert values[0] == pytest.approx(-values[2])
    assert values[0] > 0


def test_gdpo_groups_without_a_spread_stay_at_nothing():
    parts = [{"exact": [1.0, 1.0]}, {"exact": [0.0, 1.0]}, {"exact": [0.5, 0.52]}]
    values = gdpo(parts, {"exact": 2.0}, spread_floor=0.1)
    assert values[0] == values[2] == [0.0, 0.0]
    assert values[1][1] > 0


@pytest.mark.parametrize(
    ("group", "said"),
    [({"exact": [1.0]}, "no rewards"), ({"exact": [1.0], "term": [1.0, 2.0]}, "unequal numbers")],
)
def test_gdpo_names_what_is_missing(group, said):
    with pytest.raises(ValueError, match=said):
        gdpo([group], {"exact": 1.0, "term": 1.0})


def test_models_with_other_scales_count_alike():
    scores = {"a": [0.0, 0.5, 1.0], "b": [0.0, 500.0, 1000.0]}
    means, disagreement = aggregate_scores(scores)
    assert means == pytest.approx([-1.0, 0.0, 1.0], abs=1e-3)
    assert disagreement == pytest.approx([0.0, 0.0, 0.0], abs=1e-3)


def test_models_that_contradict_each_other_cancel_and_show_it():
    means, disagreement = aggregate_scores({"a": [0.0, 0.5, 1.0], "b": [1.0, 0.5, 0.0]})
    assert means == pytest.approx([0.0, 0.0, 0.0])
    assert disagreement == pytest.approx([1.0, 0.0, 1.0], abs=1e-3)


def test_ranks_share_ties_and_shrug_off_outliers():
    means, disagreement = aggregate_scores({"a": [0.0, 1.0, 1.0, 1e6]}, method="rank")
    assert means == pytest.approx([-1.0, 0.0, 0.0, 1.0])
    assert disagreement == [0.0] * 4


def test_a_model_without_a_score_is_left_out():
    means, disagreement = aggregate_scores(
        {"a": [0.0, None, 1.0], "b": [None, None, 3.0]}, method="rank"
    )
    assert means == [-1.0, None, 0.5]
    assert disagreement == [0.0, None, 0.5]


@pytest.mark.parametrize("scores", [{}, {"a": [1.0], "b": [1.0, 2.0]}])
def test_models_must_score_the_same_completions(scores):
    with pytest.raises(ValueError, match="one score a completion"):
        aggregate_scores(scores)


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="'median'"):
        aggregate_scores({"a": [1.0, 2.0]}, method="median")


def test_the_default_penalty_meets_the_floor_by_itself():
    rewards = GatedPenalty()(Group((1,) * 7, (200, 200, 201, 201, 202, 202, 201), 256))
    assert estimate("group", [rewards]) == [[0.0] * 7]
