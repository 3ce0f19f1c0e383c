"""kill -9 in the middle of each step: no half artifact is left, and the same command then works."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from curt.artifact import load_manifest
from curt.classifier.model import load_classifier
from curt.corpus.store import write_cases as write_generated
from tests.cases import common_cases
from tests.compress.onnx.exports import make_untied_model, write_cases
from tests.warm import WarmProcess, start_warm

pytestmark = pytest.mark.slow
STEPS = ("onnx.export", "tensorrt.export", "prune", "classifier.train")  # distill: its own tests
MOMENTS = (0.4, 0.8)  # of the time that the whole step takes


@pytest.fixture(scope="module")
def model(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_untied_model(tmp_path_factory.mktemp("killed") / "model", micro_model)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory.mktemp("cases") / "cases.jsonl", 60)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generated") / "cases.jsonl"
    write_generated(path, common_cases(300, seed=1))
    return path


def commands(model: Path, cases: Path, generated: Path) -> dict[str, list[str]]:
    case = str(cases)
    return {
        "onnx.export": ["--model", str(model), "--cases", case, "--calibration", case,
                       "--prompts", "4", "--precision", "int4", "--calibration_cases", "8",
                       "--max_kl", "9"],
        "tensorrt.export": ["--model", str(model), "--cases", case, "--precision", "fp8",
                       "--calibration_cases", "8", "--compared_cases", "2",
                       "--max_kl", "9", "--max_nll_difference", "9"],
        "prune": ["--model", str(model), "--cases", case, "--layers", "1",
                  "--calibration_cases", "8"],
        "classifier.train": ["--cases", str(generated), "--dev", str(generated),
                             "--features", "1024"],
    }  # fmt: skip


def run(step: str, arguments: list[str], out: Path) -> WarmProcess:
    log = out.with_suffix(".log")
    return start_warm(f"compress.{step}", [*arguments, "--out", str(out)], log)


def finish(process: WarmProcess, out: Path) -> None:
    assert process.wait(300) == 0, out.with_suffix(".log").read_text()[-3000:]


def load(step: str, folder: Path) -> None:
    load_classifier(folder) if step == "classifier.train" else load_manifest(folder)


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_step_leaves_no_half_artifact(
    step, model: Path, cases: Path, generated: Path, tmp_path: Path
):
    arguments = commands(model, cases, generated)[step]
    process = run(step, arguments, tmp_path / "whole")
    start = time.monotonic()
    finish(process, tmp_path / "whole")
    whole_s = time.monotonic() - start
    load(step, tmp_path / "whole")
    out = tmp_path / "out"
    killed = 0
    for moment in MOMENTS:
        process = run(step, arguments, out)
        try:
            process.wait(whole_s * moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)
            killed += 1
        if out.exists():
            load(step, out)  # a whole one, or this raises
    assert killed
    finish(run(step, arguments, out), out)
    load(step, out)
