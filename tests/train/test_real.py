"""`make real`: its plan; and the first steps of a real checkpoint, where there is one."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from compress.folders import load_model
from compress.trim import TrimConfig, trim
from curt.artifact import load_manifest
from curt.checkpoint import CheckpointConfig, read_checkpoint, write_checkpoint
from curt.corpus.generate.generator import generate_cases
from curt.corpus.store import write_cases
from curt.dialogue import THINK_END, Prompts
from curt.engines.tokenizer import PromptTokenizer
from tests.train.training_runs import ROOT

RECIPES = ("int4", "int8", "w8a8")
MODULES = re.compile(r"-m (curt|compress|train|serve)\.?([\w.]*)")


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "-n", "real", "PYTHON=python3", *arguments]
    return subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)


def stages(text: str) -> list[str]:
    return [".".join(found) for found in MODULES.findall(text) if found[1] != "stopwatch"]


def test_every_stage_is_made_once_and_in_order(tmp_path: Path):
    done = plan("CHECKPOINT=a/model.gguf", f"CORPUS={tmp_path}", "CASES=5", "TEST_CASES=3")
    assert done.returncode == 0, done.stderr
    order = list(dict.fromkeys(stages(done.stdout)))
    # What can't be exported is said before anything is made, once for all recipes.
    assert order[:3] == ["curt.checkpoint", "compress.onnx.export", "compress.tensorrt.export"]
    assert sorted(order[3:5]) == ["compress.classifier.train", "curt.corpus"]
    order = [stage for stage in order if stage != "curt.evaluate"]
    trained = [stage for stage in order if not stage.startswith("compress.") or "trim" in stage]
    begun = trained.index("compress.trim")
    assert trained[begun : begun + 3] == ["compress.trim", "train.sft", "train.grpo"]
    made = done.stdout.partition("fallback/agreement.json\n")[
        0
    ]  # a plan makes nothing: it is told again
    assert stages(made).count("compress.onnx.export") == 1 + 3
    assert stages(made).count("compress.tensorrt.export") == 1
    # A format that such a model does not bear costs nothing that was made before.
    served = done.stdout.index("locust -f")
    for precision in ("fp8", "int4_awq"):
        assert done.stdout.index(f"--out artifacts/real-model/trt-{precision}\n") > served
    evaluated = re.findall(r"--out artifacts/real-model/eval/(\S+)\.json", made)
    assert evaluated == ["trimmed", "warm-start", "grpo-default", *(f"ort-{r}" for r in RECIPES)]
    assert {
        "compress.onnx.fastest",
        "compress.classifier.agreement",
        "serve.",
        "curt.report",
    } <= set(order)
    assert "--deadline-ms 10000 " in done.stdout
    assert made.count("--limit 3") == 6
    assert "--cases 5 " in done.stdout
    assert "--model artifacts/real-model/trimmed " in done.stdout
    assert "artifacts/demo" not in done.stdout


def test_trimming_may_be_left_out():
    text = plan("CHECKPOINT=owner/Name-0.5B", "TRIM=no").stdout
    assert "compress.trim" not in text
    assert "--model artifacts/real-Name-0.5B/checkpoint " in text


def test_a_folder_made_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "made-of").write_text("CHECKPOINT=b/model.gguf CORPUS= CASES= TRIM=\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "real", "CHECKPOINT=a/model.gguf", f"RUN={tmp_path}", "PYTHON=python3"]
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)
    assert done.returncode != 0
    assert "was made with CHECKPOINT=b/model.gguf" in done.stderr
    assert "give RUN=another/folder" in done.stderr


def test_a_checkpoint_must_be_named(tmp_path: Path):
    done = plan(f"CORPUS={tmp_path}")
    assert done.returncode != 0
    assert "give CHECKPOINT, a GGUF file, folder or hub id" in done.stderr


def test_a_corpus_that_is_not_there_is_refused_before_anything_is_made():
    done = plan("CHECKPOINT=a/model.gguf", "CORPUS=no/such")
    assert done.returncode != 0
    assert "no folder CORPUS=no/such: give one that holds train.json" in done.stderr


def test_another_number_of_test_cases_evaluates_again(tmp_path: Path):
    def make(count: int, *flags: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        goal = f"{tmp_path}/eval/trimmed.json"
        command = ["make", *flags, f"RUN={tmp_path}", f"TEST_CASES={count}", "PYTHON=python3", goal]
        return subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)

    for name in ("trimmed/manifest.json", "eval/trimmed.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "test-cases").write_text("40\n")
    (tmp_path / "eval" / "trimmed.json").touch()
    assert make(40, "-q").returncode == 0
    assert "--limit 60" in make(60, "-n").stdout


def test_a_served_checkpoint_answers_within_its_own_deadline(tmp_path: Path):
    text = plan("CHECKPOINT=a/model.gguf", f"CORPUS={tmp_path}").stdout
    assert "CURT_DEFAULT_DEADLINE_MS=10000 CURT_THREADS=" in text


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_real_checkpoint_is_opened_trimmed_and_computes_the_same(tmp_path: Path):
    if not (source := os.environ.get("CURT_TEST_CHECKPOINT")):
        pytest.skip("set CURT_TEST_CHECKPOINT to a GGUF file or folder of a real model")
    cases = list(generate_cases(60, seed=5))
    write_cases(tmp_path / "train.jsonl", cases)
    before, after = tmp_path / "before", tmp_path / "after"
    write_checkpoint(CheckpointConfig(model=source, out=before, max_fact_tokens=320))
    trim(TrimConfig(model=before, corpus=tmp_path / "train.jsonl", out=after))
    assert read_checkpoint(after).changes == []
    assert PromptTokenizer(after).count(THINK_END) == 1
    report = load_manifest(after).config["trimming"]
    assert report["tokens_after"] < report["tokens_before"] / 2
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (before, after))
    kept = old.convert_tokens_to_ids(new.convert_ids_to_tokens(range(len(new))))
    ids = Prompts(new, 320).encode(cases[0].fact, 32).ids
    assert [kept[i] for i in ids] == Prompts(old, 320).encode(cases[0].fact, 32).ids
    with torch.no_grad():
        whole = load_model(before)(torch.tensor([[kept[i] for i in ids]])).logits[..., kept]
        small = load_model(after)(torch.tensor([ids])).logits
    torch.testing.assert_close(small, whole, atol=1e-3, rtol=1e-3)
