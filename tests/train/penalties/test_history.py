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


def test_laser_d_finds_the_shortest_target_with_a_right_completion_a_group():
    easy = [
        GroupOutcome(1, (1, 1, 1), (20, 50, 90)),
        GroupOutcome(2, (1, 1, 0), (30, 60, 5)),
    ]
    hard = [GroupOutcome(2, (1, 0, 0, 0), (80, 9, 9, 9))]
    penalty = LaserDPenalty(refresh_steps=2, start=128)
    history = History((*easy, *hard))
    # two easy groups: two right completions are needed, the second shortest has 30
    assert penalty.target("easy", history) == 30
    assert penalty.target("hard", history) == 80
    assert penalty.target("medium", history) == 128
    assert penalty(Group((1, 1, 1), (30, 31, 5), 64), history) == [1.5, 1, 1.5]


def test_laser_d_keeps_the_start_where_too_little_is_right():
    none_right = GroupOutcome(1, (0, 0, 0, 0), (9, 9, 9, 9))
    one_right = GroupOutcome(1, (1, 0, 0, 0), (80, 9, 9, 9))
    history = History((none_right, one_right))
    assert LaserDPenalty(refresh_steps=1, start=100).target("hard", history) == 100


def test_laser_d_renews_its_targets_once_a_block():
    penalty = LaserDPenalty(refresh_steps=20, start=128)
    steps = [GroupOutcome(step, (1, 1, 1), (step,) * 3) for step in range(1, 46)]
    targets = [penalty.target("easy", History(tuple(steps[:n]))) for n in (0, 19, 20, 39, 40, 45)]
    assert targets[:2] == [128, 128]
    assert targets[2] == targets[3] == 7  # 20 groups: the 20th of 3 x 1, 3 x 2, ...
    assert targets[4] == targets[5] == 27
