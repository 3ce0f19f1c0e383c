"""Every rollout of every group, kept as data: the log is the dataset.

One Parquet file a step and process, written whole. On a resume from step `s`, files of later steps
are dropped and made again, so no finished step is lost and none is doubled.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curt.files import write_atomic


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of one prompt's group, with its reward breakdown. Lengths are tokens."""

    step: int
    group: int
    """Position of the prompt in the step's batch."""
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
    reward_raw: dict[str, float]
    partial: float
    exact: float
    shaped: float
    """Exact correctness after the length penalty."""
    reward: float
    """What the policy is trained on."""
    advantage: float
    penalty: str
    config_sha256: str
    kept: bool = True
    """False when the group was sampled but not trained on."""


class TrajectoryWriter:
    """Writes a step's rollouts to `{folder}/step-{step:06d}-rank{rank}.parquet`."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self.rank = rank

    def write(self, step: int, rollouts: Sequence[Rollout]) -> Path:
        """Write the step's file in one go; replaces an earlier file of the same step."""
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([asdict(r) for r in rollouts]), buffer)
        path = self.folder / f"step-{step:06d}-rank{self.rank}.parquet"
        write_atomic(path, buffer.getvalue())
        return path


def drop_after(folder: Path, step: int) -> int:
    """Remove the files of steps after `step`, and return how many there were."""
    late = [p for p in folder.glob("step-*.parquet") if _step_of(p) > step]
    for path in late:
        path.unlink()
    return len(late)


def read_rollouts(folder: Path) -> pa.Table:
    """All rollouts of a run, in order of step.

    Raises ValueError when the folder holds none.
    """
    files = sorted(folder.glob("step-*.parquet"))
    if not files:
        raise ValueError(f"no trajectories in {folder}: train with GRPO first")
    return pa.concat_tables([pq.read_table(f) for f in files])


def _step_of(path: Path) -> int:
    return int(path.name.split("-")[1])
