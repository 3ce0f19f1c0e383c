from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.onnx.picks import PicksConfig, make_artifact
from curt.engines.onnx.engine import OrtEngine
from curt.engines.onnx.graph import GENAI_CONFIG, OrtGraph, open_graph, writes_in_place
from curt.engines.onnx.sequence import GenaiModel, load_genai
from curt.engines.protocol import Request
from tests.compress.onnx.exports import export, make_untied_model
from tests.micro import FACTS

IDS = [301 + i * 7 % 90 for i in range(40)]


@pytest.fixture(scope="module")
def exported(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    return export(make_untied_model(folder / "model", micro_model), folder / "ort")


@pytest.fixture(scope="module")
def telling(exported: Path) -> Path:
    out = exported.parent / "picks"
    make_artifact(PicksConfig(artifact=exported, out=out))
    return out


@pytest.fixture(scope="module")
def settings(exported: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((exported / GENAI_CONFIG).read_text(encoding="utf-8"))
    return read


def opened(folder: Path) -> OrtGraph:
    graph = open_graph(folder, 1, allow_spinning=False)
    assert graph
    return graph


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exported", "telling"])
def test_it_gives_what_the_generator_gives(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    model = GenaiModel(load_genai(folder, 1, allow_spinning=False))
    ours, theirs = opened(folder).begin(100), model.begin(100)
    assert ours.has_picks is theirs.has_picks is (name == "telling")
    picked = []
    for ids in (IDS[:20], IDS[20:21], IDS[21:22], IDS[22:30]):
        ours.feed(ids)
        theirs.feed(ids)
        picked.append(ours.pick())
        assert picked[-1] == theirs.pick()
        np.testing.assert_allclose(ours.logits(), theirs.logits(), atol=1e-4)
    assert len(set(picked)) > 1
    assert ours.passes == theirs.passes == 4


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
    assert winding.pick(4) == straight.pick()
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


@pytest.mark.slow
def test_other_graphs_are_left_to_the_other_runtime(settings: dict[str, Any]) -> None:
    assert writes_in_place(settings)
    for change in (
        {"decoder": {"session_options": {"provider_options": [{"cuda": {}}]}}},
        {"decoder": {"sliding_window": {"window_size": 128}}},
        {"search": {"past_present_share_buffer": False}},
        {"decoder": {"inputs": settings["model"]["decoder"]["inputs"] | {"position_ids": "p"}}},
    ):
        other = copy.deepcopy(settings)
        other["model"]["decoder"] |= change.get("decoder", {})
        other["search"] |= change.get("search", {})
        assert not writes_in_place(other), change


@pytest.mark.slow
def test_a_closed_stream_leaves_the_prefix_as_it_was(telling: Path) -> None:
    engine = OrtEngine(telling)
    request = Request(FACTS[0], 32, 12)
    (before,) = engine.generate([request])
    for stop_after in (1, 3, 9):
        steps = engine.stream(Request(FACTS[1], 32, 40))
        for _ in range(stop_after):
            next(steps)
        steps.close()
        (after,) = engine.generate([request])
        assert after.text == before.text
