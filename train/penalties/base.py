"""What every length penalty is: a pure function of one prompt's group and of the run's history.

A penalty turns each completion's correctness `c` and length `L`, in thinking tokens or in what they
cost, into a shaped correctness. A completion is right when c > 0, wrong otherwise; exact
correctness is 1 or 0, the original recipe's rewards may be negative. Published constants are for
thousands of tokens; here they are rescaled to about a hundred, and fields name the paper's value.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, pstdev
from typing import ClassVar, Literal

from curt.config import FrozenModel


@dataclass(frozen=True, slots=True)
class Group:
    """All completions of one prompt. `budget` is the thinking budget stated in the prompt."""

    correct: tuple[float, ...]
    lengths: tuple[float, ...]
    budget: int
    truncated: tuple[bool, ...] = ()
    """Which completions were cut off before their end token; empty: none."""

    def __post_init__(self) -> None:
        if len(self.correct) != len(self.lengths) or not self.correct:
            raise ValueError(
                f"a group of {len(self.correct)} scores and {len(self.lengths)} lengths: "
                "give one of each for every completion"
            )
        if self.truncated and len(self.truncated) != len(self.correct):
            raise ValueError(
                f"a group of {len(self.correct)} scores and {len(self.truncated)} truncation "
                "flags: give one of each for every completion, or no flags"
            )

    @property
    def right(self) -> tuple[bool, ...]:
        """Which completions are right."""
        return tuple(c > 0 for c in self.correct)

    @property
    def pass_rate(self) -> float:
        """Share of right completions."""
        return sum(self.right) / len(self.right)

    @property
    def cut(self) -> tuple[bool, ...]:
        """`truncated`, one flag a completion."""
        return self.truncated or (False,) * len(self.correct)

    def right_lengths(self) -> list[float]:
        """Lengths of the right completions, in order."""
        return [n for ok, n in zip(self.right, self.lengths, strict=True) if ok]


@dataclass(frozen=True, slots=True)
class GroupOutcome:
    """One finished group: which completions were right, and their lengths as penalised."""

    step: int
    correct: tuple[float, ...]
    lengths: tuple[float, ...]

    @property
    def pass_rate(self) -> float:
        """Share of right completions."""
        return fmean(self.correct)


@dataclass(frozen=True, slots=True)
class History:
    """What a run has shown so far: its finished groups, oldest first.

    Built from the rollouts alone, which the trajectory store keeps: after a resume it is read back
    from there, so nothing that adapts needs a state of its own.
    """

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


def group_outcomes(rows: Iterable[tuple[int, int, float, float]]) -> list[GroupOutcome]:
    """Groups from rows of (step, group, exact, length), in the order of the store."""
    outcomes = []
    for (step, _), members in groupby(rows, key=lambda row: row[:2]):
        _, _, correct, lengths = zip(*members, strict=True)
        outcomes.append(GroupOutcome(step, correct, lengths))
    return outcomes


NO_HISTORY = History()

Invariant = Literal[
    "ranks_right_first",  # no wrong completion is worth more than a right one
    "separates_right",  # nor as much
    "reduces_to_grpo",  # with equal lengths: one value for right, one below it for wrong
    "prefers_shorter",  # of two equally correct completions the longer is never worth more
    "spares_wrong",  # a wrong completion is worth its c, whatever its length
    "keeps_sign",  # right is never worth less than 0, wrong never more
]


class LengthPenalty(FrozenModel, ABC):
    """Base of all penalties: frozen constants, unknown ones refused.

    The class attributes say what others must know of a penalty; tests hold them to the formula.
    """

    needs_history: ClassVar[bool] = False
    """Whether earlier steps change the value: then it can't be computed without the run."""
    needs_group: ClassVar[bool] = True
    """Whether the other completions of its group change the value of one."""
    breaks: ClassVar[Mapping[Invariant, str]] = {}
    """Each invariant that the published formula violates, and how; all others hold for every
    admitted constant, for groups with c in {0, 1} or {-1, 1}."""
    type: str

    @abstractmethod
    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness, one value a completion. `history`: the groups before this step."""


def clip(value: float, low: float = 0.0, high: float = 1.0) -> float:
    """The value, moved into [low, high]."""
    return max(low, min(high, value))


def shrink(c: float, factor: float) -> float:
    """c x factor where c is positive.

    A negative c stays: a factor below 1 would turn the penalty into a bonus.
    """
    return c * factor if c > 0 else c


def resolve_limit(limit: int | None, group: Group) -> int:
    """A configured limit in tokens; None stands for the budget stated in the prompt."""
    return group.budget if limit is None else limit


def standings(lengths: Sequence[float]) -> list[float]:
    """Logistic of each length's z-score among `lengths`, in (0, 1); 0.5 without a spread."""
    if not lengths:
        return []
    mean, spread = fmean(lengths), pstdev(lengths)
    if not spread:
        return [0.5] * len(lengths)
    return [1 / (1 + math.exp((mean - n) / spread)) for n in lengths]
