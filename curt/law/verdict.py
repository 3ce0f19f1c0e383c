"""The nouns every stage speaks: a criminal case, its verdict, and what a model made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

TermKind = Literal["fixed", "detention", "surveillance", "life", "death", "exempt"]

TERM_NAMES: Mapping[TermKind, str] = {
    "fixed": "有期徒刑",
    "detention": "拘役",
    "surveillance": "管制",
    "life": "无期徒刑",
    "death": "死刑",
    "exempt": "免予刑事处罚",
}
COUNTED_KINDS: frozenset[TermKind] = frozenset({"fixed", "detention", "surveillance"})

# Hard limits of the Criminal Law, combined punishment included (articles 38, 42, 45, 69).
MAX_MONTHS: Mapping[TermKind, int] = {"fixed": 300, "detention": 12, "surveillance": 36}


@dataclass(frozen=True, slots=True)
class Term:
    """A principal penalty.

    `months` counts the months of 有期徒刑, 拘役 or 管制 and is 0 for the other kinds;
    `probation_months` is the 缓刑 period, 0 when the sentence is served.
    """

    kind: TermKind
    months: int = 0
    probation_months: int = 0

    def __post_init__(self) -> None:
        if self.kind in COUNTED_KINDS:
            limit = MAX_MONTHS[self.kind]
            if not 1 <= self.months <= limit:
                raise ValueError(
                    f"{TERM_NAMES[self.kind]} of {self.months} months: use 1 to {limit} months"
                )
        elif self.months:
            raise ValueError(f"{TERM_NAMES[self.kind]} takes no months, got {self.months}")
        if not 0 <= self.probation_months <= 60:
            raise ValueError(f"probation of {self.probation_months} months: use 0 to 60")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a court decides for one defendant.

    `charges` hold CAIL2018 names without 罪; `articles` hold ids such as "264" or "133之一";
    both are sets kept in canonical order. `fine_yuan` is 0 when no fine is imposed.
    """

    charges: tuple[str, ...]
    articles: tuple[str, ...]
    term: Term
    fine_yuan: int = 0

    def __post_init__(self) -> None:
        if not self.charges:
            raise ValueError("a verdict needs at least one charge")
        if self.fine_yuan < 0:
            raise ValueError(f"fine of {self.fine_yuan} yuan: use 0 or more")


@dataclass(frozen=True, slots=True)
class ParseFailure:
    """A completion that holds no readable verdict: data for the reward, not an exception."""

    reason: str


AUGMENTATIONS = frozenset({"distractors", "paraphrase"})
"""Traits that say what was done to a case's text; every other trait is a circumstance of it."""


@dataclass(frozen=True, slots=True)
class Case:
    """Facts and the verdict they led to.

    `reasonings` maps a verbosity ("full", "medium", "terse", ...) to a chain of thought that
    leads from the facts to the verdict; it is empty where none is known. `traits` are the
    circumstances the generator drew, for slicing results; `source` names the origin.
    """

    id: str
    fact: str
    verdict: Verdict
    source: str
    reasonings: Mapping[str, str] = field(default_factory=dict)
    traits: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable row; see `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Case:
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError on a malformed row."""
        verdict = row["verdict"]
        return cls(
            id=row["id"],
            fact=row["fact"],
            verdict=Verdict(
                charges=tuple(verdict["charges"]),
                articles=tuple(verdict["articles"]),
                term=Term(**verdict["term"]),
                fine_yuan=verdict["fine_yuan"],
            ),
            source=row["source"],
            reasonings=dict(row["reasonings"]),
            traits=tuple(row["traits"]),
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """One model output, split at the end of thinking. Lengths are tokens, never characters."""

    thinking: str
    answer: str
    verdict: Verdict | ParseFailure
    thinking_closed: bool
