"""Penalties and verdicts, and the one JSON form of a verdict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

TermKind = Literal["fixed", "detention", "surveillance", "life", "reprieve", "death", "exempt"]

TERM_NAMES: Mapping[TermKind, str] = {
    "fixed": "有期徒刑",
    "detention": "拘役",
    "surveillance": "管制",
    "life": "无期徒刑",
    "reprieve": "死刑缓期二年执行",  # death with two years' reprieve (article 48): 死缓
    "death": "死刑",
    "exempt": "免予刑事处罚",
}
COUNTED_KINDS: frozenset[TermKind] = frozenset({"fixed", "detention", "surveillance"})
CAPITAL_KINDS: frozenset[TermKind] = frozenset({"life", "reprieve", "death"})
"""Penalties above every number of months."""
REPRIEVE = re.compile(r"死刑[，,]?缓期(?:[二两2]年)?(?:执行)?|死缓")
"""How texts write death with reprieve; plain 死刑 is another penalty."""

# Hard limits of the Criminal Law, combined punishment included (articles 38, 42, 45, 69).
MAX_MONTHS: Mapping[TermKind, int] = {"fixed": 300, "detention": 12, "surveillance": 36}
MAX_PROBATION_MONTHS = 60  # article 73
MAX_SUSPENDED_MONTHS = 36  # no longer term can be put on probation (article 72)


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
        if not 0 <= self.probation_months <= MAX_PROBATION_MONTHS:
            raise ValueError(
                f"probation of {self.probation_months} months: use 0 to {MAX_PROBATION_MONTHS}"
            )


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

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable row; see `from_json`."""
        return {
            "charges": list(self.charges),
            "articles": list(self.articles),
            "term": asdict(self.term),
            "fine_yuan": self.fine_yuan,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Verdict:
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError on a malformed row."""
        return cls(
            charges=tuple(row["charges"]),
            articles=tuple(row["articles"]),
            term=Term(**row["term"]),
            fine_yuan=row["fine_yuan"],
        )
