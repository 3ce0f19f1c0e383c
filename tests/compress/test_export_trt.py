from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from compress.export_trt import ExportTrtConfig, export_trt, start_engine
from compress.verify_trt import Precision, VerificationError, verify_checkpoint
from curt.artifact import load_manifest, parent_of
from curt.config import load_config
from curt.files import write_json
from tests.compress.exports import make_untied_model, write_cases
from tests.micro import FACTS

PRECISIONS: tuple[Precision, ...] = ("fp8", "int4_awq", "bf16")
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
        model=model, out=out, precision=precision, cases=cases, calibration_cases=6, max_kl=5.0
    )
    export_trt(config)
    return out


def check(folder: Path, parent: Path, precision: Precision) -> dict[str, float]:
    return verify_checkpoint(folder, parent, precision, FACTS)


def test_the_shipped_settings_are_read() -> None:
    arguments = ["@configs/demo/export-trt.toml", "--model", "m", "--out", "o"]
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
    assert figures["quantised_weights"] == (0 if precision == "bf16" else 14)
    assert figures["worst_error_of_bound"] <= 1
    assert AutoConfig.from_pretrained(folder).rope_parameters["rope_theta"] == 50_000
    assert os.access(folder / "launch.sh", os.X_OK)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_tied_embeddings_are_stored_once(
    micro_model: Path, tmp_path: Path, precision: Precision
) -> None:
    folder = make_checkpoint(micro_model, tmp_path / precision, precision)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.slow
def test_the_launcher_hands_its_own_folder_to_the_server(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    server = tmp_path / "trtllm-serve"
    server.write_text('#!/bin/sh\necho "$@"\n')
    server.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/sh", str(checkpoints["fp8"] / "launch.sh"), "--log_level", "info"],
        env={"PATH": path, "PORT": "9000"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    words = done.stdout.split()
    assert words[0] == str(checkpoints["fp8"])
    assert words[words.index("--port") + 1] == "9000"
    assert Path(words[words.index("--config") + 1]).is_file()
    assert words[-2:] == ["--log_level", "info"]


def flip(key: str, bits: int) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[key].view(torch.uint8)[3, 5] ^= bits

    return change


def scale(key: str, factor: float) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[key] = (tensors[key].float() * factor).to(tensors[key].dtype)

    return change


def drop(key: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[key]

    return change


def swap_nibbles(tensors: dict[str, Tensor]) -> None:
    packed = tensors[f"{Q_PROJ}.weight"]
    tensors[f"{Q_PROJ}.weight"] = (packed >> 4) | (packed << 4)


def add_stranger(tensors: dict[str, Tensor]) -> None:
    tensors["model.stranger.weight"] = torch.ones(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "change", "fault"),
    [
        ("fp8", flip(f"{Q_PROJ}.weight", 0x20), "error bound"),
        ("fp8", scale(f"{Q_PROJ}.weight_scale", 1.02), "weight_scale is"),
        ("fp8", scale(f"{Q_PROJ}.input_scale", 0.0), "input_scale"),
        ("fp8", drop(f"{DOWN_PROJ}.weight_scale"), "weight_scale is missing"),
        ("fp8", scale("model.norm.weight", 1.5), "norm.weight differs"),
        ("fp8", drop("lm_head.weight"), "lm_head.weight is missing"),
        ("fp8", add_stranger, "stranger.weight is not expected"),
        ("int4_awq", flip(f"{Q_PROJ}.weight", 0x02), "error bound"),
        ("int4_awq", flip(f"{DOWN_PROJ}.weight", 0x20), "error bound"),
        ("int4_awq", swap_nibbles, "error bound"),
        ("int4_awq", scale(f"{DOWN_PROJ}.weight_scale", 1.1), "largest magnitude"),
        ("int4_awq", scale(f"{DOWN_PROJ}.pre_quant_scale", 2.0), "error bound"),
        ("int4_awq", scale("model.layers.0.input_layernorm.weight", 1.2), "off by"),
        ("int4_awq", scale("model.layers.0.input_layernorm.weight", -1.0), "positive multiple"),
        ("int4_awq", drop(f"{Q_PROJ}.weight"), "q_proj.weight is missing"),
        ("bf16", scale("model.embed_tokens.weight", 1.01), "embed_tokens.weight differs"),
    ],
)
def test_an_altered_tensor_is_found(
    checkpoints: dict[str, Path],
    untied: Path,
    tmp_path: Path,
    precision: Precision,
    change: Callable[[dict[str, Tensor]], None],
    fault: str,
) -> None:
    folder = tmp_path / "altered"
    shutil.copytree(checkpoints[precision], folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(VerificationError, match=fault):
        check(folder, untied, precision)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "key", "value", "fault"),
    [
        ("config.json", "rope_theta", 10_000.0, "rope_theta"),
        ("config.json", "rope_theta", None, "rope_theta"),
        ("config.json", "architectures", None, "architectures"),
        ("config.json", "tie_word_embeddings", True, "tie_word_embeddings"),
        ("config.json", "quantization_config", {}, "quant_algo"),
        ("config.json", "eos_token_id", 0, "eos_token_id"),
        ("hf_quant_config.json", "quantization", {}, "quant_algo"),
        ("tokenizer_config.json", "tokenizer_class", "TokenizersBackend", "tokenizer_class"),
        ("tokenizer_config.json", "eos_token", "<|endoftext|>", "eos_token_id"),
    ],
)
def test_an_altered_setting_is_found(
    checkpoints: dict[str, Path],
    untied: Path,
    tmp_path: Path,
    file: str,
    key: str,
    value: object,
    fault: str,
) -> None:
    folder = tmp_path / "altered"
    shutil.copytree(checkpoints["fp8"], folder)
    settings = json.loads((folder / file).read_text())
    write_json(folder / file, settings | {key: value})
    with pytest.raises(VerificationError, match=fault):
        check(folder, untied, "fp8")


@pytest.mark.slow
def test_another_tokenizer_or_a_lost_quantisation_file_is_found(
    checkpoints: dict[str, Path], untied: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "altered"
    shutil.copytree(checkpoints["fp8"], folder)
    (folder / "hf_quant_config.json").unlink()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    write_json(folder / "tokenizer.json", tokenizer)
    with pytest.raises(VerificationError, match="other ids") as error:
        check(folder, untied, "fp8")
    assert "hf_quant_config.json is missing" in str(error.value)


@pytest.mark.slow
def test_a_refused_checkpoint_leaves_nothing_behind(untied: Path, tmp_path: Path) -> None:
    cases = write_cases(tmp_path / "cases.jsonl")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="max_kl 0"):
        export_trt(ExportTrtConfig(model=untied, out=out, cases=cases, max_kl=0.0))
    assert [p.name for p in tmp_path.iterdir()] == ["cases.jsonl"]


@pytest.mark.gpu
@pytest.mark.slow
def test_tensorrt_llm_loads_the_checkpoint(checkpoints: dict[str, Path]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    pytest.importorskip("tensorrt_llm")
    assert start_engine(checkpoints["fp8"], [5, 6, 7])
