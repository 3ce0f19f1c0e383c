"""Completions of one prompt, wherever they come from: what the views of a dataset are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from curt.files import read_json_lines
from train.data.trajectories import Rollout


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
        return {
            "prompt": self.prompt,
            "completion": self.completion,
            "reward": self.reward,
            "exact": self.exact,
            "thinking_tokens": self.thinking_tokens,
            "source": self.source,
            **self.columns,
        }


FIELDS = ("prompt", "completion", "reward", "exact", "thinking_tokens", "source")
ROWS_AT_ONCE = 1000
CandidateGroup = Sequence[Candidate]
_OWN = ("prompt", "completion", "reward", "exact", "thinking_tokens", "checkpoint_sha256")
_REWARDS = {"reward_raw": "raw", "reward_weighted": "weighted"}


def from_rollouts(groups: Iterable[Sequence[Rollout]]) -> Iterator[list[Candidate]]:
    """Groups of a GRPO run; rewards become columns `raw_charge`, `weighted_charge`."""
    for group in groups:
        yield [_from_rollout(rollout) for rollout in group]


def _from_rollout(rollout: Rollout) -> Candidate:
    row = asdict(rollout)
    columns = {name: row[name] for name in row if name not in (*_OWN, *_REWARDS)}
    for name, prefix in _REWARDS.items():
        columns |= {f"{prefix}_{reward}": value for reward, value in row[name].items()}
    return Candidate(
        prompt=rollout.prompt,
        completion=rollout.completion,
        reward=rollout.reward,
        exact=bool(rollout.exact),
        thinking_tokens=rollout.thinking_tokens,
        source=f"{rollout.checkpoint_sha256[:12]}+{rollout.step - 1}",
        columns=columns,
    )


def from_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Candidate]]:
    """Groups of candidates from rows of `Candidate.to_row`; inverse of it.

    Neighbours of one prompt are a group, or those of one step and group where rows name them.
    """

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return row["prompt"], row.get("step"), row.get("group")

    for _, members in groupby(rows, key=key):
        yield [
            Candidate(
                **{name: row[name] for name in FIELDS},
                columns={name: value for name, value in row.items() if name not in FIELDS},
            )
            for row in members
        ]


def read_own(path: Path) -> Iterator[list[Candidate]] | None:
    """Groups of a file of such rows (.jsonl or .parquet); None when it is no such file."""
    if not path.is_file() or path.suffix not in (".jsonl", ".parquet"):
        return None
    rows = _read_table(path) if path.suffix == ".parquet" else read_json_lines(path)
    first = next(rows, None)
    if first is None or not set(FIELDS) <= first.keys():
        return None
    return from_rows(chain([first], rows))


def _read_table(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for batch in pq.ParquetFile(path).iter_batches(ROWS_AT_ONCE):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} can't be read ({error}): give a whole file") from error


class Range(BaseModel):
    """Bounds of a column, both included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
