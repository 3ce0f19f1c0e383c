"""Format, charge, article and term rewards, and how they become one number.

Every reward lies in [0, 1]; an unreadable answer earns 0 in all of them. The total is

    total = partial_share x (weighted mean of the rewards) + (1 - partial_share) x shaped

where `shaped` is the length-penalised exact correctness. The first summand is 1 for every
right completion and at most 1 for a wrong one (a term that is nearly right earns the full term
reward), and no penalty lifts a wrong `shaped` above a right one, so neither does the total.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from curt.metrics import cail_term_score, is_exact, set_f1
from curt.schema import Completion, ParseFailure, Verdict


def format_reward(completion: Completion, reference: Verdict) -> float:
    """1 when the thinking is closed and the answer follows the grammar."""
    return float(not isinstance(completion.verdict, ParseFailure))


def charge_reward(completion: Completion, reference: Verdict) -> float:
    """F1 between the sets of charges."""
    if isinstance(completion.verdict, ParseFailure):
        return 0.0
    return set_f1(set(completion.verdict.charges), set(reference.charges))


def article_reward(completion: Completion, reference: Verdict) -> float:
    """F1 between the sets of articles."""
    if isinstance(completion.verdict, ParseFailure):
        return 0.0
    return set_f1(set(completion.verdict.articles), set(reference.articles))


def term_reward(completion: Completion, reference: Verdict) -> float:
    """CAIL2018's log-distance score of the term (1, .8, .6, .4, .2 or 0)."""
    if isinstance(completion.verdict, ParseFailure):
        return 0.0
    return cail_term_score(completion.verdict.term, reference.term)


def exact_reward(completion: Completion, reference: Verdict) -> float:
    """1 when charges, articles and term are all those of the reference."""
    return float(is_exact(completion.verdict, reference))


Reward = Callable[[Completion, Verdict], float]
REWARDS: Mapping[str, Reward] = {
    "format": format_reward,
    "charge": charge_reward,
    "article": article_reward,
    "term": term_reward,
}


@dataclass(frozen=True, slots=True)
class Breakdown:
    """One completion's rewards by name, their weighted mean, and exact correctness."""

    raw: Mapping[str, float]
    partial: float
    exact: float


def score_completion(
    completion: Completion, reference: Verdict, weights: Mapping[str, float]
) -> Breakdown:
    """Score a completion. A reward of weight 0 is computed and logged but does not count.

    Raises ValueError when `weights` names an unknown reward or all weights are 0.
    """
    unknown = weights.keys() - REWARDS.keys()
    if unknown:
        raise ValueError(f"unknown rewards {sorted(unknown)}: use {sorted(REWARDS)}")
    total = sum(weights.values())
    if total <= 0:
        raise ValueError("all reward weights are 0: give at least one a positive weight")
    raw = {name: reward(completion, reference) for name, reward in REWARDS.items()}
    partial = sum(weights.get(name, 0.0) * value for name, value in raw.items()) / total
    return Breakdown(raw, partial, exact_reward(completion, reference))
