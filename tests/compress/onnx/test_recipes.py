from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compress.onnx.builder import check_graph, check_model
from compress.onnx.export import ExportOrtConfig
from compress.onnx.recipes import (
    DEFAULT_RECIPE,
    INTEGER_PRODUCT,
    RECIPES,
    W8A8,
    Int4,
    Rtn,
    quantise_activations,
)
from compress.onnx.speculation import GuessesConfig, add_guesses
from curt.artifact import load_manifest
from curt.engines.onnx.engine import OrtEngine
from curt.engines.onnx.graph import open_graph
from curt.engines.onnx.speculation import GUESSES
from curt.engines.protocol import Request
from tests.compress.onnx.exports import export, write_cases
from tests.micro import FACTS

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def artifact(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(micro_model, tmp_path_factory.mktemp("export") / "w8a8", "w8a8", likeliest=True)


@pytest.fixture(scope="module")
def whole(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(micro_model, tmp_path_factory.mktemp("export") / "fp32", "fp32", likeliest=True)


def test_the_default_is_one_for_the_export_and_the_makefile() -> None:
    assert DEFAULT_RECIPE == "w8a8"
    assert ExportOrtConfig(model=ROOT, out=ROOT).precision == DEFAULT_RECIPE
    for variable, expected in (("FORMAT", "w8a8"), ("ORT_PRECISION", "w8a8")):
        rule = f"tell-it:\n\t@echo $({variable})\ninclude Makefile\n"
        told = subprocess.run(
            ["make", "-s", "-f", "-", "tell-it", f"PYTHON={sys.executable}"],
            input=rule, cwd=ROOT, text=True, capture_output=True, check=True,
        )  # fmt: skip
        assert told.stdout.split() == [expected]


def test_the_makefile_compares_every_recipe_that_a_cpu_serves() -> None:
    told = subprocess.run(
        # without site-packages: make asks before anything is installed
        [sys.executable, "-S", "-m", "compress.onnx.recipes"], cwd=ROOT, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    assert told.stdout.split() == [name for name in RECIPES if name != "fp16"]


def test_a_recipe_asks_the_builder_for_what_is_left_to_round() -> None:
    assert "algo_config=k_quant_last" in Int4().builder_options()
    assert {"algo_config=rtn", "block_size=64"} <= set(Rtn().builder_options())
    assert {"block_size=128"} <= set(Rtn(block_size=128).builder_options())
    assert W8A8().builder_options() == []


def test_integer_products_take_any_width(micro_model: Path) -> None:
    check_model(micro_model, W8A8())


@pytest.mark.slow
def test_every_product_is_an_integer_one_of_seven_bits(artifact: Path) -> None:
    graph = onnx.load(artifact / "model.onnx").graph
    products = [node for node in graph.node if node.op_type == INTEGER_PRODUCT]
    assert products
    assert not [n for n in graph.node if n.op_type in ("MatMul", "MatMulNBits")]
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in products:
        weights = numpy_helper.to_array(tensors[node.input[1]])
        assert weights.dtype == np.int8
        assert np.abs(weights.astype(int)).max() <= 64  # two of them times 255 fit sixteen bits
        points = numpy_helper.to_array(tensors[node.input[3]])
        assert points.shape == (weights.shape[1],)  # a scale for each column
        assert not points.any()
    manifest = load_manifest(artifact, expect="ort-genai")
    assert manifest.precision == "w8a8"
    assert manifest.evaluation["graph_quantised_matrices"] == len(products)
    assert manifest.evaluation["kl"] < 0.05


@pytest.mark.slow
def test_weights_are_within_half_a_step_of_the_whole_ones(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "rounded")
    quantise_activations(folder / "model.onnx")
    rounded, exact = (
        {
            t.name: numpy_helper.to_array(t)
            for t in onnx.load(folder / "model.onnx").graph.initializer
        }
        for folder in (folder, whole)
    )
    names = [name.removesuffix("_quantized") for name in rounded if name.endswith("_quantized")]
    assert names
    for name in names:
        steps = rounded[f"{name}_scale"]
        gap = np.abs(rounded[f"{name}_quantized"] * steps - exact[name])
        assert (gap <= steps * 0.501).all()


@pytest.mark.slow
def test_it_runs_on_plain_onnxruntime_and_gives_the_same_text_every_time(artifact: Path) -> None:
    assert open_graph(artifact, 1, allow_spinning=False) is not None
    engine = OrtEngine(artifact, guided=False)
    assert engine.can_guess
    request = Request(FACTS[0], 16, 8)
    outs = [
        *engine.generate([request, request]),
        *OrtEngine(artifact, guided=False).generate([request]),
    ]
    assert len({out.text for out in outs}) == 1


@pytest.mark.slow
def test_its_guesses_are_bolder_than_those_of_a_costlier_format(
    artifact: Path, whole: Path, tmp_path: Path
) -> None:
    cases = write_cases(tmp_path / "cases.jsonl", 12)
    chances = {}
    for folder in (artifact, whole):
        out = tmp_path / folder.name
        add_guesses(GuessesConfig(artifact=folder, out=out, cases=cases))
        chances[folder.name] = json.loads((out / GUESSES).read_text())["least_chance"]
        OrtEngine(out, guided=False).generate([Request(FACTS[1], 16, 8)])
    assert chances["w8a8"] < chances["fp32"]


@pytest.mark.slow
def test_a_graph_without_products_is_refused_and_logging_left_as_it_was(
    artifact: Path, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no product to quantise"):
        quantise_activations(artifact / "model.onnx")
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    with pytest.raises(ValueError, match="quantised and"):
        check_graph(copy, W8A8())
    before = logging.root.manager.disable
    quantise_activations(copy / "model.onnx")
    assert logging.root.manager.disable == before
    assert check_graph(copy, W8A8())["graph_quantised_matrices"] > 0
