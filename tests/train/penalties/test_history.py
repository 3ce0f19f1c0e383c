"""Formulas of the penalties that change with the run's history, worked by hand."""

from __future__ import annotations

from train.penalties import Group
from train.penalties.base import GroupOutcome, History
from train.penalties.history.laser_d import LaserDPenalty
from train.penalties.history.short_rl import ShortRlPenalty


def past(*accuracies: float) -> History:
    return History(
        tuple(
            GroupOutcome(step, (1.0,) * round(10 * a) + (0.0,) * round(10 - 10 * a), (9,) * 10)
            for step, a in enumerate(accuracies, start=1)
        )
    )


def test_short_rl_measures_right_completions_against_right_ones():
    """Bonuses as lblankl/Short-RL, deepscaler/deepscaler/rewards/ShortRL.py, gives them.

    Its tolerance is 200 tokens; the two wrong ones are the shortest and the longest.
    """
    group = Group((0, 1, 1, 1, 0), (100, 300, 500, 700, 1500), 4096)
    assert ShortRlPenalty(tolerance=200)(group) == [0, 1.5, 1.5, 0.5, 0]
    assert ShortRlPenalty()(Group((1, 1, 0), (40, 44, 0), 128)) == [1.5, 1.5, 0]
    assert ShortRlPenalty()(Group((0, 0), (0, 44), 128)) == [0, 0]


def test_short_rl_rests_while_accuracy_is_down():
    penalty, group = ShortRlPenalty(window=1, tolerance=0), Group((1, 1), (10, 90), 128)
    assert penalty(group, past(0.5, 0.8, 0.8)) == [1.5, 0.5]
    assert penalty(group, past(0.5, 0.8, 0.7)) == [1, 1]
    assert penalty(group, past(0.5, 0.8, 0.7, 0.9)) == [1.5, 0.5]


def test_short_rl_does_not_take_one_lucky_batch_for_the_best():
    lucky = past(0.5, 0.5, 1.0, 0.5, 0.5, 0.5)
    assert not ShortRlPenalty(window=1).applies(lucky)
    assert ShortRlPenalty(window=3, drop=0.2).applies(lucky)
    assert ShortRlPenalty(window=10).applies(lucky)  # no whole window yet


def test_laser_d_covers_what_a_buckets_lower_bound_asks_for():
    """As `_choose_target_length` in hkust-nlp/Laser, verl/utils/reward_score/length_penalty.py.

    Its 8 rollouts and steps of one token: half of the medium completions, a fifth of the easy.
    """
    medium = [
        GroupOutcome(1, (1, 0, 0, 1, 1, 0, 1, 0), (31, 37, 49, 57, 63, 71, 80, 90)),
        GroupOutcome(2, (0, 1, 1, 0, 1, 0, 0, 1), (29, 37, 44, 52, 66, 75, 83, 95)),
    ]
    easy = GroupOutcome(2, (1, 1, 1, 0, 1, 1, 1, 1), (18, 21, 25, 30, 33, 38, 41, 60))
    penalty = LaserDPenalty(refresh_steps=2, start=128)
    history = History((*medium, easy))
    assert penalty.target("medium", history) == 57  # 37 where the right ones alone are counted
    assert penalty.target("easy", history) == 21
    assert penalty.target("hard", history) == 128
    assert penalty(Group((1, 0, 1, 0), (57, 9, 58, 9), 64), history) == [1.5, 0, 1, 0]


def test_laser_d_lets_hard_prompts_have_the_longest_length_seen():
    hard = [GroupOutcome(1, (1, 0, 0, 0), (40, 9, 80, 9)), GroupOutcome(1, (0, 0, 0, 0), (9,) * 4)]
    assert LaserDPenalty(refresh_steps=1).target("hard", History(tuple(hard))) == 80


def test_laser_d_renews_its_targets_once_a_block():
    penalty = LaserDPenalty(refresh_steps=20, start=128)
    steps = [GroupOutcome(step, (1, 1, 1), (step,) * 3) for step in range(1, 46)]
    targets = [penalty.target("easy", History(tuple(steps[:n]))) for n in (0, 19, 20, 39, 40, 45)]
    assert targets[:2] == [128, 128]
    assert targets[2] == targets[3] == 10  # half of 3 x 1, 3 x 2, ... 3 x 20
    assert targets[4] == targets[5] == 30
