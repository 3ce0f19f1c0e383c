from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from train.penalties import (
    PENALTIES,
    GatedPenalty,
    Group,
    KimiPenalty,
    LcpoMaxPenalty,
    NoPenalty,
    Penalty,
)

share = st.floats(0, 0.99)
ANY_PENALTY = st.one_of(
    st.just(NoPenalty()),
    st.builds(KimiPenalty, weight=st.floats(0, 1)),
    st.builds(LcpoMaxPenalty, alpha=st.floats(1e-5, 1)),
    st.builds(
        GatedPenalty,
        weight=share,
        over_budget=share,
        tolerance=st.integers(0, 20),
        floor=st.integers(1, 64),
    ),
)
BOUNDS = {
    "none": lambda p: (0, 1),
    "kimi": lambda p: (-p.weight / 2, 1 + p.weight / 2),
    "lcpo-max": lambda p: (0, 1),
    "gated": lambda p: (0, 1),
}


@st.composite
def groups(draw, longest=400, min_size=1):
    size = draw(st.integers(min_size, 8))
    correct = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=size, max_size=size))
    lengths = draw(st.lists(st.integers(0, longest), min_size=size, max_size=size))
    return Group(tuple(correct), tuple(lengths), budget=draw(st.integers(0, 256)))


def split(group: Group, shaped: list[float]) -> tuple[list[float], list[float]]:
    """Shaped values of right and of wrong completions."""
    pairs = list(zip(group.correct, shaped, strict=True))
    return [s for c, s in pairs if c], [s for c, s in pairs if not c]


def test_the_cases_below_cover_every_penalty():
    assert PENALTIES.keys() == BOUNDS.keys()
    assert all(penalty().type == name for name, penalty in PENALTIES.items())


@given(penalty=ANY_PENALTY, group=groups())
def test_no_wrong_completion_outranks_a_right_one(penalty, group):
    right, wrong = split(group, penalty(group))
    if right and wrong:
        assert min(right) >= max(wrong)


@given(
    penalty=ANY_PENALTY,
    group=groups(),
    partial_share=st.floats(0, 0.99),
    partials=st.lists(st.floats(0, 1), min_size=8, max_size=8),
)
def test_no_wrong_completion_outranks_a_right_one_in_the_total(
    penalty, group, partial_share, partials
):
    """Right completions have partial 1; a wrong one may have it too, with a term nearly right."""
    shaped = penalty(group)
    totals = [
        partial_share * (1.0 if c else partial) + (1 - partial_share) * s
        for c, partial, s in zip(group.correct, partials, shaped, strict=False)
    ]
    right, wrong = split(group, totals)
    if right and wrong:
        assert min(right) >= max(wrong)


@pytest.mark.parametrize("name", ["none", "kimi", "gated"])
@given(group=groups(min_size=2))
def test_right_strictly_outranks_wrong_with_default_constants(name, group):
    right, wrong = split(group, PENALTIES[name]()(group))
    if right and wrong:
        assert min(right) > max(wrong)


def test_lcpo_max_ties_right_with_wrong_once_the_budget_is_overrun_far_enough():
    shaped = LcpoMaxPenalty(alpha=0.01)(Group((1.0, 0.0), (132, 5), budget=32))
    assert shaped == [0.0, 0.0]


@given(penalty=ANY_PENALTY, group=groups(), length=st.integers(0, 400))
def test_equal_lengths_keep_the_order_of_plain_correctness(penalty, group, length):
    equal = Group(group.correct, (length,) * len(group.correct), group.budget)
    right, wrong = split(equal, penalty(equal))
    assert len(set(right)) <= 1
    assert set(wrong) <= {0.0}
    if right and wrong:
        # equal only where LCPO-Max has clipped the reward of an overrun to 0
        overrun = equal.budget - length
        clipped = penalty.type == "lcpo-max" and penalty.alpha * overrun <= -1
        assert right[0] > wrong[0] or clipped


@given(penalty=ANY_PENALTY, group=groups(longest=100_000))
def test_values_are_finite_and_within_the_documented_bounds(penalty, group):
    low, high = BOUNDS[penalty.type](penalty)
    shaped = penalty(group)
    assert len(shaped) == len(group.lengths)
    assert all(math.isfinite(s) and low - 1e-9 <= s <= high + 1e-9 for s in shaped)


@given(penalty=ANY_PENALTY, group=groups())
def test_no_sign_flips(penalty, group):
    right, wrong = split(group, penalty(group))
    assert all(s >= 0 for s in right)
    assert all(s <= 0 for s in wrong)


@given(penalty=ANY_PENALTY, group=groups(min_size=2))
def test_of_two_right_completions_the_longer_is_never_worth_more(penalty, group):
    ranked = sorted(
        (length, -s)
        for c, length, s in zip(group.correct, group.lengths, penalty(group), strict=True)
        if c
    )
    values = [-s for _, s in ranked]
    assert values == sorted(values, reverse=True)


