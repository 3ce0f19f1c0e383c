from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from compress.onnx.builder import build_graph
from compress.onnx.checkpoint import check_graph_weights, write_gptq_checkpoint
from compress.onnx.export import ExportOrtConfig, export_ort
from compress.onnx.gptq import QuantisedWeight, quantise_model
from compress.onnx.recipes import Int4
from compress.prompts import hash_examples, sample_prompts
from curt.artifact import load_manifest, write_artifact
from curt.corpus.store import read_cases
from curt.dialogue import Prompts
from curt.engines.onnx.graph import open_graph
from tests.compress.onnx.exports import make_untied_model, write_cases
from tests.compress.onnx.nearest import round_to_nearest

PROMPTS = [[5, 6, 7, 8, 9, 10, 30, 31, 12] * 4, [40, 41, 42, 43, 6, 5, 7] * 5]


class Exact(Int4):
    """Products in float32, so that the graph's values show."""

    accuracy_level = 1


RECIPE = Exact()


def logits_after(folder: Path, prompt: list[int]) -> np.ndarray:
    sequence = open_graph(folder, 1, allow_spinning=False).begin(len(prompt))
    sequence.feed(prompt)
    return sequence.logits()


def quantise(model: Path) -> dict[str, QuantisedWeight]:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return quantise_model(loaded, PROMPTS, 32)


