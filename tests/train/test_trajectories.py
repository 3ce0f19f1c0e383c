from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from train.trajectories import Rollout, TrajectoryWriter, drop_after, read_rollouts

ROLLOUT = Rollout(
    step=1,
    group=0,
    case_id="generated-7-1",
    prompt="某",
    prompt_sha256="0" * 64,
    budget=64,
    completion="想</think>",
    token_ids=[3, 1, 4],
    thinking_tokens=2,
    answer_tokens=1,
    truncated=False,
    reward_raw={"format": 1.0, "term": 0.8},
    partial=0.9,
    exact=0.0,
    shaped=0.0,
    reward=0.36,
    advantage=-0.5,
    penalty="gated",
    config_sha256="f" * 64,
)


def rollouts(step: int, count: int = 4) -> list[Rollout]:
    return [replace(ROLLOUT, step=step, group=i // 2, reward=i / 10) for i in range(count)]


def test_rollouts_come_back_as_they_were_written(tmp_path):
    written = rollouts(1)
    TrajectoryWriter(tmp_path / "new").write(1, written)
    assert read_rollouts(tmp_path / "new").to_pylist() == [asdict(r) for r in written]


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


def test_processes_write_beside_each_other(tmp_path):
    TrajectoryWriter(tmp_path, rank=0).write(1, rollouts(1))
    TrajectoryWriter(tmp_path, rank=1).write(1, rollouts(1))
    assert read_rollouts(tmp_path).num_rows == 8


def test_later_steps_are_dropped_and_earlier_ones_kept(tmp_path):
    for rank in (0, 1):
        for step in range(1, 6):
            TrajectoryWriter(tmp_path, rank).write(step, rollouts(step))
    assert drop_after(tmp_path, 3) == 4
    assert set(read_rollouts(tmp_path)["step"].to_pylist()) == {1, 2, 3}
    assert drop_after(tmp_path, 3) == 0


def test_dropping_in_a_folder_that_does_not_exist_drops_nothing(tmp_path):
    assert drop_after(tmp_path / "none", 0) == 0


def test_a_half_written_file_of_a_killed_run_is_ignored(tmp_path):
    path = TrajectoryWriter(tmp_path).write(1, rollouts(1))
    half = tmp_path / ".step-000002-rank0.parquet.123.tmp"
    half.write_bytes(path.read_bytes()[:100])
    assert read_rollouts(tmp_path).num_rows == 4
    assert drop_after(tmp_path, 1) == 0


def test_no_trajectories_name_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="train with GRPO first"):
        read_rollouts(tmp_path)
