"""Read candidates of runs, files and public datasets; write rows to files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from curt.config import Config
from curt.files import read_rows
from train.data.candidates import Candidate
from train.data.public_datasets import read_public
from train.data.trajectories import Rollout, iterate_groups

FIELDS = ("prompt", "completion", "reward", "exact", "thinking_tokens", "source")
ROWS_AT_ONCE = 1000
_OWN = ("prompt", "completion", "reward", "exact", "thinking_tokens", "checkpoint_sha256")
_REWARDS = {"reward_raw": "raw", "reward_weighted": "weighted"}


class TableConfig(Config):
    """Base of the commands that make a file of rows from logged or public completions."""

    trajectories: list[Path] = []
    """Folders of GRPO runs."""
    dataset: str | None = None
    """A dataset in their place: a file of `train.data.views` or `train.data.verify`, a public file,
    or a hub id; see `train.data.public_datasets`."""
    out: Path
    """File to write: .parquet or .jsonl."""

    @model_validator(mode="after")
    def _one_source_and_a_known_format(self) -> Self:
        if bool(self.trajectories) == (self.dataset is not None):
            raise ValueError("give --trajectories or --dataset, and not both")
        if self.out.suffix not in (".parquet", ".jsonl"):
            raise ValueError(f"out {self.out}: end its name in .parquet or .jsonl")
        return self


def read_source(config: TableConfig) -> Iterator[list[Candidate]]:
    """Groups of the configured dataset or runs.

    A file of rows that `curt.files.write_rows` wrote keeps all of its columns.
    """
    if config.dataset is not None:
        own = read_own(Path(config.dataset))
        yield from read_public(config.dataset) if own is None else own
        return
    for folder in config.trajectories:
        yield from from_rollouts(iterate_groups(folder))


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
    rows = read_rows(path)
    first = next(rows, None)
    if first is None or not set(FIELDS) <= first.keys():
        return None
    return from_rows(chain([first], rows))
