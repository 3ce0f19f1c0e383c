from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compress.onnx.builder import (
    build_graph,
    check_graph,
    check_model,
    check_room,
    check_same_weights,
)
from compress.onnx.export import ExportOrtConfig, export_ort
from compress.onnx.recipes import Fp16, Fp32, Int4, Int8, KQuant, Recipe, Rtn
from curt.artifact import load_manifest
from tests.compress.onnx.exports import write_cases


def shaped(folder: Path, micro: Path, **changes: object) -> Path:
    """A folder with the micro model's config.json, changed, and its tokenizer."""
    folder.mkdir(exist_ok=True)
    shutil.copyfile(micro / "tokenizer.json", folder / "tokenizer.json")
    shape = json.loads((micro / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(shape | changes))
    return folder


def test_what_the_builder_can_make_is_let_through(micro_model: Path) -> None:
    for recipe in (
        KQuant(),
        Int8(),
        Fp32(),
        Fp16("cuda"),
        Rtn(block_size=128),
        Int4(block_size=128),
    ):
        check_model(micro_model, recipe)


@pytest.mark.parametrize("names", [["GPT2LMHeadModel"], [], None])
def test_an_unsupported_architecture_is_named(
    micro_model: Path, tmp_path: Path, names: list[str] | None
) -> None:
    model = shaped(tmp_path, micro_model, architectures=names)
    named = names[0] if names else "none"
    with pytest.raises(ValueError, match=rf"architecture {named} .*use one of .*Qwen3ForCausalLM"):
        check_model(model, Int4())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 200}, "hidden_size 200 is no multiple of block_size 32: use fp32"),
        ({"hidden_size": 144}, "hidden_size 144 is no multiple of block_size 32: use 16"),
        ({"intermediate_size": 272}, "intermediate_size 272 .* use 16"),
        ({"head_dim": 72}, "attention width 144 .* use 16"),
    ],
)
def test_a_width_that_blocks_do_not_divide_names_a_size_that_does(
    micro_model: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_model(shaped(tmp_path, micro_model, **changes), Int4())


def test_a_window_that_the_builder_leaves_out_is_refused(micro_model: Path, tmp_path: Path) -> None:
    model = shaped(tmp_path, micro_model, sliding_window=64, layer_types=None)
    with pytest.raises(ValueError, match="sliding_window of 64"):
        check_model(model, Fp32())
    check_model(shaped(tmp_path, micro_model, sliding_window=512, layer_types=None), Fp32())


def test_a_tokenizer_that_the_runtime_reads_otherwise_is_refused(
    micro_model: Path, tmp_path: Path
) -> None:
    model = shaped(tmp_path, micro_model)
    tokenizer = (model / "tokenizer.json").read_text().replace("ByteLevel", "Metaspace")
    (model / "tokenizer.json").write_text(tokenizer)
    with pytest.raises(ValueError, match=r"tokenizer\.json is no BPE of bytes"):
        check_model(model, Fp32())


def test_an_odd_number_of_blocks_is_refused_only_where_zero_points_are_packed(
    micro_model: Path, tmp_path: Path
) -> None:
    model = shaped(tmp_path, micro_model, hidden_size=192)
    message = r"hidden_size 192 makes 3 blocks of 64.*block_size 32 or precision int4"
    with pytest.raises(ValueError, match=message):
        check_model(model, KQuant(block_size=64))
    for recipe in (Rtn(), Int4(block_size=64), Int8()):
        check_model(model, recipe)


def test_a_disk_without_room_is_named_before_any_work(micro_model: Path, tmp_path: Path) -> None:
    model = shaped(tmp_path / "model", micro_model)
    with open(model / "model.safetensors", "wb") as file:
        file.truncate(1 << 43)  # eight tebibytes that take no room themselves
    recipe = Fp32()
    with pytest.raises(OSError, match=r"fp32 needs about 8796094 MB .* MB free: .*--out") as full:
        check_room(model, tmp_path / "not" / "yet" / "out", recipe)
    assert full.value.errno == errno.ENOSPC
    check_room(micro_model, tmp_path / "out", Int4())


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_nothing_behind(micro_model: Path, tmp_path: Path) -> None:
    """A file size limit stands in for the full disk: the same write fails, later than the check."""
    cases = write_cases(tmp_path / "cases.jsonl")
    command = [sys.executable, "-m", "compress.onnx.export", "--model", str(micro_model)]
    command += ["--precision", "kquant"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "--cases", str(cases)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert os.strerror(errno.EFBIG) in last
    assert "int4" in last
    assert "name another folder with --out" in last
    assert [file.name for file in tmp_path.iterdir()] == ["cases.jsonl"]


@pytest.fixture(scope="module")
def cuda(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda")
    config = ExportOrtConfig(
        model=micro_model,
        out=folder / "out",
        device="cuda",
        precision="int4",
        cases=write_cases(folder / "cases.jsonl"),
        calibration=write_cases(folder / "calibration.jsonl"),
        prompts=2,
        continuation_tokens=8,
    )
    export_ort(config)
    return folder / "out"


@pytest.mark.slow
def test_a_cuda_export_is_for_cuda_and_near_its_parent(cuda: Path, micro_model: Path) -> None:
    manifest = load_manifest(cuda, expect="ort-genai")
    settings = json.loads((cuda / "genai_config.json").read_text())
    [provider] = settings["model"]["decoder"]["session_options"]["provider_options"]
    assert list(provider) == ["cuda"]
    assert manifest.config["device"] == "cuda"
    assert manifest.evaluation["kl"] < 0.05
    assert manifest.evaluation["graph_bits_per_weight"] < 6.5  # the output layer has 8
    assert not any("tokens_per_s" in name for name in manifest.evaluation)
    graph = onnx.load(str(cuda / "model.onnx"), load_external_data=False).graph
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    # queries and keys are normalised by the attention itself: the form CUDA kernels take
    assert all(len([name for name in node.input if "norm" in name]) == 2 for node in attention)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Int4("cpu"), r"for providers \['cuda'\], not \[\]"),
        (Fp16("cuda"), "11 quantised and 0 other matrices in a graph of fp16"),
        (Int4("cuda", 64), "has blocks of 32, not 64"),
        (Fp32("cuda"), "the logits are not FLOAT"),
    ],
)
def test_a_graph_of_another_kind_is_refused(cuda: Path, recipe: Recipe, message: str) -> None:
    check_graph(cuda, Int4("cuda"))
    with pytest.raises(ValueError, match=message):
        check_graph(cuda, recipe)


