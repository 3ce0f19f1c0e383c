"""What a run has shown so far, for everything that adapts to it.

Built from the rollouts alone, which the trajectory store keeps: after a resume it is read back
from there, so nothing that adapts needs a state of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean


@dataclass(frozen=True, slots=True)
class GroupOutcome:
    """One finished group: which completions were right, and their lengths in thinking tokens."""

    step: int
    correct: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def pass_rate(self) -> float:
        """Share of right completions."""
        return fmean(self.correct)


@dataclass(frozen=True, slots=True)
class History:
    """Finished groups, oldest first."""

    groups: tuple[GroupOutcome, ...] = ()

    def accuracies(self) -> list[float]:
        """Mean exact correctness of every step, oldest first."""
        return [
            fmean(g.pass_rate for g in groups)
            for _, groups in groupby(self.groups, key=lambda g: g.step)
        ]

    def extend(self, outcomes: Iterable[GroupOutcome]) -> History:
        """A history with newer groups added."""
        return History((*self.groups, *outcomes))


def group_outcomes(rows: Iterable[tuple[int, int, float, int]]) -> list[GroupOutcome]:
    """Groups from rows of (step, group, exact, thinking tokens), in the order of the store."""
    outcomes = []
    for (step, _), members in groupby(rows, key=lambda row: row[:2]):
        _, _, correct, lengths = zip(*members, strict=True)
        outcomes.append(GroupOutcome(step, correct, lengths))
    return outcomes
