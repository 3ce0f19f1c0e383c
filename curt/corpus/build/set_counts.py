"""Counts of one set for its data card: no text, only numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from curt.law.verdict import Term

LENGTH_STEPS = (50, 100, 150, 200, 300, 400, 600, 800, 1200, 2000, 4000, 8000)
"""Upper ends of the length bins, in characters; one more bin is open."""


class SetCounts:
    """Counts cases as they pass."""

    def __init__(self) -> None:
        self.cases = 0
        self._charges: Counter[str] = Counter()
        self._terms: Counter[str] = Counter()
        self._lengths: Counter[int] = Counter()
        self._domains: Counter[str] = Counter()
        self._characters = 0

    def add(
        self, charges: Iterable[str], term: Term, characters: int, domains: Iterable[str]
    ) -> None:
        """Count one case."""
        self.cases += 1
        self._charges.update(charges)
        self._terms[f"{term.kind} {term.months}" if term.months else term.kind] += 1
        self._domains.update(domains)
        self._lengths[sum(characters > step for step in LENGTH_STEPS)] += 1
        self._characters += characters

    def to_json(self) -> dict[str, Any]:
        """Counts, the most frequent first; `lengths` follow LENGTH_STEPS."""
        return {
            "cases": self.cases,
            "characters": self._characters,
            "charges": dict(self._charges.most_common()),
            "terms": dict(self._terms.most_common()),
            "domains": dict(self._domains.most_common()),
            "lengths": [self._lengths[step] for step in range(len(LENGTH_STEPS) + 1)],
        }
