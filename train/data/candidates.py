"""Completions of one prompt, wherever they come from: what the views of a dataset are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from curt.config import Config, FrozenModel


class SourceConfig(Config):
    """Base of the commands that read logged or public completions."""

    trajectories: list[Path] = []
    """Folders of GRPO runs."""
    dataset: str | None = None
    """A dataset in their place: a file of `train.data.views` or `train.data.verify`, a public file,
    or a hub id."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One completion. None stands for what its source does not say."""

    prompt: str
    completion: str
    reward: float | None
    exact: bool | None = None
    thinking_tokens: int | None = None
    source: str = ""
    """Model that wrote it: a name, or the hash of the checkpoint."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Everything else, flat; numbers among them can be filtered on."""

    def to_row(self) -> dict[str, Any]:
        """A flat row of a table."""
        return {name: getattr(self, name) for name in FIELDS} | dict(self.columns)


FIELDS = tuple(f.name for f in fields(Candidate) if f.name != "columns")

CandidateGroup = Sequence[Candidate]


class Range(FrozenModel):
    """Bounds of a column, both included."""

    min: float | None = None
    max: float | None = None

    def holds(self, value: float | bool | None) -> bool:
        """Whether a value lies inside; one that is missing does not."""
        if value is None:
            return False
        above = self.min is None or value >= self.min
        return above and (self.max is None or value <= self.max)


def select(
    groups: Iterable[CandidateGroup], filters: Mapping[str, Range]
) -> Iterator[list[Candidate]]:
    """Groups with the candidates that pass every filter; emptied groups are left out.

    A candidate without the column does not pass: steps and runs differ in what they were scored by.
    Raises ValueError, once all groups are through, on a column that none of them holds numbers in.
    """
    numbers: set[str] = set()
    for group in groups:
        kept = []
        for candidate in group:
            row = candidate.to_row()
            numbers |= {name for name, value in row.items() if not isinstance(value, str | list)}
            if all(n in numbers and bounds.holds(row.get(n)) for n, bounds in filters.items()):
                kept.append(candidate)
        if kept:
            yield kept
    if numbers and (unknown := sorted(filters.keys() - numbers)):
        raise ValueError(f"no column of numbers {unknown}: filter on some of {sorted(numbers)}")
