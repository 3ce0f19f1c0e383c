from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress.tensorrt.formats import Precision
from compress.tensorrt.quantise import quantise
from compress.tensorrt.ranks import assemble_ranks, verify_ranks
from compress.tensorrt.verify import VerificationError
from curt.files import write_json
from tests.compress.onnx.exports import make_untied_model

SPLITS = ((1, 1), (2, 1), (1, 2), (2, 2))
EXAMPLES = [list(range(5, 60)), list(range(60, 140))]

# AWQ's blocks of 128 and SmoothQuant's scales cannot be split over the micro model's heads.
SHARDED: tuple[Precision, ...] = ("bf16", "fp8", "nvfp4")
WHOLE: tuple[Precision, ...] = ("int4_awq", "int8_sq")


@pytest.fixture(scope="module")
def parent(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_untied_model(tmp_path_factory.mktemp("ranks") / "model", micro_model)


def write(parent: Path, precision: Precision, split: tuple[int, int], out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    quantise(parent, precision, EXAMPLES, 0, out, (out / "ranks", *split))
    return out / "ranks"


@pytest.fixture(scope="module")
def sharded(parent: Path) -> dict[tuple[Precision, tuple[int, int]], Path]:
    return {
        (precision, split): write(parent, precision, split, parent.parent / f"{precision}-{split}")
        for precision in SHARDED
        for split in SPLITS
    }


def as_bytes(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, bytes]]:
    return {
        name: (tensor.shape, tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("precision", SHARDED)
def test_shards_reassemble_to_one_gpus_checkpoint_exactly(
    sharded: dict[tuple[Precision, tuple[int, int]], Path], parent: Path, precision: Precision
) -> None:
    alone = as_bytes(load_file(sharded[precision, (1, 1)] / "rank0.safetensors"))
    for split in SPLITS:
        folder = sharded[precision, split]
        assert as_bytes(assemble_ranks(folder)) == alone
        figures = verify_ranks(folder, parent, precision)
        assert figures["engine_ranks"] == split[0] * split[1]
        assert figures["engine_worst_error_of_bound"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("precision", WHOLE)
def test_smoothed_formats_are_verified_over_pipeline_stages(
    parent: Path, tmp_path: Path, precision: Precision
) -> None:
    folder = write(parent, precision, (1, 2), tmp_path)
    assert 0 < verify_ranks(folder, parent, precision)["engine_worst_error_of_bound"] <= 1
    with pytest.raises(ValueError, match="no engine checkpoint for 2 × 1 GPUs"):
        write(parent, precision, (2, 1), tmp_path / "two")


@pytest.mark.slow
def test_the_unified_checkpoint_does_not_depend_on_the_sharded_one(
    sharded: dict[tuple[Precision, tuple[int, int]], Path], parent: Path, tmp_path: Path
) -> None:
    quantise(parent, "fp8", EXAMPLES, 0, tmp_path)
    beside = sharded["fp8", (2, 1)].parent
    names = ("model.safetensors", "hf_quant_config.json")
    assert [(tmp_path / n).read_bytes() for n in names] == [
        (beside / n).read_bytes() for n in names
    ]


@pytest.mark.slow
def test_what_the_exporter_leaves_out_is_said(
    sharded: dict[tuple[Precision, tuple[int, int]], Path],
) -> None:
    config = json.loads((sharded["bf16", (2, 2)] / "config.json").read_text())
    assert config["rotary_base"] == 50_000
    assert config["qwen_type"] == "qwen3"
    assert config["tie_word_embeddings"] is False
    assert config["mapping"] == {"world_size": 4, "tp_size": 2, "pp_size": 2}
    assert "rank" not in config


def scale(key: str, factor: float) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[key] = (tensors[key].float() * factor).to(tensors[key].dtype)

    return change


def swap_gate_and_up(tensors: dict[str, Tensor]) -> None:
    names = "transformer.layers.0.mlp.fc.weight", "transformer.layers.0.mlp.gate.weight"
    tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]


def drop_norm(tensors: dict[str, Tensor]) -> None:
    del tensors["transformer.layers.0.input_layernorm.weight"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "change", "fault"),
    [
        ("bf16", scale("transformer.layers.1.attention.qkv.weight", 1.1), "qkv.weight differs"),
        ("bf16", scale("lm_head.weight", 1.1), "lm_head.weight differs"),
        ("bf16", swap_gate_and_up, "mlp.fc.weight differs"),
        ("bf16", drop_norm, "input_layernorm.weight is missing"),
        ("fp8", swap_gate_and_up, "error bound"),
        ("fp8", scale("transformer.layers.0.mlp.proj.weights_scaling_factor", 1.1), "weight_scale"),
        ("nvfp4", scale("transformer.layers.0.mlp.proj.weights_scaling_factor_2", 2), "scale_2"),
    ],
)
def test_an_altered_rank_is_found(
    sharded: dict[tuple[Precision, tuple[int, int]], Path],
    parent: Path,
    tmp_path: Path,
    precision: Precision,
    change: Callable[[dict[str, Tensor]], None],
    fault: str,
) -> None:
    folder = tmp_path / "altered"
    shutil.copytree(sharded[precision, (1, 1)], folder)
    tensors = load_file(folder / "rank0.safetensors")
    change(tensors)
    save_file(tensors, folder / "rank0.safetensors")
    with pytest.raises(VerificationError, match=fault):
        verify_ranks(folder, parent, precision)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("rotary_base", None, "rotary_base is None"),
        ("tie_word_embeddings", True, "tie_word_embeddings"),
        ("quantization", {"quant_algo": "FP8"}, "quant_algo"),
        ("mapping", {"world_size": 1, "tp_size": 2, "pp_size": 1}, "does not multiply"),
    ],
)
def test_an_altered_engine_setting_is_found(
    sharded: dict[tuple[Precision, tuple[int, int]], Path],
    parent: Path,
    tmp_path: Path,
    key: str,
    value: object,
    fault: str,
) -> None:
    folder = tmp_path / "altered"
    shutil.copytree(sharded["bf16", (2, 1)], folder)
    config = json.loads((folder / "config.json").read_text())
    if value is None:
        del config[key]
    write_json(folder / "config.json", config if value is None else config | {key: value})
    with pytest.raises((VerificationError), match=fault):
        verify_ranks(folder, parent, "bf16")


@pytest.mark.slow
def test_ranks_that_disagree_on_a_shared_number_are_refused(
    sharded: dict[tuple[Precision, tuple[int, int]], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "altered"
    shutil.copytree(sharded["fp8", (2, 1)], folder)
    tensors = load_file(folder / "rank1.safetensors")
    scale("transformer.layers.0.mlp.proj.weights_scaling_factor", 1.5)(tensors)
    save_file(tensors, folder / "rank1.safetensors")
    with pytest.raises(ValueError, match="differs between ranks"):
        assemble_ranks(folder)
