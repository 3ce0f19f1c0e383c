"""What the documents say of deploying, held against what there is."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from deploy import sizing
from deploy.sizing import MODELS, SERVED, SizingConfig, rate_per_s, thinking_tokens, token_ms
from serve.api.schemas import NOTICE

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def test_the_sizing_table_is_the_one_that_is_calculated() -> None:
    assert sizing.table(SizingConfig()) in OPERATIONS


def test_a_request_worked_out_by_hand() -> None:
    model, gpu = MODELS["1.5 B"], SERVED[0]
    assert gpu.gpu.name == "H200"
    token = 1.3 * (1.78 / 4.8 + 3)
    prefill = 2 * 1.78e9 * 500 / (0.4 * 1979e12) * 1e3 + 3
    assert token_ms(model, gpu) == pytest.approx(token)
    assert thinking_tokens(model, gpu, 400) == int((385 - prefill) / token) - 25 == 61
    assert rate_per_s(model, gpu, 32, 400) == pytest.approx(4800 / (prefill + 57 * token))
    assert rate_per_s(model, gpu, 61, 400) is not None
    assert rate_per_s(model, gpu, 62, 400) is None


def test_more_thinking_and_larger_models_never_come_for_free() -> None:
    for gpu in SERVED:
        for less, more in pairwise(MODELS.values()):
            assert thinking_tokens(less, gpu, 400) > thinking_tokens(more, gpu, 400)
        for model in MODELS.values():
            rates = [rate_per_s(model, gpu, budget, 400) or 0 for budget in range(0, 128, 8)]
            assert rates == sorted(rates, reverse=True)


def test_another_deadline_and_other_budgets_make_another_table() -> None:
    lines = sizing.table(SizingConfig(deadline_ms=1000, budgets=[38])).splitlines()
    assert lines[0].endswith("| thinking that fits | rate at 38 |")
    assert len(lines) == 2 + len(MODELS) * len(SERVED)
    (row,) = [line for line in lines if line.startswith("| 7 B | A10")]
    assert row.endswith("| 38 | 2 |")


@pytest.mark.parametrize("name", ["docs/containers.md", "deploy/compose.yaml"])
def test_the_secret_that_compose_asks_for_is_made_before_it_is_started(name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    starts = [n for n, line in enumerate(lines) if "docker compose -f" in line]
    assert starts
    for n in starts:
        assert "export CURT_CACHE_SECRET=$(openssl rand -hex 32)" in lines[n - 1]
        assert "MODEL=$PWD/" in lines[n]


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
