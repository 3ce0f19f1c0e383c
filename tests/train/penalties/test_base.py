from __future__ import annotations

import pytest

from train.penalties.base import GroupOutcome, History, group_outcomes


def test_rollouts_become_groups_in_order():
    rows = [
        (1, 0, 1.0, 5),
        (1, 0, 0.0, 7),
        (1, 1, 1.0, 3),
        (2, 1, 0, 9),
    ]
    assert group_outcomes(rows) == [
        GroupOutcome(1, (1.0, 0.0), (5, 7)),
        GroupOutcome(1, (1.0,), (3,)),
        GroupOutcome(2, (0.0,), (9,)),
    ]


def test_accuracy_is_a_mean_over_the_groups_of_each_step():
    history = History((GroupOutcome(1, (1.0, 0.0), (5, 7)), GroupOutcome(1, (1.0, 1.0), (3, 3))))
    history = history.extend([GroupOutcome(2, (0.0,), (9,))])
    assert history.accuracies() == pytest.approx([0.75, 0.0])
