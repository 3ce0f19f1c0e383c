from __future__ import annotations

import json

import pytest

from curt.files import close_run
from train.runs.checkpoints import (
    checkpoint_step,
    last_checkpoint,
    open_run,
    saved_processes,
    share_random_state,
)

CONFIG = {"steps": 10, "penalty": {"type": "gated", "weight": 0.4}, "out": "x"}


@pytest.fixture
def run(tmp_path):
    return open_run(tmp_path / "model", CONFIG, {})


def add_checkpoint(run, step, state='{"global_step": 1}'):
    folder = run / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x")
    if state is not None:
        (folder / "trainer_state.json").write_text(state)
    return folder


def test_a_run_lies_beside_its_model_and_records_its_settings(tmp_path, run):
    assert run == tmp_path / "model.run"
    assert json.loads((run / "config.json").read_text()) == {**CONFIG, "inputs": {}}
    assert not (tmp_path / "model").exists()


def test_the_same_settings_find_the_run_again(tmp_path, run):
    add_checkpoint(run, 2)
    assert open_run(tmp_path / "model", dict(CONFIG), {}) == run
    assert last_checkpoint(run) == run / "checkpoint-2"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 20}, "steps"),
        ({"penalty": {"type": "kimi"}}, "penalty"),
        ({"steps": 20, "out": "y"}, "out, steps"),
        ({"added": 1}, "added"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, run, change, named):
    add_checkpoint(run, 2)
    with pytest.raises(ValueError, match=f"unfinished run with other {named}: delete it"):
        open_run(tmp_path / "model", CONFIG | change, {})
    assert last_checkpoint(run) == run / "checkpoint-2"


def test_a_setting_taken_away_is_refused_too(tmp_path, run):
    add_checkpoint(run, 2)
    with pytest.raises(ValueError, match="with other steps"):
        open_run(tmp_path / "model", {k: v for k, v in CONFIG.items() if k != "steps"}, {})


def test_a_changed_input_is_refused_by_name(tmp_path):
    corpus = tmp_path / "train.jsonl"
    corpus.write_text("one")
    add_checkpoint(open_run(tmp_path / "model", CONFIG, {"train": corpus}), 2)
    corpus.write_text("two")
    with pytest.raises(ValueError, match="with other inputs: delete it"):
        open_run(tmp_path / "model", CONFIG, {"train": corpus})


def test_what_a_finished_run_left_is_moved_aside(tmp_path):
    for number in (1, 2):
        stray = tmp_path / "model.run" / "trajectories" / "step-000001.parquet"
        stray.parent.mkdir(parents=True)
        stray.write_bytes(b"rows")
        run = open_run(tmp_path / "model", CONFIG, {})
        kept = tmp_path / f"model.run.{number}" / "trajectories" / stray.name
        assert kept.read_bytes() == b"rows"
        assert not stray.exists()
        assert last_checkpoint(run) is None
        close_run(run)


def test_the_newest_checkpoint_is_the_highest_step(run):
    for step in (9, 100, 20):
        add_checkpoint(run, step)
    newest = last_checkpoint(run)
    assert newest == run / "checkpoint-100"
    assert checkpoint_step(newest) == 100


@pytest.mark.parametrize("state", [None, "", '{"global_step": 1'])
def test_a_broken_checkpoint_is_skipped_and_removed(run, state):
    whole = add_checkpoint(run, 10)
    broken = add_checkpoint(run, 20, state)
    assert last_checkpoint(run) == whole
    assert not broken.exists()


def test_a_run_with_broken_checkpoints_only_starts_anew(run):
    add_checkpoint(run, 10, None)
    assert last_checkpoint(run) is None
    assert not list(run.glob("checkpoint-*"))


def test_closing_a_run_keeps_its_trajectories_alone(tmp_path, run):
    add_checkpoint(run, 10)
    rows = run / "trajectories" / "step-000001.parquet"
    rows.parent.mkdir()
    rows.write_bytes(b"rows")
    close_run(run)
    assert [p for p in run.rglob("*") if p.is_file()] == [rows]
    assert open_run(tmp_path / "model", CONFIG | {"steps": 99}, {}) == run


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1), (2, 2), (2, 4), (4, 2)])
def test_random_state_is_shared_among_any_number_of_processes(run, before, after):
    def names(count):
        return {"rng_state.pth"} if count == 1 else {f"rng_state_{n}.pth" for n in range(count)}

    checkpoint = add_checkpoint(run, 2)
    for name in names(before):
        (checkpoint / name).write_text(name)
    assert saved_processes(checkpoint) == before
    share_random_state(checkpoint, after)
    assert all((checkpoint / name).is_file() for name in names(after))
    for name in names(after) - names(before):
        assert (checkpoint / name).read_text() == min(names(before))


def test_a_run_that_made_no_step_takes_corrected_settings(tmp_path, run):
    corrected = CONFIG | {"steps": 20}
    assert open_run(tmp_path / "model", corrected, {}) == run
    assert json.loads((run / "config.json").read_text()) == {**corrected, "inputs": {}}
    assert not run.with_name("model.run.1").exists()
    (run / "trajectories").mkdir()
    (run / "trajectories" / "step-000001.parquet").write_bytes(b"x")
    assert open_run(tmp_path / "model", corrected, {}) == run
    assert (run / "trajectories" / "step-000001.parquet").is_file()
    # Out of memory in the first update: nothing to go on from, and the samples are kept.
    assert open_run(tmp_path / "model", CONFIG, {}) == run
    assert json.loads((run / "config.json").read_text()) == {**CONFIG, "inputs": {}}
    aside = run.with_name("model.run.1")
    assert (aside / "trajectories" / "step-000001.parquet").read_bytes() == b"x"
    (run / "checkpoint-2").mkdir()
    with pytest.raises(ValueError, match="unfinished run with other steps"):
        open_run(tmp_path / "model", corrected, {})
