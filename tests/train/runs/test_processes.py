"""One run on several processes over gloo: the same run as on one, and whole however it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file

from curt.artifact import load_manifest
from tests.train.training_runs import (
    GENERATIONS,
    ROOT,
    finish,
    grpo_config,
    make_corpus,
    sft_config,
    start,
    wait_until,
    write_settings,
)
from tests.warm import WarmProcess, start_warm
from train.data.trajectories import read_rollouts
from train.runs.processes import any_process, ask_main, call_within

PROMPTS, STEPS = 4, 6
SEEDED = {"steps": STEPS, "prompts": PROMPTS, "compact": True, "seed_rollouts": True,
          "enforce_budgets": True, "trackers": []}  # fmt: skip


def test_one_process_asks_nobody():
    assert ask_main(lambda: 3) == 3
    assert any_process(True)
    assert not any_process(False)
    assert call_within(None, None, lambda: 4) == 4


def test_an_error_of_the_main_process_is_everyones():
    def fails():
        raise ValueError("no such corpus")

    with pytest.raises(ValueError, match="no such corpus"):
        ask_main(fails)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A corpus, and a warm start on it."""
    folder = tmp_path_factory.mktemp("made")
    corpus = make_corpus(folder)
    log = folder / "log"
    finish(start("train.sft", sft_config(corpus, folder / "warm"), log), log)
    return corpus, folder / "warm"


@pytest.fixture(scope="module")
def alone(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on one process, unbroken."""
    folder = tmp_path_factory.mktemp("alone")
    log = folder / "log"
    finish(start("train.grpo", grpo_config(*made, folder / "grpo", **SEEDED), log), log)
    return folder / "grpo"


def launch(module: str, config, log: Path, processes: int) -> subprocess.Popen[bytes]:
    """Start an entry point through accelerate's launcher, in a process group as a terminal does."""
    file = ROOT / "configs" / "accelerate" / "cpu-ddp.yaml"
    with open(log, "ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file),
             "--num_processes", str(processes), "-m", module, f"@{write_settings(config, log)}"],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            start_new_session=True,
        )  # fmt: skip


def run_ranks(module: str, config, log: Path, processes: int) -> list[int]:
    """Exit codes of the processes that the launcher would start, without the launcher."""
    toml = write_settings(config, log)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "ACCELERATE_USE_CPU": "true",
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
    ranks = [
        start_warm(module, [f"@{toml}"], log,
                   {k: str(v) for k, v in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()})
        for rank in range(processes)
    ]  # fmt: skip
    return [rank.wait(180) for rank in ranks]


def run_on(module: str, config, log: Path, processes: int) -> None:
    """Run an entry point to its end on one process or several."""
    if processes == 1:
        finish(start(module, config, log), log)
    else:
        codes = run_ranks(module, config, log, processes)
        assert codes == [0] * processes, log.read_text()[-2000:]


def end(process: WarmProcess | subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:
        os.killpg(process.pid, number)
    process.wait(timeout=90)


def assert_same_run(found: Path, expected: Path) -> None:
    """Rollouts, rewards and advantages alike, and weights but for the order of sums."""
    ours, theirs = (
        read_rollouts(out.with_name(f"{out.name}.run") / "trajectories")
        for out in (found, expected)
    )
    assert ours.num_rows == STEPS * PROMPTS * GENERATIONS
    members = Counter(zip(ours["step"].to_pylist(), ours["group"].to_pylist(), strict=True))
    assert members == {(s, g): GENERATIONS for s in range(1, STEPS + 1) for g in range(PROMPTS)}
    floats = {"advantage", "reward", "partial", "shaped"}
    for name in set(ours.column_names) - {"config_sha256"}:
        values, wanted = ours[name].to_pylist(), theirs[name].to_pylist()
        assert values == (pytest.approx(wanted, abs=1e-6) if name in floats else wanted), name
    weights, others = (load_file(out / "model.safetensors") for out in (found, expected))
    assert weights.keys() == others.keys()
    assert max(float((weights[k] - others[k]).abs().max()) for k in weights) < 1e-5
    rows = [json.loads((out / "history.json").read_bytes()) for out in (found, expected)]
    for ours_, theirs_ in zip(*rows, strict=True):
        for key in ("step", "lr", "reward", "exact", "thinking_tokens"):
            assert ours_[key] == pytest.approx(theirs_[key], abs=1e-5), key


@pytest.mark.slow
def test_the_same_run_on_two_processes(tmp_path, made, alone):
    log = tmp_path / "log"
    config = grpo_config(*made, tmp_path / "grpo", **SEEDED)
    run_on("train.grpo", config, log, 2)
    assert_same_run(tmp_path / "grpo", alone)
    assert load_manifest(tmp_path / "grpo").stage == "grpo-gated"
    moved = load_file(alone / "model.safetensors"), load_file(made[1] / "model.safetensors")
    assert max(float((moved[0][k] - moved[1][k]).abs().max()) for k in moved[0]) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after", "ending"), [
    (2, 1, signal.SIGINT), (1, 2, signal.SIGKILL), (2, 4, signal.SIGTERM),
])  # fmt: skip
def test_a_run_goes_on_with_another_number_of_processes(
    tmp_path, made, alone, before, after, ending
):
    out, run, log = tmp_path / "grpo", tmp_path / "grpo.run", tmp_path / "log"
    config = grpo_config(*made, out, **SEEDED)
    process = (
        start("train.grpo", config, log)
        if before == 1
        else launch("train.grpo", config, log, before)
    )
    try:
        reached = run / "trajectories" / "step-000003.parquet"
        wait_until(reached.exists, process, log)
    finally:
        end(process, ending)
    assert not out.exists()
    if ending != signal.SIGKILL:  # a signal to all of them leaves a checkpoint of the last step
        assert log.read_text().count("stopped; the same command goes on from here") == 1
        steps = {int(p.name.split("-")[1].removesuffix(".parquet"))
                 for p in (run / "trajectories").glob("*.parquet")}  # fmt: skip
        checkpoints = {int(p.name.split("-")[1]) for p in run.glob("checkpoint-*")}
        assert max(steps) == max(checkpoints)
    run_on("train.grpo", config, log, after)
    assert "resuming from" in log.read_text()
    assert_same_run(out, alone)