def edit(source: Path, folder: Path, change: object) -> Path:
    shutil.copytree(source, folder)
    model = onnx.load(str(folder / "model.onnx"))
    change(model.graph)  # type: ignore[operator]
    onnx.save(model, str(folder / "model.onnx"))
    return folder


@pytest.mark.slow
def test_damaged_weights_and_wires_are_found(cuda: Path, tmp_path: Path) -> None:
    def overflow(graph: onnx.GraphProto) -> None:
        [scales] = [t for t in graph.initializer if t.name.endswith("o_proj.MatMulNBits.scales")][
            :1
        ]
        array = numpy_helper.to_array(scales).copy()
        array.flat[0] = np.inf
        scales.CopyFrom(numpy_helper.from_array(array, scales.name))

    def unplug(graph: onnx.GraphProto) -> None:
        graph.node[-1].input[0] = "nowhere"

    recipe = Int4("cuda")
    with pytest.raises(ValueError, match=r"o_proj.* left the range of float16"):
        check_graph(edit(cuda, tmp_path / "a", overflow), recipe)
    with pytest.raises(ValueError, match="reads nowhere"):
        check_graph(edit(cuda, tmp_path / "b", unplug), recipe)
    check_same_weights(cuda, cuda)
    with pytest.raises(ValueError, match=r"o_proj.* differs"):
        check_same_weights(cuda, tmp_path / "a")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [Int8(block_size=32), Fp32()])
def test_cpu_graphs_are_of_the_precision_asked_for(
    micro_model: Path, tmp_path: Path, recipe: Recipe
) -> None:
    build_graph(micro_model, tmp_path, recipe)
    row = check_graph(tmp_path, recipe)
    assert bool(row["graph_quantised_matrices"]) is (recipe.precision == "int8")
    assert 8 < row.get("graph_bits_per_weight", 9) < 10