@given(penalty=ANY_PENALTY, group=groups())
def test_a_group_without_a_right_completion_earns_nothing(penalty, group):
    none_right = Group((0.0,) * len(group.correct), group.lengths, group.budget)
    assert max(penalty(none_right)) <= 0


@given(penalty=ANY_PENALTY, group=groups())
def test_penalties_pickle(penalty, group):
    again = pickle.loads(pickle.dumps(penalty))
    assert again == penalty
    assert again(group) == penalty(group)


@given(penalty=ANY_PENALTY, group=groups(min_size=2))
def test_the_order_of_a_group_does_not_matter(penalty, group):
    turned = Group(group.correct[::-1], group.lengths[::-1], group.budget)
    assert penalty(turned) == penalty(group)[::-1]


@given(group=groups())
def test_without_weight_a_penalty_is_plain_correctness(group):
    for penalty in (NoPenalty(), KimiPenalty(weight=0), GatedPenalty(weight=0, over_budget=0)):
        assert penalty(group) == list(group.correct)


def test_kimi_worked_example():
    assert KimiPenalty(weight=0.4)(Group((1, 1), (10, 30), 128)) == pytest.approx([1.2, 0.8])


def test_kimi_gives_a_wrong_completion_no_bonus_for_being_short():
    shaped = KimiPenalty(weight=0.4)(Group((0, 1, 0), (10, 20, 30), 128))
    assert shaped == pytest.approx([0.0, 1.0, -0.2])


def test_lcpo_max_worked_example():
    shaped = LcpoMaxPenalty(alpha=0.01)(Group((1, 1), (32, 12), 32))
    assert shaped == pytest.approx([0.5, 0.6])


def test_gated_worked_example():
    penalty = GatedPenalty(weight=0.4, tolerance=0, floor=16)
    assert penalty(Group((1, 1), (10, 110), 128)) == pytest.approx([1.0, 0.6])


def test_gated_pressure_grows_with_the_pass_rate():
    penalty = GatedPenalty(weight=0.4, tolerance=0)
    half = penalty(Group((1, 1, 0, 0), (10, 110, 50, 50), 128))
    assert half == pytest.approx([1.0, 0.8, 0.0, 0.0])


def test_gated_leaves_a_spread_within_the_tolerance_alone():
    assert GatedPenalty(tolerance=2)(Group((1, 1, 1), (30, 31, 32), 128)) == [1.0, 1.0, 1.0]


def test_gated_does_not_amplify_a_small_spread():
    # 4 tokens over a floor of 16 are a quarter of the full penalty
    shaped = GatedPenalty(weight=0.4, tolerance=0, floor=16)(Group((1, 1), (30, 34), 128))
    assert shaped == pytest.approx([1.0, 0.9])


def test_gated_takes_for_running_past_the_stated_budget():
    # 32 tokens past a budget of 64 are half an overrun: 1 - 0.5 x 0.5
    shaped = GatedPenalty(weight=0, over_budget=0.5)(Group((1, 1), (64, 96), 64))
    assert shaped == pytest.approx([1.0, 0.75])


def test_gated_knows_a_budget_of_nothing():
    shaped = GatedPenalty(weight=0, over_budget=0.5, floor=16)(Group((1, 1), (0, 8), 0))
    assert shaped == pytest.approx([1.0, 0.75])


@pytest.mark.parametrize(("correct", "lengths"), [((), ()), ((1.0,), (1, 2)), ((1.0, 0.0), (1,))])
def test_a_group_must_be_whole(correct, lengths):
    with pytest.raises(ValueError, match="one of each"):
        Group(correct, lengths, 64)


CONFIG = TypeAdapter(Penalty)


@pytest.mark.parametrize("name", PENALTIES)
def test_configuration_picks_the_penalty_by_type(name):
    assert CONFIG.validate_python({"type": name}) == PENALTIES[name]()


@pytest.mark.parametrize(
    "value",
    [
        {"type": "linear"},
        {"weight": 0.4},
        {"type": "kimi", "alpha": 0.1},
        {"type": "none", "weight": 0.4},
        {"type": "kimi", "weight": 1.5},
        {"type": "gated", "weight": 1.0},
        {"type": "gated", "floor": 0},
        {"type": "lcpo-max", "alpha": 0},
    ],
)
def test_unknown_types_constants_and_values_are_refused(value):
    with pytest.raises(ValidationError):
        CONFIG.validate_python(value)


@given(penalty=ANY_PENALTY)
def test_configuration_round_trip(penalty):
    assert CONFIG.validate_python(penalty.model_dump(mode="json")) == penalty
