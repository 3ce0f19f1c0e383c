"""Rewards of a completion against the reference verdict: pure functions, no torch."""

from train.rewards.labels import FULL, PARTIAL, UNDECIDED, WRONG, exact_reward
from train.rewards.score import REWARDS, Combination, combine
from train.rewards.term import DEATH_MONTHS, ERROR_SCALE_MONTHS, UNREADABLE, months_apart

__all__ = [
    "DEATH_MONTHS",
    "ERROR_SCALE_MONTHS",
    "FULL",
    "PARTIAL",
    "REWARDS",
    "UNDECIDED",
    "UNREADABLE",
    "WRONG",
    "Combination",
    "combine",
    "exact_reward",
    "months_apart",
]