@pytest.mark.slow
@pytest.mark.parametrize("sampled", [
    {"oversample": 3}, {"oversample": 1, "rounds": 3, "eval_steps": 2, "eval_cases": 5},
], ids=["once", "rounds"])  # fmt: skip
def test_groups_are_chosen_from_those_of_all_processes(tmp_path, made, sampled):
    """With oversampling a process may hold none of the groups trained on."""
    models = []
    for processes in (1, 2):
        out, log = tmp_path / f"grpo-{processes}", tmp_path / f"log-{processes}"
        config = grpo_config(*made, out, **SEEDED | {"steps": 3, "prompts": 1} | sampled)
        run_on("train.grpo", config, log, processes)
        table = read_rollouts(tmp_path / f"grpo-{processes}.run" / "trajectories")
        kept = [(r["step"], r["group"]) for r in table.to_pylist() if r["kept"]]
        models.append((load_file(out / "model.safetensors"), kept))
    (weights, kept), (others, others_kept) = models
    assert kept == others_kept
    assert len(kept) == 3 * GENERATIONS
    assert max(float((weights[k] - others[k]).abs().max()) for k in weights) < 1e-5


@pytest.mark.slow
def test_processes_that_do_not_divide_the_groups_are_refused(tmp_path, made):
    log = tmp_path / "log"
    config = grpo_config(*made, tmp_path / "grpo", prompts=3)
    assert all(run_ranks("train.grpo", config, log, 2))
    assert "prompts + oversample = 3 does not divide among 2 processes" in log.read_text()
    assert not (tmp_path / "grpo.run").exists()


@pytest.mark.slow
def test_trls_own_sampling_keeps_groups_whole_on_two_processes(tmp_path, made):
    log = tmp_path / "log"
    config = grpo_config(*made, tmp_path / "grpo", steps=2, prompts=4, micro_batch=4, trackers=[])
    run_on("train.grpo", config, log, 2)
    table = read_rollouts(tmp_path / "grpo.run" / "trajectories").to_pylist()
    groups = Counter((r["step"], r["group"], r["prompt_sha256"]) for r in table)
    assert list(groups.values()) == [GENERATIONS] * 8
    # processes with one and the same random stream would sample alike
    assert len({tuple(r["token_ids"]) for r in table}) > GENERATIONS


@pytest.mark.slow
def test_a_warm_start_on_two_processes_learns_what_one_does(tmp_path, made):
    corpus, _ = made
    histories = []
    for processes in (1, 2):
        out, log = tmp_path / f"warm-{processes}", tmp_path / f"log-{processes}"
        config = sft_config(corpus, out, batch=6, epochs=10.0)  # 60 cases: steps come out even
        run_on("train.sft", config, log, processes)
        histories.append(json.loads((out / "history.json").read_bytes()))
    ours, theirs = histories
    assert (
        [row["step"] for row in ours] == [row["step"] for row in theirs] == list(range(20, 101, 20))
    )
    assert [r["loss"] for r in ours] == pytest.approx([r["loss"] for r in theirs], rel=0.02)
    assert ours[-1]["loss"] < ours[0]["loss"] / 2
