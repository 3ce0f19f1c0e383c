from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import onnxruntime_genai as og
import pytest

from compress.onnx.builder import build_graph
from compress.onnx.recipes import Fp16
from curt.artifact import ArtifactError
from curt.engines.onnx.engine import OrtEngine
from curt.engines.onnx.graph import (
    GENAI_CONFIG,
    OrtGraph,
    choose_providers,
    open_graph,
    read_settings,
)
from curt.engines.protocol import Request
from tests.compress.onnx.exports import export, make_untied_model, tell_likeliest
from tests.micro import FACTS

HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers()
IDS = [301 + i * 7 % 90 for i in range(40)]


@pytest.fixture(scope="module")
def exported(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    return export(make_untied_model(folder / "model", micro_model), folder / "ort")


@pytest.fixture(scope="module")
def telling(exported: Path) -> Path:
    return tell_likeliest(exported, exported.parent / "telling")


def opened(folder: Path) -> OrtGraph:
    return open_graph(folder, 1, allow_spinning=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exported", "telling"])
def test_it_gives_what_onnxruntime_genai_gives(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    graph = opened(folder)
    assert graph.tells_likeliest is (name == "telling")
    ours, theirs = graph.begin(100), genai_generator(folder, 100)
    picked = []
    for ids in (IDS[:20], IDS[20:21], IDS[21:22], IDS[22:30]):
        ours.feed(ids)
        theirs.append_tokens(np.array(ids, np.int32))
        expected = theirs.get_logits()[0, -1]
        picked.append(ours.likeliest())
        assert picked[-1] == expected.argmax()
        np.testing.assert_allclose(ours.logits(), expected, atol=1e-4)
    assert len(set(picked)) > 1
    assert ours.passes == 4


def genai_generator(folder: Path, capacity_tokens: int) -> Any:
    params = og.GeneratorParams(og.Model(str(folder)))
    params.set_search_options(max_length=capacity_tokens, do_sample=False)
    return og.Generator(og.Model(str(folder)), params)


@pytest.mark.slow
def test_half_precision_as_cuda_has_it_stays_near_single(exported: Path, tmp_path: Path) -> None:
    """The form of a CUDA export that the CPU can run: keys, values and logits in float16."""
    recipe = Fp16("cuda", fused=False)
    build_graph(exported.parent / "model", tmp_path, recipe)
    change_settings(tmp_path, lambda model: model["decoder"]["session_options"].clear())
    graph = opened(tmp_path)
    assert graph.logits_type is np.float16
    half, single = graph.begin(64), opened(exported).begin(64)
    for ids in (IDS[:20], IDS[20:21], IDS[21:30]):
        half.feed(ids)
        single.feed(ids)
        assert half.logits().dtype == np.float32
        np.testing.assert_allclose(half.logits(), single.logits(), atol=0.3)
    assert np.corrcoef(half.logits(), single.logits())[0, 1] > 0.999


@pytest.mark.slow
def test_going_back_leaves_no_trace(telling: Path) -> None:
    graph = opened(telling)
    straight, winding = graph.begin(64), graph.begin(64)
    straight.feed(IDS[:10])
    winding.feed(IDS[:6])
    winding.feed(IDS[20:40])
    winding.drop(17)
    winding.drop(0)
    winding.rewind_to(6)
    winding.feed(IDS[6:10])
    np.testing.assert_allclose(winding.logits(), straight.logits(), atol=1e-4)
    straight.feed(IDS[10:12])
    winding.feed(IDS[10:16])
    assert winding.likeliest(4) == straight.likeliest()
    np.testing.assert_allclose(winding.logits(4), straight.logits(), atol=1e-4)
    assert winding.held_tokens == straight.held_tokens == 12


@pytest.mark.slow
def test_sequences_of_one_graph_know_nothing_of_each_other(exported: Path) -> None:
    graph = opened(exported)
    one, other = graph.begin(30), graph.begin(50)
    one.feed(IDS[:5])
    other.feed(IDS[5:25])
    one.feed(IDS[5:6])
    alone = graph.begin(30)
    alone.feed(IDS[:6])
    np.testing.assert_allclose(one.logits(), alone.logits(), atol=1e-4)


CUDA: dict[str, Any] = {
    "model": {"decoder": {"session_options": {"provider_options": [{"cuda": {"a": "1"}}]}}}
}


def test_a_graph_runs_on_the_device_it_was_exported_for() -> None:
    everything = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    device, providers = choose_providers(CUDA, everything)
    assert (device, providers[0]) == ("cuda", ("CUDAExecutionProvider", {"a": "1"}))
    cpu = {"model": {"decoder": {"session_options": {"provider_options": []}}}}
    assert choose_providers(cpu, everything) == ("cpu", [("CPUExecutionProvider", {})])
    with pytest.raises(ArtifactError, match=r"install onnxruntime-gpu .*--device cpu"):
        choose_providers(CUDA, ["CPUExecutionProvider"])
    dml = {"model": {"decoder": {"session_options": {"provider_options": [{"dml": {}}]}}}}
    with pytest.raises(ArtifactError, match="a graph for dml: export it"):
        choose_providers(dml, everything)


@pytest.mark.slow
@pytest.mark.skipif(HAS_CUDA, reason="here it can be started")
def test_a_cuda_export_is_refused_by_name_where_there_is_no_cuda(
    exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "cuda")
    change_settings(tmp_path / "cuda", lambda model: model.update(for_cuda(model)))
    with pytest.raises(ArtifactError, match="a graph for cuda, but this onnxruntime has"):
        opened(tmp_path / "cuda")


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not HAS_CUDA, reason="needs onnxruntime-gpu and a GPU")
def test_a_cuda_export_writes_what_the_cpu_writes(micro_model: Path, tmp_path: Path) -> None:
    model = make_untied_model(tmp_path / "model", micro_model)
    recipe = Fp16("cuda")
    build_graph(model, tmp_path / "cuda", recipe)
    on_gpu, on_cpu = opened(tmp_path / "cuda"), opened(export(model, tmp_path / "cpu"))
    assert on_gpu.device == "cuda"
    ours, theirs = on_gpu.begin(64), on_cpu.begin(64)
    for ids in (IDS[:20], IDS[20:21], IDS[21:30]):
        ours.feed(ids)
        theirs.feed(ids)
        assert np.corrcoef(ours.logits(), theirs.logits())[0, 1] > 0.999
    ours.rewind_to(20)
    theirs.rewind_to(20)
    ours.feed(IDS[30:33])
    theirs.feed(IDS[30:33])
    assert np.corrcoef(ours.logits(), theirs.logits())[0, 1] > 0.999


@pytest.mark.slow
def test_other_graphs_are_refused_with_a_remedy(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no genai_config\.json: export it again"):
        read_settings(tmp_path)
    file = tmp_path / GENAI_CONFIG
    for change in (
        {"decoder": {"sliding_window": {"window_size": 128}}},
        {"search": {"past_present_share_buffer": False}},
    ):
        settings = json.loads((exported / GENAI_CONFIG).read_text(encoding="utf-8"))
        settings["model"]["decoder"] |= change.get("decoder", {})
        settings["search"] |= change.get("search", {})
        file.write_text(json.dumps(settings), encoding="utf-8")
        with pytest.raises(ArtifactError, match="one fixed buffer; export it again"):
            read_settings(tmp_path)
    settings = json.loads((exported / GENAI_CONFIG).read_text(encoding="utf-8"))
    settings["model"]["decoder"]["num_hidden_layers"] -= 1
    with pytest.raises(ArtifactError, match="other inputs"):
        OrtGraph(settings, opened(exported).session)


def change_settings(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / GENAI_CONFIG
    settings = json.loads(file.read_text(encoding="utf-8"))
    change(settings["model"])
    file.write_text(json.dumps(settings), encoding="utf-8")


def for_cuda(model: dict[str, Any]) -> dict[str, Any]:
    return {"decoder": model["decoder"] | CUDA["model"]["decoder"]}


@pytest.mark.slow
def test_a_closed_stream_leaves_the_prefix_as_it_was(telling: Path) -> None:
    engine = OrtEngine(telling, guided=False)
    request = Request(FACTS[0], 32, 12)
    (before,) = engine.generate([request])
    for stop_after in (1, 3, 9):
        steps = engine.stream(Request(FACTS[1], 32, 40))
        for _ in range(stop_after):
            next(steps)
        steps.close()
        (after,) = engine.generate([request])
        assert after.text == before.text
