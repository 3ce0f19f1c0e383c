"""From rewards, group by group, to advantages: plain functions of numbers.

A reward of None (a judge that failed) is left out of every mean and deviation and gets advantage
0. Deviations are those of a sample (n - 1), as in TRL. docs/training.md compares the estimators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from statistics import fmean, pstdev, stdev
from typing import Literal

Rewards = Sequence[float | None]
Estimator = Literal["group", "batch", "none", "whitened", "rloo"]

EPSILON = 1e-4  # TRL's guard against division by 0
NOISE = 1e-9  # a range this small is rounding: equal rewards must give advantages of exactly 0


def estimate(
    estimator: Estimator, groups: Sequence[Rewards], *, spread_floor: float = 0.0
) -> list[list[float]]:
    """Advantages of every group's completions.

    Args:
        estimator: a key of `ESTIMATORS`.
        groups: rewards, one sequence a prompt; sizes may differ.
        spread_floor: a group whose rewards range over less gets zero advantages; "group" also
            never divides by less.

    Raises ValueError on an unknown estimator or a negative floor.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown estimator {estimator!r}: use one of {sorted(ESTIMATORS)}")
    if spread_floor < 0:
        raise ValueError(f"spread_floor {spread_floor}: use 0 or more")
    return ESTIMATORS[estimator](groups, spread_floor)


def by_group(groups: Sequence[Rewards], spread_floor: float) -> list[list[float]]:
    """(r - mean) / (std + 1e-4) within each group: GRPO (arXiv 2402.03300), TRL's "group"."""
    return [_standardise(rewards, spread_floor) for rewards in groups]


def by_batch(groups: Sequence[Rewards], spread_floor: float) -> list[list[float]]:
    """(r - group mean) / (std of all raw rewards + 1e-4): TRL's "batch".

    The std holds the differences between prompts too, so it is no whitening.
    """
    scale = _deviation(list(chain.from_iterable(groups))) + EPSILON
    return [[a / scale for a in _centre(rewards, spread_floor)] for rewards in groups]


def unscaled(groups: Sequence[Rewards], spread_floor: float) -> list[list[float]]:
    """r - group mean: Dr. GRPO (arXiv 2503.20783), TRL's "none"."""
    return [_centre(rewards, spread_floor) for rewards in groups]


def whitened(groups: Sequence[Rewards], spread_floor: float) -> list[list[float]]:
    """Group-mean baseline, then whitening over the batch: DLER (arXiv 2510.15110, section 3).

    Groups without a spread stay out of the batch's deviation: DLER drops them first. Its code
    (NVlabs/DLER, verl-dler/recipe/dapo/dapo_ray_trainer.py, verl/trainer/ppo/core_algos.py)
    counts a completion once a token; here it counts once.
    """
    centred = [_centre(rewards, spread_floor) for rewards in groups]
    counted = [r if any(a) else [None] * len(r) for r, a in zip(groups, centred, strict=True)]
    return _whiten(centred, counted)


def leave_one_out(groups: Sequence[Rewards], spread_floor: float) -> list[list[float]]:
    """r - mean of the group's other rewards: RLOO (arXiv 2402.14740)."""
    advantages = []
    for rewards in groups:
        count = len(_scored(rewards))
        factor = count / (count - 1) if count > 1 else 0.0
        advantages.append([a * factor for a in _centre(rewards, spread_floor)])
    return advantages


ESTIMATORS: dict[str, Callable[[Sequence[Rewards], float], list[list[float]]]] = {
    "group": by_group,
    "batch": by_batch,
    "none": unscaled,
    "whitened": whitened,
    "rloo": leave_one_out,
}


def gdpo(
    components: Sequence[Mapping[str, Rewards]],
    weights: Mapping[str, float],
    *,
    spread_floor: float = 0.0,
) -> list[list[float]]:
    """GDPO (arXiv 2601.05242): normalise each reward, then sum, so that no easy one dominates.

    Every component is standardised within its group, the weighted sums are whitened over the
    batch. Equals TRL's "normalize_then_sum".

    Args:
        components: for each group, rewards by name, one value a completion. A completion without
            any reward is left out.
        weights: weight by name; components without one do not count.
        spread_floor: as in `estimate`, for each component.

    Raises ValueError where a group lacks a weighted component or has them in different lengths.
    """
    groups: list[list[float | None]] = []
    for number, group in enumerate(components):
        missing = weights.keys() - group.keys()
        if missing or not weights:
            raise ValueError(
                f"group {number} has no rewards {sorted(missing)}: weigh one or more of "
                f"{sorted(group)}"
            )
        if len({len(group[name]) for name in weights}) != 1:
            raise ValueError(
                f"group {number} has unequal numbers of rewards: give one a completion"
            )
        parts = {name: _standardise(group[name], spread_floor) for name in weights}
        size = len(next(iter(parts.values())))
        groups.append(
            [
                sum(weights[name] * parts[name][i] for name in weights)
                if any(group[name][i] is not None for name in weights)
                else None
                for i in range(size)
            ]
        )
    return _whiten([[value or 0.0 for value in sums] for sums in groups], groups)


