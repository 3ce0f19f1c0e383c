"""A criminal case: its facts, the verdict they led to, and what is known of its making."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from curt.law.verdict import Verdict

OWN = "own"
"""The verbosity of a reasoning that a model wrote itself (`train.star`)."""
AUGMENTATIONS = frozenset({"distractors", "paraphrase"})
"""Traits that say what was done to a case's text; every other trait is a circumstance of it."""


@dataclass(frozen=True, slots=True)
class Case:
    """Facts and the verdict they led to.

    `reasonings` maps a verbosity ("full", "medium", "terse", ...) to a chain of thought that
    leads from the facts to the verdict; it is empty where none is known. `traits` are the
    circumstances the generator drew, for slicing results; `source` names the origin. `harm` is what
    the term starts from, a grade (轻伤二级) or quantities (7600+4100=11700元), where it is known.
    """

    id: str
    fact: str
    verdict: Verdict
    source: str
    reasonings: Mapping[str, str] = field(default_factory=dict)
    traits: tuple[str, ...] = ()
    harm: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable row; see `from_json`."""
        return {
            "id": self.id,
            "fact": self.fact,
            "verdict": self.verdict.to_json(),
            "source": self.source,
            "reasonings": dict(self.reasonings),
            "traits": list(self.traits),
            "harm": self.harm,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Case:
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError on a malformed row."""
        return cls(
            id=row["id"],
            fact=row["fact"],
            verdict=Verdict.from_json(row["verdict"]),
            source=row["source"],
            reasonings=dict(row["reasonings"]),
            traits=tuple(row["traits"]),
            harm=row.get("harm", ""),
        )
