from __future__ import annotations

import json
import logging
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.distill.distill import (
    DistillConfig,
    distill,
    learning_rate_at,
    read_checkpoint,
    write_checkpoint,
)
from curt.artifact import ArtifactError, load_manifest, write_artifact
from curt.config import load_config
from tests.compress.onnx.exports import make_untied_model, write_cases
from tests.micro import make_micro_model
from tests.warm import start_warm

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def teacher(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose two layers do something, so that a student with one is far from it."""
    return make_untied_model(tmp_path_factory.mktemp("distill") / "teacher", micro_model)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory.mktemp("cases") / "cases.jsonl", 12)


def config(teacher: Path, cases: Path, out: Path, **changes: Any) -> DistillConfig:
    settings: dict[str, Any] = {
        "teacher": teacher,
        "shape": {"layers": 1},
        "data": cases,
        "out": out,
        "held_out": 2,
        "steps": 6,
        "batch": 4,
        "warmup": 2,
        "learning_rate": 3e-3,
        "checkpoint_steps": 2,
    }
    return DistillConfig(**{**settings, **changes})


def distilled(chosen: DistillConfig) -> Path:
    distill(chosen)
    return chosen.out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


class StopAt(logging.Handler):
    """Presses Ctrl-C when a given checkpoint is reported."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.message = f"checkpoint after step {step}"

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == self.message:
            signal.raise_signal(signal.SIGINT)


def interrupted(chosen: DistillConfig, step: int) -> None:
    """Run until Ctrl-C, pressed after the given step's checkpoint."""
    logger = logging.getLogger("compress.distill.distill")
    handler, level = StopAt(step), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with pytest.raises(KeyboardInterrupt):
            distill(chosen)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_the_rate_rises_then_falls_to_nothing():
    rates = [learning_rate_at(step, 100, 10, 1.0) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([s / 10 for s in range(1, 11)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.001
    assert learning_rate_at(1, 1, 0, 1.0) > 0
    assert learning_rate_at(55, 99, 10, 1.0) == pytest.approx((1 + math.cos(math.pi / 2)) / 2)


def test_the_command_line_names_every_part(tmp_path: Path):
    line = "--teacher t --student none --shape.layers 2 --data d.jsonl --out o --steps 9 --seed 8"
    chosen = load_config(DistillConfig, [*line.split(), "--loss.temperature", "4"])
    assert chosen.student is None
    assert chosen.shape.changes == {"num_hidden_layers": 2}
    assert (chosen.loss.temperature, chosen.steps, chosen.seed) == (4, 9, 8)


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ("", "give --student FOLDER"),
        ("--student s --shape.layers 1", "not both"),
        ("--student o", "is the teacher or the student"),
        ("--student s --loss.mixup_alpha 0.2 --batch 1", "a batch of 2"),
        ("--student s --steps 0", "greater than or equal to 1"),
        ('--student s --verbosity_weights {"long":1}', "unknown"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(extra, named):
    line = "--teacher t --data d.jsonl --out o " + extra
    with pytest.raises(SystemExit, match=named):
        load_config(DistillConfig, line.split())


def test_help_is_shown_without_loading_a_framework():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['distill', '--help']\n"
        "try:\n    runpy.run_module('compress.distill', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]"
    assert "--shape.layers" in done.stdout


def test_a_student_comes_nearer_its_teacher(teacher: Path, cases: Path, tmp_path: Path):
    out = distilled(config(teacher, cases, tmp_path / "out", steps=25, loss={"ce_weight": 0}))
    manifest = load_manifest(out, expect="hf")
    assert manifest.evaluation["kl"] < 0.8 * manifest.evaluation["kl_before"]
    history = json.loads((out / "history.json").read_text())
    assert [row["step"] for row in history] == list(range(1, 26))
    assert history[-1]["kl"] < history[0]["kl"]
    assert manifest.stage == "distill"
    assert manifest.config["student_origin"] == "layers"
    assert manifest.config["inputs"].keys() == {"teacher", "student", "data"}
    assert manifest.evaluation["train_total"] > 0
    assert not (tmp_path / "out.run").exists()
    student = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert student.config.num_hidden_layers == 1
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(teacher).get_vocab()


def test_a_given_student_recovers(teacher: Path, cases: Path, tmp_path: Path):
    """what pruning leaves is a model folder like any other"""
    pruned = tmp_path / "pruned"
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
    limits = load_manifest(teacher)
    describe = {
        "format": "hf",
        "precision": "fp32",
        "stage": "prune",
        "base": limits.base,
        "max_fact_tokens": 150,
        "max_thinking_tokens": limits.max_thinking_tokens,
    }
    with write_artifact(pruned, describe) as folder:
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)
    chosen = config(
        teacher,
        cases,
        tmp_path / "out",
        student=pruned,
        shape={},
        steps=40,
        learning_rate=1e-3,
        loss={"ce_weight": 0},  # random weights agree with no data
    )
    manifest = load_manifest(distilled(chosen))
    assert manifest.evaluation["kl"] < manifest.evaluation["kl_before"]
    assert manifest.parent is not None
    assert manifest.parent.path == str(pruned)
    assert manifest.config["student_origin"] == "given"
    assert manifest.max_fact_tokens == 150


def test_mixup_smoothing_and_bf16_run_together(teacher: Path, cases: Path, tmp_path: Path):
    loss = {"mixup_alpha": 0.4, "label_smoothing": 0.1, "thinking_weight": 1, "answer_weight": 1}
    chosen = config(teacher, cases, tmp_path / "out", shape={"hidden": 64}, loss=loss, bf16=True)
    manifest = load_manifest(distilled(chosen))
    assert manifest.config["student_origin"] == "random"
    assert all(math.isfinite(value) for value in manifest.evaluation.values())


@pytest.mark.usefixtures("ctrl_c")
def test_a_stopped_run_ends_as_an_unbroken_one(teacher: Path, cases: Path, tmp_path: Path):
    changes = {"loss": {"mixup_alpha": 0.4}}
    whole = distilled(config(teacher, cases, tmp_path / "whole", **changes))
    chosen = config(teacher, cases, tmp_path / "broken", **changes)
    interrupted(chosen, 4)
    assert not chosen.out.exists()
    resumed = distilled(chosen)
    assert same_weights(whole, resumed)
    assert (whole / "history.json").read_text() == (resumed / "history.json").read_text()
    assert load_manifest(whole).evaluation == load_manifest(resumed).evaluation


@pytest.mark.usefixtures("ctrl_c")
def test_how_often_a_run_is_saved_changes_nothing(teacher: Path, cases: Path, tmp_path: Path):
    whole = distilled(config(teacher, cases, tmp_path / "whole"))
    interrupted(config(teacher, cases, tmp_path / "broken"), 2)
    resumed = distilled(config(teacher, cases, tmp_path / "broken", checkpoint_steps=5))
    assert not (tmp_path / "broken.run.1").exists()
    assert same_weights(whole, resumed)


@pytest.mark.usefixtures("ctrl_c")
def test_other_settings_start_anew_and_say_so(
    teacher: Path, cases: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    interrupted(config(teacher, cases, tmp_path / "out"), 2)
    more = tmp_path / "more.jsonl"
    more.write_bytes(cases.read_bytes() + cases.read_bytes().splitlines(keepends=True)[0])
    distill(config(teacher, more, tmp_path / "out", seed=8))
    assert "starting anew: the run there was made with other data, inputs, seed" in caplog.text
    assert (tmp_path / "out.run.1" / "checkpoint-00000002").is_dir()
    fresh = distilled(config(teacher, more, tmp_path / "fresh", seed=8))
    assert same_weights(tmp_path / "out", fresh)


@pytest.mark.parametrize("damage", ["state.pt", "checkpoint.json"])
@pytest.mark.usefixtures("ctrl_c")
def test_a_damaged_checkpoint_is_refused_with_a_remedy(
    teacher: Path, cases: Path, tmp_path: Path, damage
):
    chosen = config(teacher, cases, tmp_path / "out")
    interrupted(chosen, 4)
    newest = tmp_path / "out.run" / "checkpoint-00000004"
    file = newest / damage
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"checkpoint-00000004 is damaged: delete it to go on"):
        distill(chosen)
    for part in newest.iterdir():
        part.unlink()
    newest.rmdir()
    whole = distilled(config(teacher, cases, tmp_path / "whole"))
    assert same_weights(whole, distilled(chosen))


@pytest.mark.usefixtures("ctrl_c")
def test_a_damaged_record_is_refused_with_a_remedy(teacher: Path, cases: Path, tmp_path: Path):
    chosen = config(teacher, cases, tmp_path / "out")
    interrupted(chosen, 2)
    (tmp_path / "out.run" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged: delete"):
        distill(chosen)


def test_another_programs_run_is_kept(teacher: Path, cases: Path, tmp_path: Path):
    theirs = tmp_path / "out.run" / "trajectories"
    theirs.mkdir(parents=True)
    (theirs / "step-1.parquet").write_bytes(b"data")
    distill(config(teacher, cases, tmp_path / "out"))
    assert (tmp_path / "out.run.1" / "trajectories" / "step-1.parquet").read_bytes() == b"data"


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path):
    for step in (1, 2, 10):
        write_checkpoint(tmp_path, {"step": step})
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["checkpoint-00000002", "checkpoint-00000010"]
    assert read_checkpoint(tmp_path, torch.device("cpu")) == {"step": 10}


def test_another_vocabulary_is_refused(teacher: Path, cases: Path, tmp_path: Path):
    stranger = make_micro_model(tmp_path / "stranger")
    state = json.loads((stranger / "tokenizer.json").read_text())
    state["added_tokens"][-1]["content"] = "<end>"
    model = AutoModelForCausalLM.from_pretrained(stranger, dtype=torch.float32)
    limits = load_manifest(stranger)
    describe = limits.model_dump(exclude={"files", "tools", "created"})
    with write_artifact(tmp_path / "renamed", describe) as folder:
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(stranger).save_pretrained(folder)
        (folder / "tokenizer.json").write_text(json.dumps(state))
    chosen = config(teacher, cases, tmp_path / "out", student=tmp_path / "renamed", shape={})
    with pytest.raises(ValueError, match="entries of the two tokenizers"):
        distill(chosen)


def test_embeddings_of_another_width_are_refused(teacher: Path, cases: Path, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    model.resize_token_embeddings(model.config.vocab_size + 64, mean_resizing=False)
    describe = load_manifest(teacher).model_dump(exclude={"files", "tools", "created"})
    with write_artifact(tmp_path / "wide", describe) as folder:
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)
    chosen = config(teacher, cases, tmp_path / "out", student=tmp_path / "wide", shape={})
    with pytest.raises(ValueError, match="leave the embeddings whole"):
        distill(chosen)


def test_a_folder_without_a_manifest_is_no_teacher(cases: Path, tmp_path: Path):
    with pytest.raises(ArtifactError, match="not a folder"):
        distill(config(tmp_path / "none", cases, tmp_path / "out"))


def test_a_diverging_run_is_stopped_with_a_remedy(teacher: Path, cases: Path, tmp_path: Path):
    chosen = config(
        teacher, cases, tmp_path / "out", learning_rate=1e30, warmup=0, weight_decay=1e10
    )
    with pytest.raises(ValueError, match="lower --learning_rate"):
        distill(chosen)
    assert not chosen.out.exists()


@pytest.mark.slow
def test_a_killed_run_ends_as_an_unbroken_one(teacher: Path, cases: Path, tmp_path: Path):
    whole = distilled(config(teacher, cases, tmp_path / "whole", steps=60))
    chosen = config(teacher, cases, tmp_path / "killed", steps=60)
    arguments = f"--teacher {teacher} --shape.layers 1 --data {cases} --out {chosen.out}".split()
    numbers = {"held_out": 2, "steps": 60, "batch": 4, "warmup": 2, "checkpoint_steps": 2}
    for name, value in {**numbers, "learning_rate": 3e-3}.items():
        arguments += [f"--{name}", str(value)]
    log = tmp_path / "killed.log"
    process = start_warm("compress.distill", arguments, log)
    run = tmp_path / "killed.run"
    while process.poll() is None and not any(run.glob("checkpoint-*")):
        time.sleep(0.005)
    process.kill()
    process.wait(30)
    assert not chosen.out.exists(), log.read_text()
    assert any(run.glob("checkpoint-*")), log.read_text()
    assert same_weights(whole, distilled(chosen))