def test_the_checkpoint_spells_what_the_builder_reads(micro_model: Path, tmp_path: Path) -> None:
    weights = quantise(micro_model)
    write_gptq_checkpoint(micro_model, weights, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    weight, packed = weights[name], tensors[f"{name}.qweight"]
    rows, columns = weight.codes.shape
    assert packed.shape == (columns // 8, rows)
    assert tensors[f"{name}.qzeros"].shape == (columns // 32, rows // 8)
    for row, column in ((0, 0), (3, 9), (rows - 1, columns - 1)):
        code = (int(packed[column // 8, row]) >> (4 * (column % 8))) & 15
        assert code == int(weight.codes[row, column])
        zeros = int(tensors[f"{name}.qzeros"][column // 32, row // 8])
        assert ((zeros >> (4 * (row % 8))) + 1) & 15 == int(weight.zero_points[row, column // 32])
    assert f"{name}.weight" not in tensors
    assert "lm_head.weight" not in tensors
    shape = json.loads((tmp_path / "config.json").read_text())
    assert shape["quantization_config"]["quant_method"] == "gptq"
    assert not (tmp_path / "manifest.json").exists()


def test_rows_that_do_not_pack_are_refused(micro_model: Path, tmp_path: Path) -> None:
    weight = round_to_nearest(torch.randn(12, 32), 32)
    with pytest.raises(ValueError, match=r"q_proj is 12 by 32: GPTQ needs multiples of 8"):
        write_gptq_checkpoint(micro_model, {"model.layers.0.self_attn.q_proj": weight}, tmp_path)


def test_weights_of_two_block_sizes_are_refused(micro_model: Path, tmp_path: Path) -> None:
    pair = {f"{size}": round_to_nearest(torch.randn(8, 64), size) for size in (16, 32)}
    with pytest.raises(ValueError, match=r"\[16, 32\]"):
        write_gptq_checkpoint(micro_model, pair, tmp_path)


@pytest.mark.slow
def test_the_graph_computes_with_exactly_the_calibrated_values(
    micro_model: Path, tmp_path: Path
) -> None:
    """Down to the logits, of an untied model, so that its output layer is the builder's own."""
    model = make_untied_model(tmp_path / "model", micro_model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    weights = quantise_model(loaded, PROMPTS, 32)
    write_gptq_checkpoint(model, weights, tmp_path / "checkpoint")
    build_graph(tmp_path / "checkpoint", tmp_path / "out", RECIPE)
    check_graph_weights(tmp_path / "out" / "model.onnx", weights)
    with torch.inference_mode():
        wanted = loaded(torch.tensor([PROMPTS[0]])).logits[0, -1].numpy()
    got = logits_after(tmp_path / "out", PROMPTS[0])
    assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()  # an int8 output layer

    damaged = onnx.load(str(tmp_path / "out" / "model.onnx"))
    [packed] = [
        tensor
        for tensor in damaged.graph.initializer
        if "1.mlp.up_proj" in tensor.name and tensor.name.endswith("qweight")
    ]
    array = numpy_helper.to_array(packed).copy()
    array.flat[7] ^= 1
    packed.CopyFrom(numpy_helper.from_array(array, packed.name))
    onnx.save(damaged, str(tmp_path / "damaged.onnx"))
    with pytest.raises(ValueError, match=r"up_proj.* holds other codes"):
        check_graph_weights(tmp_path / "damaged.onnx", weights)
    extra = weights | {"model.layers.9.mlp.up_proj": next(iter(weights.values()))}
    with pytest.raises(ValueError, match=r"lacks model.layers.9"):
        check_graph_weights(tmp_path / "out" / "model.onnx", extra)


@pytest.mark.slow
def test_biases_of_qwen2_survive(micro_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    parent = json.loads((micro_model / "config.json").read_text())
    shape = Qwen2Config(
        vocab_size=parent["vocab_size"],
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=parent["eos_token_id"],
        pad_token_id=parent["pad_token_id"],
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(shape).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5 if name.endswith("bias") else 0.08)
    limits = load_manifest(micro_model).model_dump(exclude={"tools", "created", "files"})
    with write_artifact(tmp_path / "model", limits) as folder:
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(micro_model).save_pretrained(folder)
    weights = quantise_model(model, PROMPTS, 32)
    write_gptq_checkpoint(tmp_path / "model", weights, tmp_path / "checkpoint")
    build_graph(tmp_path / "checkpoint", tmp_path / "out", RECIPE)
    check_graph_weights(tmp_path / "out" / "model.onnx", weights)
    with torch.inference_mode():
        wanted = model(torch.tensor([PROMPTS[1]])).logits[0, -1].numpy()
    got = logits_after(tmp_path / "out", PROMPTS[1])
    assert np.corrcoef(got, wanted)[0, 1] > 0.999


def config_for(model: Path, folder: Path, **changes: object) -> ExportOrtConfig:
    settings: dict[str, object] = {
        "precision": "int4",
        "cases": write_cases(folder / "cases.jsonl"),
        "calibration": write_cases(folder / "calibration.jsonl", 5),
        "calibration_cases": 4,
        "prompts": 2,
        "continuation_tokens": 8,
        "max_kl": 1.0,
    }
    return ExportOrtConfig(  # type: ignore[arg-type]
        model=model, out=folder / "out", **settings | changes
    )


def test_missing_calibration_cases_are_refused(micro_model: Path, tmp_path: Path) -> None:
    lacking = tmp_path / "none.jsonl"
    with pytest.raises(ValueError, match=r"no case file .*none.jsonl"):
        export_ort(config_for(micro_model, tmp_path, calibration=lacking))
    lacking.touch()
    with pytest.raises(ValueError, match=r"no cases to draw prompts from"):
        export_ort(config_for(micro_model, tmp_path, calibration=lacking))
    with pytest.raises(ValueError, match=r"calibration_cases"):
        config_for(micro_model, tmp_path, calibration_cases=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_manifest_says_what_was_calibrated_on(micro_model: Path, tmp_path: Path) -> None:
    config = config_for(micro_model, tmp_path)
    export_ort(config)
    manifest = load_manifest(config.out, expect="ort-genai")
    row = json.loads((config.out / "parity.json").read_text())
    samples = sample_prompts(
        list(read_cases(config.calibration)),
        Prompts(AutoTokenizer.from_pretrained(micro_model), 200),
        64,
        config.calibration_cases,
        config.seed,
        with_completion=True,
    )
    assert manifest.config["calibration_sha256"] == hash_examples(samples)
    assert manifest.config["precision"] == "int4"
    assert manifest.evaluation == row
    assert 4 < row["graph_bits_per_weight"] < 6.5  # the output layer has 8, each 32 a scale
