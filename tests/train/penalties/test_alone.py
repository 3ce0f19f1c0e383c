"""Formulas of the penalties that judge a completion by itself, worked by hand."""

from __future__ import annotations

import pytest

from train.penalties import Group
from train.penalties.alone.cosine import CosinePenalty
from train.penalties.alone.dapo_overlong import DapoOverlongPenalty
from train.penalties.alone.dler import DlerPenalty
from train.penalties.alone.laser import LaserPenalty
from train.penalties.alone.lcpo_exact import LcpoExactPenalty
from train.penalties.alone.lcpo_max import LcpoMaxPenalty
from train.penalties.alone.linear import LinearPenalty


def test_cosine_does_not_pay_again_at_twice_the_limit():
    shaped = CosinePenalty()(Group((1, 1, 1), (32, 64, 128), 64))
    assert shaped == pytest.approx([0.75, 0.5, 0.5])


def test_linear_knows_a_budget_of_nothing():
    assert LinearPenalty(weight=0.4)(Group((1, 1), (0, 1), 0)) == pytest.approx([1.0, 0.6])


def test_dapo_cuts_the_cache_to_a_short_limit():
    shaped = DapoOverlongPenalty(weight=0.5, cache=24)(Group((1, 1, 1, 1), (0, 8, 16, 17), 16))
    assert shaped == pytest.approx([1.0, 0.75, 0.5, 0.5])


def test_a_configured_limit_replaces_the_stated_budget():
    group = Group((1, 1), (90, 110), 32)
    assert LaserPenalty(limit=100)(group) == [1.5, 1]
    assert DlerPenalty(limit=100)(group) == [1, 0.1]
    assert DapoOverlongPenalty(limit=100, cache=20)(group) == pytest.approx([0.75, 0.5])
    assert LinearPenalty(limit=100, weight=0.4)(group) == pytest.approx([0.64, 0.6])


def test_lcpo_exact_falls_on_both_sides_of_the_budget():
    shaped = LcpoExactPenalty(alpha=0.01)(Group((1, 1, 1), (32, 64, 96), 64))
    assert shaped == pytest.approx([0.68, 1.0, 0.68])


def test_lcpo_max_in_the_form_of_the_released_code():
    """Rewards of `get_delta_score_max` in cmu-l3/l1, deepscaler/rewards/math_reward.py."""
    shaped = LcpoMaxPenalty(alpha=1 / 500)(Group((1,) * 4, (0, 900, 1400, 2000), 1000))
    assert shaped == pytest.approx([1.0, 0.6, 0.1, 0.0])


def test_lcpo_max_in_the_form_of_the_paper():
    """Equation 2 of arXiv 2503.04697 with its alpha; no public code follows it."""
    penalty = LcpoMaxPenalty(alpha=0.0003, form="paper")
    shaped = penalty(Group((1,) * 4 + (0,), (500, 1000, 1400, 3000, 0), 1000))
    assert shaped == pytest.approx([0.65, 0.5, 0.38, 0.0, 0.0])


def test_dler_keeps_a_tenth_of_a_completion_cut_off():
    assert DlerPenalty()(Group((1, 1), (20, 20), 64, (False, True))) == [1, 0.1]
