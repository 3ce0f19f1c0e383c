"""What the documents say of deploying, held against what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from curt.hardware import GPUS, Gpu
from serve.api.schemas import NOTICE

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def calculate(parameters: float, gpu: Gpu, form: str) -> list[str]:
    """A row of the sizing table by the formulas above it."""
    weights = parameters * {"fp8": 1.0, "int4": 0.56}[form]
    token = 1.3 * (weights / (gpu.bandwidth_gb_s * 1e6) + 3)
    peak = gpu.tflops["fp8" if form == "fp8" else "bf16"] * 1e12
    prefill = 2 * parameters * 500 / (0.4 * peak) * 1e3 + 3
    fits = int((400 - 15 - prefill) // token) - 25
    rates = [
        f"{1e3 * min(0.6 * 8 / (prefill + (25 + budget) * token), 0.3 / prefill):.0f}"
        if budget <= fits
        else "–"
        for budget in (0, 16, 32, 64)
    ]
    times = [f"{weights / 1e9:.1f} GB", f"{token:.1f} ms", f"{prefill:.0f} ms"]
    return [*times, str(fits) if fits >= 0 else "no answer", *rates]


def test_the_sizing_table_is_what_its_formulas_give() -> None:
    rows = re.findall(r"^\| ([\d.]+) B \| (\w+) (fp8|int4) \| (.*) \|$", OPERATIONS, re.M)
    assert len(rows) == 12
    parameters = {"0.6": 0.6e9, "1.5": 1.78e9, "7": 7.62e9}
    for size, gpu, form, told in rows:
        assert told.split(" | ") == calculate(parameters[size], GPUS[gpu], form), (size, gpu)


@pytest.mark.parametrize("name", ["docs/containers.md", "deploy/compose.yaml"])
def test_the_secret_that_compose_asks_for_is_made_before_it_is_started(name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    starts = [n for n, line in enumerate(lines) if "docker compose -f" in line]
    assert starts
    for n in starts:
        assert "export CURT_CACHE_SECRET=$(openssl rand -hex 32)" in lines[n - 1]
        assert "MODEL=$PWD/" in lines[n]


@pytest.mark.parametrize("name", ["promises.md", "corpus.md"])
def test_every_promise_names_a_test_that_there_is(name: str) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    named, file = 0, ""
    for path, test in re.findall(r"`([\w/]*(?:\.py)?)::(test_\w+)`", page):
        file = path or file  # the same as the one before
        code = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {test}\(", code, re.M), f"{file}::{test}"
        named += 1
    assert named > 30


def test_what_is_intended_and_what_is_not_goes_with_a_model() -> None:
    for name in ("operations.md", "model-card-template.md", "model-card-demo.md"):
        page = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert NOTICE in page, name
        assert "erson decides" in page, name


def test_every_opt_in_of_the_tests_is_documented_with_its_environment() -> None:
    named = {
        name
        for file in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"CURT_TEST_[A-Z]+(?:_[A-Z]+)*", file.read_text(encoding="utf-8"))
    }
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    told = set(re.findall(r"\b(CURT_TEST_[A-Z_]+)=\S*\.venv-\w+", page))
    assert {"CURT_TEST_VLLM", "CURT_TEST_RAY"} <= named
    assert named - {"CURT_TEST_CHECKPOINT"} == told  # which needs no environment of its own
    assert "CURT_TEST_CHECKPOINT" in page
    for script in re.findall(r"^ {4}(deploy/\S+\.sh)", page, re.M):
        assert (ROOT / script).is_file()
