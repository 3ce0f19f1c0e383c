"""Rewards by name, and how they become one number.

    total = partial_share x partial + (1 - partial_share) x shaped

`partial` combines the rewards of a completion, `shaped` is its length-penalised exact correctness.
With the default rewards, each in [0, 1] and combined by their mean, the first summand is 1 for a
right completion and at most 1 for a wrong one (a term that is nearly right earns the full term
reward), and no penalty lifts a wrong `shaped` above a right one, so neither does the total.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from curt.dialogue import Completion
from curt.law.verdict import Verdict
from train.rewards.consistency import consistency_reward
from train.rewards.form import (
    format_error_reward,
    format_reward,
    json_reward,
    markdown_reward,
    repetition_reward,
    structure_reward,
)
from train.rewards.labels import (
    article_levels_reward,
    article_reward,
    charge_levels_reward,
    charge_reward,
    exact_reward,
    graded_reward,
)
from train.rewards.legality import legality_reward
from train.rewards.term import term_linear_reward, term_ratio_reward, term_reward

Reward = Callable[[Completion, Verdict], float]
Correctness = Literal["exact", "graded"]  # rewards that may count as correct
Combination = Literal["mean", "sum", "zscore", "rank"]
"""How the rewards of a completion become `partial`: their weighted mean or sum; or, as scores of
several reward models, brought to a common scale within the group first
(`train.loop.advantages`)."""

REWARDS: Mapping[str, Reward] = {
    "exact": exact_reward,
    "graded": graded_reward,
    "format": format_reward,
    "format_error": format_error_reward,
    "charge": charge_reward,
    "charge_levels": charge_levels_reward,
    "article": article_reward,
    "article_levels": article_levels_reward,
    "term": term_reward,
    "term_ratio": term_ratio_reward,
    "term_linear": term_linear_reward,
    "legality": legality_reward,
    "consistency": consistency_reward,
    "structure": structure_reward,
    "markdown": markdown_reward,
    "json": json_reward,
    "repetition": repetition_reward,
}


def combine(
    raw: Mapping[str, float | None],
    weights: Mapping[str, float],
    how: Literal["mean", "sum"],
) -> float | None:
    """Weighted mean or sum of one completion's rewards.

    None when a reward that counts is missing. At least one weight must be above 0.
    """
    total = sum(weights.values())
    weighted = []
    for name, weight in weights.items():
        if not weight:
            continue
        value = raw[name]
        if value is None:
            return None
        weighted.append(weight * value)
    return sum(weighted) / (total if how == "mean" else 1.0)
