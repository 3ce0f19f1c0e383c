"""Formulas of the penalties that compare a completion with its group, worked by hand."""

from __future__ import annotations

import math
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.loop.advantages import estimate
from train.penalties import Group
from train.penalties.alone.dler import DlerPenalty
from train.penalties.group.alp import AlpPenalty
from train.penalties.group.arora_zanette import AroraZanettePenalty
from train.penalties.group.ddca import DdcaPenalty
from train.penalties.group.drpo import DrpoPenalty
from train.penalties.group.gated import GatedPenalty
from train.penalties.group.gr3 import Gr3Penalty
from train.penalties.group.granted import GrantedPenalty
from train.penalties.group.kimi import KimiPenalty
from train.penalties.group.shorter_better import ShorterBetterPenalty


def test_kimi_gives_a_wrong_completion_no_bonus_for_being_short():
    shaped = KimiPenalty(weight=0.4)(Group((0, 1, 0), (10, 20, 30), 128))
    assert shaped == pytest.approx([0.0, 1.0, -0.2])


def test_arora_zanette_standardises_over_the_right_completions_only():
    sigma = 1 / (1 + math.exp(-1))
    shaped = AroraZanettePenalty(alpha=0.5)(Group((1, 1, 0), (20, 80, 9999), 64))
    assert shaped == pytest.approx([1 - 0.5 * (1 - sigma), 1 - 0.5 * sigma, 0.0])


def test_arora_zanette_leaves_truncated_ones_out_of_the_mean():
    flags = (False, False, True)
    shaped = AroraZanettePenalty(alpha=0.5)(Group((1, 1, 1), (40, 40, 400), 64, flags))
    assert shaped == pytest.approx([0.75, 0.75, 0.0])


def test_truncation_does_not_soften_a_negative_reward():
    group = Group((-1, -1), (10, 90), 64, (False, True))
    assert AroraZanettePenalty()(group) == [-1, -1]
    assert DlerPenalty()(group) == [-1, -1]
    assert Gr3Penalty()(group) == [-1, -1]


def test_alp_presses_where_the_prompt_is_easy():
    penalty = AlpPenalty(beta=0.5, scale=100)
    easy = penalty(Group((1, 1, 1, 1), (100,) * 4, 128))
    hard = penalty(Group((1, 0, 0, 0), (100,) * 4, 128))
    assert (easy[0], hard[0]) == pytest.approx((0.5, 0.875))


def test_alp_presses_a_little_where_nothing_is_right():
    shaped = AlpPenalty(beta=0.5, scale=100)(Group((0, 0), (100, 0), 128))
    assert shaped == pytest.approx([-0.25, 0.0])


def test_shorter_better_aims_at_the_mean_where_nothing_is_right():
    shaped = ShorterBetterPenalty(beta=0.02)(Group((0, 0), (20, 80), 128))
    assert shaped == pytest.approx([-0.6, -0.6])


def test_gr3_scales_by_the_mean_of_the_whole_group():
    shaped = Gr3Penalty(alpha=1.0)(Group((1, 0, 1), (30, 90, 60), 128))
    assert shaped == pytest.approx([1 / 1.5, 0.0, 0.5])


def test_gr3_takes_no_reasoning_at_all_for_equal_lengths():
    assert Gr3Penalty(alpha=1.0)(Group((1, 0), (0, 0), 128)) == [0.5, 0.0]


@given(
    penalty=st.sampled_from([DdcaPenalty(), DdcaPenalty(beta=1), DrpoPenalty(limit=400)]),
    correct=st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=8),
    data=st.data(),
)
def test_after_a_group_mean_baseline_the_length_term_is_centred_over_the_right(
    penalty, correct, data
):
    size = len(correct)
    lengths = data.draw(st.lists(st.integers(0, 400), min_size=size, max_size=size))
    shaped = penalty(Group(tuple(correct), tuple(lengths), 64))
    terms = [
        (s - fmean(shaped)) - (c - fmean(correct)) for s, c in zip(shaped, correct, strict=True)
    ]
    assert sum(t for t, c in zip(terms, correct, strict=True) if c) == pytest.approx(0, abs=1e-9)
    assert [t for t, c in zip(terms, correct, strict=True) if not c] == pytest.approx(
        [0.0] * correct.count(0.0), abs=1e-9
    )


@pytest.mark.parametrize(
    ("correct", "lengths", "published"),
    [
        ((1, 1, 0, 0), (20, 80, 9, 9), [1.02311, 0.97689, -1, -1]),
        ((1, 1), (20, 80), [0.04621, -0.04621]),
    ],
)
def test_ddca_has_half_the_published_advantages_under_an_unscaled_estimator(
    correct, lengths, published
):
    """Numbers of alphadl/DDCA, dca/advantage.py, with its beta of 0.2."""
    (ours,) = estimate("none", [DdcaPenalty(beta=0.2)(Group(correct, lengths, 64))])
    assert [2 * a for a in ours] == pytest.approx(published, abs=1e-5)


def test_ddca_presses_less_on_hard_prompts():
    easy = DdcaPenalty()(Group((1, 1), (20, 80), 64))
    hard = DdcaPenalty()(Group((1, 1, 0, 0, 0, 0), (20, 80, 9, 9, 9, 9), 64))
    assert (hard[0] - hard[1]) == pytest.approx((easy[0] - easy[1]) / 3)


def test_drpo_presses_harder_at_a_lower_temperature():
    group = Group((1, 1), (20, 80), 64)
    mild, hard = DrpoPenalty(temperature=2)(group), DrpoPenalty(temperature=0.5)(group)
    assert hard[0] > mild[0] > 1 > mild[1] > hard[1] > 0


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


def test_kimi_amplifies_the_same_spread():
    shaped = KimiPenalty(weight=0.4)(Group((1, 1), (30, 34), 128))
    assert shaped == pytest.approx([1.2, 0.8])


def test_gated_takes_for_running_past_the_stated_budget():
    # 32 tokens past a budget of 64 are half an overrun: 1 - 0.5 x 0.5
    shaped = GatedPenalty(weight=0, over_budget=0.5)(Group((1, 1), (64, 96), 64))
    assert shaped == pytest.approx([1.0, 0.75])


def test_gated_knows_a_budget_of_nothing():
    shaped = GatedPenalty(weight=0, over_budget=0.5, floor=16)(Group((1, 1), (0, 8), 0))
    assert shaped == pytest.approx([1.0, 0.75])


def test_a_budget_is_worth_using_up_only_where_the_longer_ones_are_right():
    penalty = GrantedPenalty(weight=0.4)
    helps = penalty(Group((1, 1, 0, 0), (60, 30, 10, 20), 60))
    assert helps == pytest.approx([1, 1 - 0.4 / 2, 0, 0])
    in_part = penalty(Group((1, 1, 0, 0), (60, 30, 20, 40), 60))  # of four pairs three are longer
    assert in_part == pytest.approx([1, 1 - 0.4 / 4, 0, 0])
    assert penalty(Group((1, 1, 0, 0), (10, 20, 60, 30), 60)) == [1, 1, 0, 0]
    assert penalty(Group((1, 1), (10, 60), 60)) == [1, 1]
    assert penalty(Group((1, 0), (90, 10), 60)) == [1, 0]