def boost_right(
    advantages: Sequence[Sequence[float]], correct: Sequence[Sequence[float]], boost: float
) -> list[list[float]]:
    """Advantages with `boost` added to those of right completions, in groups that have a spread.

    DLER's code adds 0.1 after whitening, cut off or not: truncation makes rewarded completions
    scarce (NVlabs/DLER, verl-dler/verl/workers/actor/dp_actor.py).
    """
    return [
        [a + boost if c > 0 and any(values) else a for a, c in zip(values, right, strict=True)]
        for values, right in zip(advantages, correct, strict=True)
    ]


def aggregate_scores(
    scores_by_model: Mapping[str, Rewards], *, method: Literal["zscore", "rank"] = "zscore"
) -> tuple[list[float | None], list[float | None]]:
    """One score out of many reward models' for the completions of one group.

    Models score on scales of their own, so each is first brought to a common one within the
    group: z-scores, or ranks spread over [-1, 1] (ties share their mean rank; robust against a
    model's outliers).

    Args:
        scores_by_model: one score a completion, None where a model has none.
        method: the common scale.

    Returns the mean over models and their disagreement (standard deviation over models, 0 with
    one), None for a completion that no model scored.

    Raises ValueError without models, with unequal numbers of scores or an unknown method.
    """
    scale = {"zscore": _z_scores, "rank": _ranks}.get(method)
    if scale is None:
        raise ValueError(f"unknown method {method!r}: use 'zscore' or 'rank'")
    if len({len(scores) for scores in scores_by_model.values()}) != 1:
        raise ValueError(
            f"models {sorted(scores_by_model)} give unequal numbers of scores, or there is none: "
            "give one score a completion, None where it is missing"
        )
    scaled = [scale(scores) for scores in scores_by_model.values()]
    means: list[float | None] = []
    disagreements: list[float | None] = []
    for column in zip(*scaled, strict=True):
        known = _scored(column)
        means.append(fmean(known) if known else None)
        disagreements.append(pstdev(known) if known else None)
    return means, disagreements


def _scored(rewards: Rewards) -> list[float]:
    return [r for r in rewards if r is not None]


def _deviation(rewards: Rewards) -> float:
    scored = _scored(rewards)
    return stdev(scored) if len(scored) > 1 else 0.0


def _centre(rewards: Rewards, spread_floor: float) -> list[float]:
    scored = _scored(rewards)
    if not scored or max(scored) - min(scored) < max(spread_floor, NOISE):
        return [0.0] * len(rewards)
    mean = fmean(scored)
    return [0.0 if r is None else r - mean for r in rewards]


def _standardise(rewards: Rewards, spread_floor: float) -> list[float]:
    scale = max(_deviation(rewards), spread_floor) + EPSILON
    return [a / scale for a in _centre(rewards, spread_floor)]


def _whiten(centred: Sequence[Sequence[float]], groups: Sequence[Rewards]) -> list[list[float]]:
    """(a - batch mean) / (batch std + 1e-4); a group without a spread stays at exactly 0."""
    known = [
        a
        for values, rewards in zip(centred, groups, strict=True)
        for a, r in zip(values, rewards, strict=True)
        if r is not None
    ]
    mean = fmean(known) if known else 0.0
    scale = _deviation(known) + EPSILON
    return [
        [
            (a - mean) / scale if r is not None and any(values) else 0.0
            for a, r in zip(values, rewards, strict=True)
        ]
        for values, rewards in zip(centred, groups, strict=True)
    ]


def _z_scores(scores: Rewards) -> list[float | None]:
    scaled = _standardise(scores, 0.0)
    return [None if s is None else z for s, z in zip(scores, scaled, strict=True)]


def _ranks(scores: Rewards) -> list[float | None]:
    known = _scored(scores)
    half = max(len(known) - 1, 1)
    return [
        None if s is None else (sum(k < s for k in known) - sum(k > s for k in known)) / half
        for s in scores
    ]
