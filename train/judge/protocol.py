"""What a judge is asked and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from curt.dialogue import Completion
from curt.law.verdict import Verdict

Task = Literal["charge", "article", "ruling", "term"]
Level = Literal["full", "partial", "wrong", "undecided"]


@dataclass(frozen=True, slots=True)
class JudgeQuestion:
    """Grade one aspect of a completion against the reference verdict."""

    task: Task
    completion: Completion
    reference: Verdict


@dataclass(frozen=True, slots=True)
class Grade:
    """A level, or for a term that can be read its error in months."""

    level: Level | None = None
    error_months: int | None = None

    def __post_init__(self) -> None:
        if (self.level is None) == (self.error_months is None):
            raise ValueError(f"{self}: give a level or an error in months, and not both")
        if self.error_months is not None and self.error_months < 0:
            raise ValueError(f"an error of {self.error_months} months: use 0 or more")


class JudgeUnavailableError(RuntimeError):
    """A judge fails too often for its grades to be worth training on."""


class Judge(Protocol):
    """Grades questions in order; None where it failed, which is no reward and no grade of 0."""

    @property
    def counts(self) -> Mapping[str, int]:
        """How many questions were asked, answered from the cache, or failed, by reason."""
        ...

    def grade(self, questions: Sequence[JudgeQuestion]) -> list[Grade | None]:
        """One grade a question. Raises JudgeUnavailableError when too many fail."""
        ...
