from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.train.rollouts import make_rollout
from train.data.trajectories import (
    Rollout,
    TrajectoryWriter,
    drop_after,
    iterate_groups,
    read_rollouts,
)


def rollouts(step: int, count: int = 4) -> list[Rollout]:
    return [make_rollout(step=step, group=i // 2, reward=i / 10) for i in range(count)]


def flatten(groups: Iterable[list[Rollout]]) -> list[Rollout]:
    return list(chain.from_iterable(groups))


def test_rollouts_come_back_as_they_were_written(tmp_path):
    written = rollouts(1)
    TrajectoryWriter(tmp_path / "new").write(1, written)
    assert flatten(iterate_groups(tmp_path / "new")) == written


def test_rewards_of_failed_judges_and_of_changing_names_come_back(tmp_path):
    first = make_rollout(reward_raw={"qwen:charge": None}, reward=None, partial=None)
    second = make_rollout(step=2, reward_raw={"term": 0.5}, reward_weighted={"term": 0.2})
    for rollout in (first, second):
        TrajectoryWriter(tmp_path).write(rollout.step, [rollout])
    assert flatten(iterate_groups(tmp_path)) == [first, second]


def test_files_of_an_earlier_version_are_read_with_defaults(tmp_path):
    rollout = make_rollout(reward_raw={"format": 1.0, "term": 0.8})
    old = asdict(rollout)
    for name in ("reward_weighted", "checkpoint_sha256", "penalty_weight", "kept"):
        del old[name]
    pq.write_table(pa.Table.from_pylist([old]), tmp_path / "step-000001-rank0.parquet")
    newer = make_rollout(step=2)
    TrajectoryWriter(tmp_path).write(2, [newer])
    assert flatten(iterate_groups(tmp_path)) == [rollout, newer]


@pytest.mark.parametrize("kept", [0, 50, -10])
def test_a_broken_file_is_named_with_the_remedy(tmp_path, kept):
    path = TrajectoryWriter(tmp_path).write(1, rollouts(1))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"step-000001.parquet can't be read.*delete it"):
        read_rollouts(tmp_path)


def test_no_flipped_byte_changes_a_rollout_unnoticed(tmp_path):
    written = rollouts(1)
    path = TrajectoryWriter(tmp_path).write(1, written)
    whole = path.read_bytes()
    outcomes = set()
    for position in range(0, len(whole), 23):
        broken = bytearray(whole)
        broken[position] ^= 0x55
        path.write_bytes(broken)
        try:
            outcomes.add([r for group in iterate_groups(tmp_path) for r in group] == written)
        except ValueError as error:
            outcomes.add(f"{path} can't be read" in str(error))
    assert outcomes == {True}


def test_a_table_of_something_else_names_the_columns_it_lacks(tmp_path):
    pq.write_table(pa.table({"text": ["甲"]}), tmp_path / "step-000001-rank0.parquet")
    with pytest.raises(ValueError, match=r"step-000001-rank0.parquet .*case_id.* are missing"):
        read_rollouts(tmp_path)


def test_rollouts_come_one_by_one_in_the_order_of_steps(tmp_path):
    for step in (2, 1):
        TrajectoryWriter(tmp_path).write(step, rollouts(step, 2))
    assert [r for group in iterate_groups(tmp_path) for r in group] == [
        *rollouts(1, 2),
        *rollouts(2, 2),
    ]


def test_steps_come_back_in_order(tmp_path):
    writer = TrajectoryWriter(tmp_path)
    for step in (10, 2, 100, 1):
        writer.write(step, rollouts(step, 2))
    assert read_rollouts(tmp_path)["step"].to_pylist() == [1, 1, 2, 2, 10, 10, 100, 100]


def test_a_step_written_again_replaces_the_first(tmp_path):
    writer = TrajectoryWriter(tmp_path)
    writer.write(1, rollouts(1, 6))
    writer.write(1, rollouts(1, 4))
    assert read_rollouts(tmp_path).num_rows == 4


def test_later_steps_are_dropped_and_earlier_ones_kept(tmp_path):
    for step in range(1, 6):
        TrajectoryWriter(tmp_path).write(step, rollouts(step))
    assert drop_after(tmp_path, 3) == 2
    assert set(read_rollouts(tmp_path)["step"].to_pylist()) == {1, 2, 3}
    assert drop_after(tmp_path, 3) == 0


def test_dropping_in_a_folder_that_does_not_exist_drops_nothing(tmp_path):
    assert drop_after(tmp_path / "none", 0) == 0


def test_a_half_written_file_of_a_killed_run_is_ignored(tmp_path):
    path = TrajectoryWriter(tmp_path).write(1, rollouts(1))
    half = tmp_path / ".step-000002.parquet.123.tmp"
    half.write_bytes(path.read_bytes()[:100])
    assert read_rollouts(tmp_path).num_rows == 4
    assert drop_after(tmp_path, 1) == 0


def test_no_trajectories_name_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="train with GRPO first"):
        read_rollouts(tmp_path)
