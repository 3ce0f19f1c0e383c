"""Every recipe for larger models trains for real, scaled down to a model of a few thousand weights.

What is left out: vLLM, which the processors at hand need not have, and the size.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl import GRPOConfig

from curt.artifact import load_manifest
from curt.checkpoint import CheckpointConfig, write_checkpoint
from curt.config import load_config
from curt.corpus.build.pipeline import CorpusConfig, build_corpus
from curt.corpus.case import OWN
from curt.corpus.store import read_cases, write_cases
from curt.dialogue import PROMPT_VERSION, THINK_END
from curt.engines.tokenizer import PromptTokenizer
from curt.hardware import choose_bf16
from tests.cases import common_cases
from tests.train.training_runs import ROOT, break_off, grpo_config, made_by, make_corpus, sft_config
from train.data.trajectories import read_rollouts
from train.grpo import GRPOSettings, train_grpo, trl_options
from train.loop.trainer import RecordingTrainer
from train.runs.checkpoints import run_folder
from train.sft import SFTConfig, train_warm_start
from train.star import StarConfig, collect_reasonings

FOLDERS = ("qwen3-0.6b", "qwen2.5-7b")
SFT = ("sft", "sft-lora")
GRPO = ("grpo", "grpo-lora", "grpo-server", "pure-rl")
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
@pytest.mark.parametrize("name", [*GRPO, "grpo-own"])
def test_trl_knows_every_setting_and_eight_processes_share_a_step(tmp_path, folder, name):
    config = GRPOSettings.model_validate(shipped(GRPOSettings, folder, name))
    for processes in (1, 2, 4, 8):
        options = trl_options(config, tmp_path, processes)
        rows = options["per_device_train_batch_size"] * options["gradient_accumulation_steps"]
        assert rows * processes == config.prompts * config.generations
        assert rows % config.generations == 0
    arguments = GRPOConfig(**trl_options(config, tmp_path), use_cpu=True)
    assert arguments.use_vllm
    assert arguments.bf16 == choose_bf16(True)
    assert arguments.vllm_mode == ("server" if name == "grpo-server" else "colocate")


def scaled_sft(corpus: Path, model: Path, out: Path, folder: str, name: str) -> SFTConfig:
    small = SMALL | {"corpus": corpus, "model": str(model), "out": out, "cases": 8,
                     "batch": 4, "micro_batch": 2}  # fmt: skip
    return SFTConfig.model_validate(shipped(SFTConfig, folder, name) | small)


def scaled_grpo(corpus: Path, model: Path, out: Path, folder: str, name: str) -> GRPOSettings:
    settings = shipped(GRPOSettings, folder, name)
    trl = {k: v for k, v in settings["trl"].items() if "vllm" not in k}
    small = SMALL | {"corpus": corpus, "model": str(model), "out": out, "steps": 2,
                     "prompts": 2, "generations": 4, "micro_batch": 4, "budgets": [16],
                     "learning_rate": 1e-4, "trackers": [], "trl": trl,
                     "tell_grammar": False}  # fmt: skip
    return GRPOSettings.model_validate(settings | small)


def test_scaled_down_the_files_not_trained_below_are_one_that_is(tmp_path):
    places = tmp_path, tmp_path, tmp_path / "out"

    def scaled(scale, folder, name):
        found = scale(*places, folder, name).model_dump(mode="json")
        if found["lora"]:  # the adapters' sizes are the models' own
            found["lora"] |= {"rank": 1, "alpha": 1}
        return found | {"learning_rate": 1.0, "seed": 0}

    for name in SFT:
        assert scaled(scaled_sft, FOLDERS[0], name) == scaled(scaled_sft, FOLDERS[1], name)
    for name in GRPO:
        assert scaled(scaled_grpo, FOLDERS[0], name) == scaled(scaled_grpo, FOLDERS[1], name)
    server = scaled(scaled_grpo, FOLDERS[0], "grpo-server")
    assert server == scaled(scaled_grpo, FOLDERS[0], "grpo")


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "name"), [*zip(FOLDERS, SFT, strict=True)])
def test_the_warm_start_trains_scaled_down(tmp_path, made, folder, name):
    corpus, model = made
    config = scaled_sft(corpus, model, tmp_path / "out", folder, name)
    assert (config.lora is not None) == name.endswith("lora")
    folder_ = made_by(train_warm_start, config)
    assert_whole_and_trained(folder_, model)
    history = json.loads((folder_ / "history.json").read_bytes())  # for the report's curve
    assert [row["step"] for row in history] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "grpo-lora", "pure-rl"])
def test_grpo_trains_scaled_down(tmp_path, made, name):
    corpus, model = made
    config = scaled_grpo(corpus, model, tmp_path / "out", FOLDERS[0], name)
    assert (config.lora is not None) == name.endswith("lora")
    folder_ = made_by(train_grpo, config)
    if config.enforce_budgets:
        assert all(r["thinking_tokens"] <= 16 for r in rollouts_of(folder_))
    assert_whole_and_trained(folder_, model)
    assert len(json.loads((folder_ / "history.json").read_bytes())) == 2


def rollouts_of(folder: Path) -> list[dict]:
    return read_rollouts(run_folder(folder) / "trajectories").to_pylist()


@pytest.mark.slow
def test_a_checkpoints_own_reasoning_is_collected_learned_and_made_short(tmp_path, made):
    """The whole path of one folder, each stage by its shipped file and the paths it names."""
    _, model = made
    build_corpus(CorpusConfig(out=tmp_path / "corpus", train=8, dev=2, test=2))
    places = {
        "artifacts/qwen3-0.6b/": tmp_path, "artifacts/cail/": tmp_path, "Qwen/Qwen3-0.6B": model,
    }  # fmt: skip

    def scaled(cls, name: str, **changes):
        text = (ROOT / "configs/qwen3-0.6b" / f"{name}.toml").read_text()
        for here, there in places.items():
            text = text.replace(f'"{here}', f'"{there}/' if here.endswith("/") else f'"{there}')
        return cls.model_validate(tomllib.loads(text) | changes)

    write_checkpoint(scaled(CheckpointConfig, "checkpoint", out=tmp_path / "start", **SMALL))
    star = scaled(StarConfig, "star", samples=1, budget=8)
    collect_reasonings(star)
    found = [replace(c, reasonings={OWN: "醉驾"}) for c in read_cases(star.out / "train.jsonl")]
    write_cases(star.out / "train.jsonl", found)  # what a model that knows something would write
    train_warm_start(scaled(SFTConfig, "sft-own", batch=4, micro_batch=2, **SMALL))
    config = scaled(
        GRPOSettings, "grpo-own", max_thinking_tokens=16, steps=1, prompts=2, generations=4,
        micro_batch=4, trl={}, trackers=[], curriculum={"start_levels": [8], "levels": [8]},
    )  # fmt: skip
    folder = made_by(train_grpo, config)
    assert load_manifest(folder).prompt_version == PROMPT_VERSION  # the grammar is learned by now
    assert all(row["thinking_tokens"] <= 8 for row in rollouts_of(folder))


@pytest.mark.slow
@pytest.mark.parametrize("compact", [True, False])
def test_thinking_is_ended_at_the_stated_budget_and_what_ends_it_is_not_learned(
    tmp_path, micro_model, made, monkeypatch, compact
):
    corpus, _ = made
    changes = {
        "budgets": [8], "steps": 1, "trackers": [], "compact": compact, "learning_rate": 1e-5,
    }  # fmt: skip
    if compact:
        changes["seed_rollouts"] = True
    config = grpo_config(corpus, micro_model, tmp_path / "out", enforce_budgets=True, **changes)
    masks = []
    compute = RecordingTrainer._compute_loss

    def spy(self, model, inputs):
        masks.append(inputs["tool_mask"] * inputs["completion_mask"])
        return compute(self, model, inputs)

    monkeypatch.setattr(RecordingTrainer, "_compute_loss", spy)
    rows = rollouts_of(made_by(train_grpo, config))
    end = PromptTokenizer(micro_model).single_id(THINK_END)
    forced = [row for row in rows if row["thinking_tokens"] == 8]
    assert len(forced) > 4  # random weights seldom end it
    assert all(row["thinking_tokens"] <= 8 for row in rows)
    assert all(row["token_ids"][8] == end and len(row["token_ids"]) <= 8 + 1 + 64 for row in forced)
    trained = sum(int(mask.sum()) for mask in masks)
    assert trained == sum(len(row["token_ids"]) for row in rows) - len(forced)
    if compact:  # what is thought within the budget is what is thought without
        free = grpo_config(corpus, micro_model, tmp_path / "free", **changes)
        monkeypatch.undo()
        pairs = zip(rows, rollouts_of(made_by(train_grpo, free)), strict=True)
        assert all(a["token_ids"][:8] == b["token_ids"][:8] for a, b in pairs)


@pytest.mark.slow
def test_an_adapter_that_is_kept_gives_the_merged_model(tmp_path, made):
    corpus, model = made
    settings = shipped(SFTConfig, "qwen3-0.6b", "sft-lora")
    small = SMALL | {"corpus": corpus, "model": str(model), "out": tmp_path / "out", "cases": 4,
                     "batch": 4, "micro_batch": 2, "lora": {"rank": 4, "keep": True}}  # fmt: skip
    folder = made_by(train_warm_start, SFTConfig.model_validate(settings | small))
    base = AutoModelForCausalLM.from_pretrained(model)
    adapted = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
    merged = load_file(folder / "model.safetensors")
    for name, weight in adapted.state_dict().items():
        if name in merged:
            torch.testing.assert_close(weight, merged[name])
    assert "adapter/adapter_model.safetensors" in load_manifest(folder).files


@pytest.mark.parametrize("cls", [SFTConfig, GRPOSettings])
def test_what_a_quantised_base_lacks_is_said_before_the_run(tmp_path, micro_model, cls):
    if find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is there")
    write_cases(tmp_path / "train.jsonl", common_cases(1, "train"))
    config = cls(
        corpus=tmp_path, model=str(micro_model), out=tmp_path / "out", lora={"quantised": True}
    )
    with pytest.raises(ValueError, match="needs the package bitsandbytes: install"):
        (train_warm_start if cls is SFTConfig else train_grpo)(config)
    assert not run_folder(config.out).exists()


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("bitsandbytes"), reason="needs the package bitsandbytes")
def test_adapters_train_on_a_base_in_four_bits_and_are_merged_into_the_whole_one(tmp_path, made):
    corpus, model = made
    settings = shipped(SFTConfig, "qwen2.5-7b", "sft-lora")
    adapters = {"rank": 4, "quantised": True}
    small = SMALL | {"corpus": corpus, "model": str(model), "out": tmp_path / "sft", "cases": 4,
                     "batch": 4, "micro_batch": 2, "lora": adapters}  # fmt: skip
    trained = made_by(train_warm_start, SFTConfig.model_validate(settings | small))
    assert_whole_and_trained(trained, model)

    settings = shipped(GRPOSettings, "qwen2.5-7b", "grpo-lora")
    few = SMALL | {"corpus": corpus, "model": str(trained), "out": tmp_path / "grpo", "steps": 2,
                   "prompts": 2, "generations": 4, "micro_batch": None, "budgets": [16],
                   "learning_rate": 1e-3, "lora": adapters, "trackers": [], "trl": {}}  # fmt: skip
    assert_whole_and_trained(
        made_by(train_grpo, GRPOSettings.model_validate(settings | few)), trained
    )


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

    break_off(monkeypatch, train_grpo, config)
    shutil.rmtree(tmp_path / "broken.run" / "checkpoint-4")
    weights = [load_file(f / "model.safetensors") for f in (whole, made_by(train_grpo, config))]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
