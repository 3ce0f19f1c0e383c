"""Store every rollout of a run as data to train on later.

One Parquet file a step, written whole by the main process. On a resume from step `s`, files of
later steps are dropped and made again, so no finished step is lost and none is doubled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from curt.files import write_parquet


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of one prompt's group, with its reward breakdown. Lengths are tokens.

    Rewards are None where a judge failed.
    """

    step: int
    group: int
    """Position of the prompt in the step's batch, counted over all processes."""
    case_id: str
    prompt: str
    prompt_sha256: str
    budget: int
    """Thinking budget stated in the prompt."""
    completion: str
    token_ids: list[int]
    thinking_tokens: int
    answer_tokens: int
    truncated: bool
    reward_raw: dict[str, float | None]
    partial: float | None
    exact: float
    shaped: float
    """What counts as correct, after the length penalty."""
    reward: float | None
    """What the policy is trained on."""
    advantage: float
    penalty: str
    config_sha256: str
    kept: bool = True
    """False when the group was sampled but not trained on."""
    reward_weighted: dict[str, float | None] = field(default_factory=dict)
    """Raw reward times its weight, of those that count."""
    checkpoint_sha256: str = ""
    """Manifest of the model the run started from; `step` says how many updates came since."""
    penalty_weight: float = 1.0
    """Share of the penalty that the accuracy guard let through."""
    correct: float = 0.0
    """What the penalty started from; runs of earlier versions have `exact` for it."""
    thinking_ms: float | None = None
    """What the reasoning would take in the artifact that prices it; None without one."""
    thinking_length: float | None = None
    """That in tokens of the same cost on the average."""

    @property
    def length(self) -> float:
        """What the penalty saw."""
        return self.thinking_tokens if self.thinking_length is None else self.thinking_length


_REWARDS = pa.map_(pa.string(), pa.float64())  # names differ between runs, the type must not
_TYPES = {
    int: pa.int64(),
    float: pa.float64(),
    float | None: pa.float64(),
    bool: pa.bool_(),
    str: pa.string(),
    list[int]: pa.list_(pa.int64()),
    dict[str, float | None]: _REWARDS,
}
SCHEMA = pa.schema({name: _TYPES[kind] for name, kind in get_type_hints(Rollout).items()})
_MAPS = tuple(name for name in SCHEMA.names if SCHEMA.field(name).type == _REWARDS)


class TrajectoryWriter:
    """Writes a step's rollouts to `{folder}/step-{step:06d}.parquet`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path_of(self, step: int) -> Path:
        """The file of a step, which is there once it is whole."""
        return self.folder / f"step-{step:06d}.parquet"

    def write(self, step: int, rollouts: Sequence[Rollout]) -> Path:
        """Write the step's file in one go; replaces an earlier file of the same step."""
        table = _table([asdict(rollout) for rollout in rollouts])
        path = self.path_of(step)
        # checksums: without them a damaged file is read as other rewards
        write_parquet(path, table, write_page_checksum=True)
        return path


def drop_after(folder: Path, step: int) -> int:
    """Remove the files of steps after `step`, and return how many there were."""
    late = [p for p in folder.glob("step-*.parquet") if _step_of(p) > step]
    for path in late:
        path.unlink()
    return len(late)


def read_rollouts(folder: Path) -> pa.Table:
    """All rollouts of a run, in order of step, with the columns of `SCHEMA`.

    Files of earlier versions get the defaults of columns they lack. Raises ValueError when the
    folder holds none, or a file that can't be read.
    """
    return pa.concat_tables([_read(file) for file in _files(folder)])


def iterate_groups(folder: Path) -> Iterator[list[Rollout]]:
    """The groups of a run one by one, a file in memory at a time; errors as `read_rollouts`."""
    for file in _files(folder):  # groups never span files
        for _, members in groupby(
            _rollouts(file), key=lambda rollout: (rollout.step, rollout.group)
        ):
            yield list(members)


def _rollouts(file: Path) -> list[Rollout]:
    rows = _read(file).to_pylist()
    return [Rollout(**{**row, **{name: dict(row[name]) for name in _MAPS}}) for row in rows]


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("step-*.parquet"), key=_step_of)
    if not files:
        raise ValueError(f"no trajectories in {folder}: train with GRPO first")
    return files


def _read(file: Path) -> pa.Table:
    try:
        table = pq.read_table(file, page_checksum_verification=True)
        table.validate(full=True)  # text that is no UTF-8 would fail later, far from its file
        if missing := [f for f in SCHEMA.names if f not in {*table.column_names, *_defaults()}]:
            raise pa.ArrowInvalid(f"columns {', '.join(missing)} are missing")
        return table if table.schema.equals(SCHEMA) else _table(table.to_pylist())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file} can't be read ({error}): delete it and those of later steps, and run the "
            "training again where it was not finished"
        ) from error


def _table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows of this or an earlier version as a table of `SCHEMA`."""
    return pa.Table.from_pylist(
        [
            {
                name: list(value.items()) if isinstance(value, dict) else value
                for name, value in ({**_defaults(), **row}).items()
            }
            for row in rows
        ],
        schema=SCHEMA,
    )


def _defaults() -> dict[str, Any]:
    plain = {f.name: f.default for f in fields(Rollout) if f.default is not MISSING}
    made = {
        f.name: f.default_factory() for f in fields(Rollout) if f.default_factory is not MISSING
    }
    return {**plain, **made}


def _step_of(path: Path) -> int:
    return int(path.stem.split("-")[1])  # earlier versions name a process after it
