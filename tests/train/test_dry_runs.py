"""Every recipe for larger models trains for real, scaled down to a model of a few thousand weights.

What is left out: vLLM, which the processors at hand need not have, and the size.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl import GRPOConfig

from curt.artifact import load_manifest
from curt.config import load_config
from tests.train.training_runs import ROOT, made_by, make_corpus, sft_config
from train.grpo import GRPOSettings, train_grpo, trl_options
from train.sft import SFTConfig, train_warm_start

FOLDERS = ("qwen3-0.6b", "qwen2.5-7b")
SFT = ("sft", "sft-lora")
GRPO = ("grpo", "grpo-lora", "grpo-server")
SMALL = {"max_fact_tokens": 120, "max_thinking_tokens": 16}


def shipped(cls, folder: str, name: str) -> dict:
    file = ROOT / "configs" / folder / f"{name}.toml"
    return load_config(cls, [f"@{file}"]).model_dump(mode="json")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A corpus, and a small checkpoint that gets some answers right."""
    folder = tmp_path_factory.mktemp("dry")
    corpus = make_corpus(folder)
    trained = made_by(train_warm_start, sft_config(corpus, folder / "warm", epochs=8.0))
    plain = folder / "plain"
    shutil.copytree(trained, plain)
    (plain / "manifest.json").unlink()
    return corpus, plain


def assert_whole_and_trained(folder: Path, start: Path) -> None:
    """A model that loads without its adapters' library, and is not the one it started from."""
    assert load_manifest(folder, expect="hf").precision == "fp32"
    weights, before = (load_file(f / "model.safetensors") for f in (folder, start))
    assert weights.keys() == before.keys()
    assert any(not weights[name].equal(before[name]) for name in weights)
    _, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("name", GRPO)
def test_trl_knows_every_setting_and_eight_processes_share_a_step(tmp_path, folder, name):
    config = GRPOSettings.model_validate(shipped(GRPOSettings, folder, name))
    for processes in (1, 2, 4, 8):
        options = trl_options(config, tmp_path, processes)
        rows = options["per_device_train_batch_size"] * options["gradient_accumulation_steps"]
        assert rows * processes == config.prompts * config.generations
        assert rows % config.generations == 0
    arguments = GRPOConfig(**trl_options(config, tmp_path), use_cpu=True)
    assert arguments.use_vllm
    assert arguments.bf16
    assert arguments.vllm_mode == ("server" if name == "grpo-server" else "colocate")


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("name", SFT)
def test_the_warm_start_trains_scaled_down(tmp_path, made, folder, name):
    corpus, model = made
    small = SMALL | {"corpus": corpus, "model": str(model), "out": tmp_path / "out", "cases": 8,
                     "batch": 4, "micro_batch": 2}  # fmt: skip
    config = SFTConfig.model_validate(shipped(SFTConfig, folder, name) | small)
    assert (config.lora is not None) == name.endswith("lora")
    assert_whole_and_trained(made_by(train_warm_start, config), model)


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("name", GRPO)
def test_grpo_trains_scaled_down(tmp_path, made, folder, name):
    corpus, model = made
    settings = shipped(GRPOSettings, folder, name)
    trl = {k: v for k, v in settings["trl"].items() if "vllm" not in k}
    small = SMALL | {"corpus": corpus, "model": str(model), "out": tmp_path / "out", "steps": 2,
                     "prompts": 2, "generations": 4, "micro_batch": 4, "budgets": [16],
                     "learning_rate": 1e-4, "trackers": [], "trl": trl}  # fmt: skip
    config = GRPOSettings.model_validate(settings | small)
    assert (config.lora is not None) == name.endswith("lora")
    folder_ = made_by(train_grpo, config)
    assert_whole_and_trained(folder_, model)
    assert len(json.loads((folder_ / "history.json").read_bytes())) == 2


@pytest.mark.slow
def test_a_run_with_adapters_goes_on_from_its_checkpoint(tmp_path, made, monkeypatch):
    corpus, model = made
    small = SMALL | {"corpus": corpus, "model": str(model), "steps": 4, "prompts": 2,
                     "generations": 4, "micro_batch": None, "budgets": [16], "compact": True,
                     "learning_rate": 1e-3, "trackers": [], "trl": {}, "seed_rollouts": True,
                     "checkpoint_steps": 2, "bf16": False}  # fmt: skip
    settings = shipped(GRPOSettings, "qwen3-0.6b", "grpo-lora") | small
    whole = made_by(train_grpo, GRPOSettings.model_validate(settings | {"out": tmp_path / "whole"}))
    config = GRPOSettings.model_validate(settings | {"out": tmp_path / "broken"})

    def breaks_off(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("train.runs.weights.write_artifact", breaks_off)
        with pytest.raises(KeyboardInterrupt):
            train_grpo(config)
    shutil.rmtree(tmp_path / "broken.run" / "checkpoint-4")
    weights = [load_file(f / "model.safetensors") for f in (whole, made_by(train_grpo, config))]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
