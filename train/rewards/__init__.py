"""Rewards for a verdict: pure functions of a completion and the reference, each in [0, 1]."""

from train.rewards.verdict import REWARDS, Breakdown, score_completion

__all__ = ["REWARDS", "Breakdown", "score_completion"]
