from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check import GpuCheckConfig, check
from curt.config import load_config
from tests.train.training_runs import write_toml
from train.grpo import GRPOSettings
from train.plan.shapes import ModelShape
from train.sft import SFTConfig

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "gpu-check"
SMALL = {"hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1, "ffn": 128, "vocab": 600}


def test_the_model_has_a_hundred_million_parameters():
    shape = load_config(SFTConfig, [f"@{FOLDER / 'sft.toml'}"]).shape
    fields = shape.model_dump(exclude={"context", "rope_theta"})
    parameters = ModelShape("check", **fields, tied=True, qk_norm=True).parameters
    assert parameters == pytest.approx(100e6, rel=0.1)


@pytest.mark.slow
def test_every_stage_of_the_check_runs_scaled_down(tmp_path):
    for cls, name, changes in (
        (SFTConfig, "sft", {"shape": SMALL, "batch": 4}),
        (GRPOSettings, "grpo", {"steps": 3, "prompts": 2, "generations": 2, "budgets": [8],
                                "max_thinking_tokens": 8}),
    ):  # fmt: skip
        shipped = load_config(cls, [f"@{FOLDER / name}.toml"]).model_dump(mode="json")
        (tmp_path / f"{name}.toml").write_text(write_toml(
            {k: v for k, v in (shipped | changes).items() if v is not None}
        ))  # fmt: skip
    out = tmp_path / "report" / "check.json"
    out.parent.mkdir()
    check(GpuCheckConfig(configs=tmp_path, out=out, cases=8, tokens=[2, 4], repeats=3))
    report = json.loads(out.read_bytes())
    assert report["stage_s"].keys() == {"warm-start", "packed", "plain"}
    assert all(report["step_s"][name]["median"] > 0 for name in ("packed", "plain"))
    assert report["decode"]["4_tokens_ms"]["median"] > 0
    assert (report["gpu"] is None) == (not torch.cuda.is_available())


def test_the_script_ends_within_eight_minutes_and_starts_that_module():
    script = (FOLDER / "run.sh").read_text()
    assert int(re.search(r"timeout (\d+)", script)[1]) <= 480
    subprocess.run(["bash", "-n", str(FOLDER / "run.sh")], check=True)
    assert "-m benchmarks.gpu_check" in script


@pytest.mark.gpu
def test_a_gpu_keeps_the_time_limit(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    subprocess.run([str(FOLDER / "run.sh"), str(tmp_path / "check.json")], check=True, cwd=ROOT)
    assert json.loads((tmp_path / "check.json").read_bytes())["gpu"]
