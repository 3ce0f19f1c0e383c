"""Rewards of a completion against the reference verdict: pure functions, no torch."""

from train.rewards.labels import LEVELS, compare_labels, exact_reward
from train.rewards.score import REWARDS, Combination, combine
from train.rewards.term import DEATH_MONTHS, ERROR_SCALE_MONTHS, UNREADABLE, months_apart

__all__ = [
    "DEATH_MONTHS",
    "ERROR_SCALE_MONTHS",
    "LEVELS",
    "REWARDS",
    "UNREADABLE",
    "Combination",
    "combine",
    "compare_labels",
    "exact_reward",
    "months_apart",
]
