"""A batch of completions scored: rewards by rule, rewards by judges, and their combination."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import get_args

from curt.dialogue import Completion
from curt.law.verdict import Verdict
from train.judge import Grade, Judge, JudgeQuestion, Task
from train.loop.advantages import aggregate_scores
from train.rewards import (
    DEATH_MONTHS,
    ERROR_SCALE_MONTHS,
    LEVELS,
    REWARDS,
    UNREADABLE,
    Combination,
    combine,
    exact_reward,
)
from train.rewards.score import Correctness

TASKS: tuple[Task, ...] = get_args(Task)
SEPARATOR = ":"  # between a judge's name and its task, in the name of a reward


@dataclass(frozen=True, slots=True)
class Score:
    """One completion's rewards. None where a judge failed, and in sums that need its reward."""

    raw: Mapping[str, float | None]
    weighted: Mapping[str, float | None]
    partial: float | None
    exact: float
    correct: float
    """What the run counts as correct; `exact` by default."""
    disagreement: float | None = None
    """Standard deviation between reward models on their common scale; None without one."""


@dataclass(frozen=True)
class Scorer:
    """Scores batches, group by group.

    `weights` name rewards of `train.rewards` or, as `judge:task`, those of a judge: `rule:charge`.
    A weight of 0 makes a reward a logged metric.
    """

    weights: Mapping[str, float]
    judges: Mapping[str, Judge] = field(default_factory=dict)
    combination: Combination = "mean"
    correctness: Correctness = "exact"

    def __post_init__(self) -> None:
        check_weights(self.weights, self.judges.keys())

    def score(
        self, completions: Sequence[Completion], references: Sequence[Verdict], group: int
    ) -> list[Score]:
        """Scores in order; rows `k * group` to `(k + 1) * group` share a prompt.

        Judges see the whole batch at once, so that their requests overlap.
        """
        columns = {name: self._column(name, completions, references) for name in self.weights}
        rows = [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
        partials: list[float | None] = []
        spreads: list[float | None] = []
        for start in range(0, len(rows), group):
            combined = self._combine(rows[start : start + group])
            partials += combined[0]
            spreads += combined[1]
        return [
            Score(
                raw=raw,
                weighted={
                    name: None if raw[name] is None else weight * raw[name]
                    for name, weight in self.weights.items()
                    if weight
                },
                partial=partial,
                exact=exact_reward(completion, reference),
                correct=REWARDS[self.correctness](completion, reference),
                disagreement=spread,
            )
            for completion, reference, raw, partial, spread in zip(
                completions, references, rows, partials, spreads, strict=True
            )
        ]

    def _column(
        self, name: str, completions: Sequence[Completion], references: Sequence[Verdict]
    ) -> list[float | None]:
        pairs = list(zip(completions, references, strict=True))
        judge, separator, task = name.partition(SEPARATOR)
        if not separator:
            return [REWARDS[name](completion, reference) for completion, reference in pairs]
        questions = [JudgeQuestion(task, completion, reference) for completion, reference in pairs]
        return [reward_of_grade(grade, task) for grade in self.judges[judge].grade(questions)]

    def _combine(
        self, group: Sequence[Mapping[str, float | None]]
    ) -> tuple[list[float | None], list[float | None]]:
        if self.combination in ("mean", "sum"):
            return [combine(r, self.weights, self.combination) for r in group], [None] * len(group)
        models = {n: [r[n] for r in group] for n, weight in self.weights.items() if weight}
        return aggregate_scores(models, method=self.combination)


def reward_of_grade(grade: Grade | None, task: Task) -> float | None:
    """2, 1, 0 or -2 for full, partial, undecided or wrong; -months/240 for a term, -2 unreadable.

    None, no reward at all, where the judge failed.
    """
    if grade is None:
        return None
    if grade.error_months is not None:
        # No two penalties are further apart: a judge that says more has miscounted.
        return -min(grade.error_months, DEATH_MONTHS) / ERROR_SCALE_MONTHS
    assert grade.level is not None  # a grade has one or the other
    if task == "term":
        return UNREADABLE if grade.level == "wrong" else LEVELS["undecided"]
    return LEVELS[grade.level]


def check_weights(weights: Mapping[str, float], judges: Collection[str]) -> None:
    """Raise ValueError on an unknown reward, or when no weight is above 0."""
    judged = [f"{judge}{SEPARATOR}{task}" for judge in judges for task in TASKS]
    if unknown := sorted(weights.keys() - {*REWARDS, *judged}):
        raise ValueError(
            f"unknown rewards {unknown}: use some of {sorted(REWARDS)}"
            + (f" or {judged}" if judged else ", or configure a judge and use judge:task")
        )
    if not sum(weights.values()) > 0:
        raise ValueError("all reward weights are 0: give at least one a positive weight")


def mean_known(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are known; None without any."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
