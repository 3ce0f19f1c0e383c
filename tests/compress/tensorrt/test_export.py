from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig

from compress.tensorrt.export import ExportTrtConfig, export_trt, start_engine
from compress.tensorrt.formats import Precision
from compress.tensorrt.replay import load_dequantised
from curt.artifact import load_manifest, parent_of
from curt.config import load_config
from tests.compress.onnx.exports import make_untied_model, write_cases

PRECISIONS: tuple[Precision, ...] = ("fp8", "int4_awq", "nvfp4", "bf16")
Q_PROJ = "model.layers.0.self_attn.q_proj"
DOWN_PROJ = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def untied(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_untied_model(tmp_path_factory.mktemp("trt") / "model", micro_model)


@pytest.fixture(scope="module")
def checkpoints(untied: Path) -> dict[str, Path]:
    return {p: make_checkpoint(untied, untied.parent / p, p) for p in PRECISIONS}


def make_checkpoint(model: Path, out: Path, precision: Precision) -> Path:
    cases = write_cases(out.parent / "cases.jsonl")
    config = ExportTrtConfig(
        model=model,
        out=out,
        precision=precision,
        cases=cases,
        calibration_cases=4,
        compared_cases=2,
        max_kl=5.0,
        max_nll_difference=5.0,
    )
    export_trt(config)
    return out


def test_the_shipped_settings_are_read() -> None:
    arguments = ["@configs/demo/compress-trt.toml", "--model", "m", "--out", "o"]
    config = load_config(ExportTrtConfig, [*arguments, "--precision", "int4_awq"])
    assert (config.precision, config.calibration_cases) == ("int4_awq", 64)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_checkpoint_is_verified_described_and_launchable(
    checkpoints: dict[str, Path], untied: Path, precision: Precision
) -> None:
    folder = checkpoints[precision]
    manifest = load_manifest(folder, expect="trtllm-hf")
    assert manifest.parent == parent_of(untied)
    assert manifest.precision == precision
    figures = json.loads((folder / "verification.json").read_text())
    assert manifest.evaluation == figures
    assert 0 <= figures["kl"] < 5
    assert figures["compared_cases"] == 2
    assert AutoConfig.from_pretrained(folder).rope_parameters["rope_theta"] == 50_000
    assert os.access(folder / "launch.sh", os.X_OK)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "int4_awq"])
def test_tied_embeddings_are_stored_once(
    micro_model: Path, tmp_path: Path, precision: Precision
) -> None:
    folder = make_checkpoint(micro_model, tmp_path / precision, precision)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.slow
def test_a_gpu_picks_the_format_and_sizes_the_server(untied: Path, tmp_path: Path) -> None:
    config = ExportTrtConfig(
        model=untied,
        out=tmp_path / "out",
        gpu="a10",
        cases=write_cases(tmp_path / "cases.jsonl"),
        compare_on=write_cases(tmp_path / "others.jsonl"),
        calibration_cases=4,
        compared_cases=2,
        max_kl=5.0,
        max_nll_difference=5.0,
    )
    export_trt(config)
    manifest = load_manifest(config.out, expect="trtllm-hf")
    assert manifest.precision == "int4_awq"
    assert manifest.config["precision_reason"].startswith("a10 is Ampere")
    assert manifest.config["calibration_cases"] == 4
    assert len(manifest.config["calibration_sha256"]) == 64
    options = yaml.safe_load((config.out / "serve-config.yaml").read_text())
    assert options["max_seq_len"] == 200 + 128 + 64 + 1 + 64  # 1: the forced </think>
    assert "600 GB/s" in (config.out / "serve-config.yaml").read_text()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_calibration_and_weights(
    checkpoints: dict[str, Path], untied: Path, tmp_path: Path
) -> None:
    again = make_checkpoint(untied, tmp_path / "again", "int4_awq")
    first, second = load_manifest(checkpoints["int4_awq"]), load_manifest(again)
    assert first.config["calibration_sha256"] == second.config["calibration_sha256"]
    assert first.files["model.safetensors"] == second.files["model.safetensors"]


def test_splits_the_model_does_not_allow_are_refused(micro_model: Path, tmp_path: Path) -> None:
    for wrong, fault in (
        ({"tensor_parallel": 3}, "tensor_parallel 3 does not divide num_attention_heads 2"),
        ({"gpu": "a10", "precision": "fp8"}, "fp8 does not run on a10"),
    ):
        with pytest.raises(ValueError, match=fault):
            export_trt(ExportTrtConfig(model=micro_model, out=tmp_path / "out", **wrong))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_refused_checkpoint_leaves_nothing_behind(untied: Path, tmp_path: Path) -> None:
    cases = write_cases(tmp_path / "cases.jsonl")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="max_kl 0"):
        export_trt(ExportTrtConfig(model=untied, out=out, cases=cases, max_kl=0.0))
    assert [p.name for p in tmp_path.iterdir()] == ["cases.jsonl"]


@pytest.mark.slow
def test_a_checkpoint_that_finds_the_cases_less_likely_is_refused(
    untied: Path, tmp_path: Path
) -> None:
    config = ExportTrtConfig(
        model=untied,
        out=tmp_path / "out",
        precision="bf16",
        cases=write_cases(tmp_path / "cases.jsonl"),
        compared_cases=2,
        max_kl=5.0,
        max_nll_difference=-1.0,
    )
    with pytest.raises(ValueError, match="more than max_nll_difference -1"):
        export_trt(config)
    assert not config.out.exists()


@pytest.mark.gpu
@pytest.mark.slow
def test_tensorrt_llm_loads_the_checkpoint(checkpoints: dict[str, Path]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    pytest.importorskip("tensorrt_llm")
    folder = checkpoints["fp8"]
    assert start_engine(folder, [5, 6, 7])


@pytest.mark.gpu
@pytest.mark.slow
def test_tensorrt_llm_answers_as_the_stored_numbers_do(checkpoints: dict[str, Path]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    tensorrt_llm = pytest.importorskip("tensorrt_llm")
    folder, prompt = checkpoints["bf16"], list(range(5, 60))
    options = yaml.safe_load((folder / "serve-config.yaml").read_text())
    sampling = tensorrt_llm.SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    with tensorrt_llm.LLM(model=str(folder), **options) as engine:
        written = engine.generate([prompt], sampling)[0].outputs[0].token_ids
    logits = load_dequantised(folder, "bf16")(torch.tensor([[*prompt, *written]])).logits[0]
    for position, token in enumerate(written, len(prompt) - 1):
        assert logits[position].max() - logits[position, token] < 0.1  # a tie, within bfloat16
