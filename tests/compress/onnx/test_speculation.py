from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from compress.onnx.export import ExportOrtConfig
from compress.onnx.speculation import add_likeliest
from curt.engines.onnx.graph import LIKELIEST, LIKELIEST_WINDOW, TokenSequence, open_graph
from tests.compress.onnx.exports import export, make_untied_model, tell_likeliest


@pytest.fixture(scope="module")
def plain(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    return export(make_untied_model(folder / "model", micro_model), folder / "ort")


@pytest.fixture(scope="module")
def telling(plain: Path) -> Path:
    return tell_likeliest(plain, plain.parent / "telling")


def sequence(folder: Path) -> TokenSequence:
    sequence = open_graph(folder, 1, allow_spinning=False).begin(200)
    sequence.feed([300])
    return sequence


@pytest.mark.slow
def test_the_likeliest_token_after_each_is_told(plain: Path, telling: Path) -> None:
    ids = [301 + i * 7 % 90 for i in range(LIKELIEST_WINDOW)]
    one, many = sequence(plain), sequence(telling)
    expected = []
    for token in ids:
        one.feed([token])
        expected.append(one.likeliest())
    many.feed(ids)
    behind = range(len(ids) - 1, -1, -1)
    assert [many.likeliest(b) for b in behind] == expected
    assert len(set(expected)) > 5
    np.testing.assert_allclose(many.logits(), one.logits(), atol=1e-4)


@pytest.mark.slow
def test_logits_further_back_drop_what_came_after(plain: Path, telling: Path) -> None:
    one, many = sequence(plain), sequence(telling)
    one.feed([310, 311])
    many.feed([310, 311, 312, 313])
    np.testing.assert_allclose(many.logits(2), one.logits(), atol=1e-4)
    for each in (one, many):
        each.feed([320])
    np.testing.assert_allclose(many.logits(), one.logits(), atol=1e-4)


@pytest.mark.slow
def test_only_those_asked_for_are_told(telling: Path) -> None:
    graph = open_graph(telling, 1, allow_spinning=False)
    assert graph.has_start
    ids = [301 + i * 7 % 90 for i in range(LIKELIEST_WINDOW + 4)]
    every, few = graph.begin(64), graph.begin(64)
    every.feed(ids)
    few.feed(ids, telling=3)
    assert [few.likeliest(b) for b in range(3)] == [every.likeliest(b) for b in range(3)]
    np.testing.assert_allclose(few.logits(), every.logits(), atol=1e-4)
    with pytest.raises(IndexError):
        few.likeliest(3)


@pytest.mark.slow
def test_a_graph_that_tells_them_already_is_refused(telling: Path) -> None:
    with pytest.raises(ValueError, match="already"):
        add_likeliest(telling / "model.onnx")


@pytest.mark.slow
def test_an_export_for_the_cpu_tells_them_unless_asked_not_to(
    plain: Path, micro_model: Path, tmp_path: Path
) -> None:
    assert ExportOrtConfig.model_fields["tell_likeliest"].default is True
    made = export(
        make_untied_model(tmp_path / "model", micro_model), tmp_path / "ort", likeliest=True
    )
    for folder, tells in ((plain, False), (made, True)):
        graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
        assert (LIKELIEST in {output.name for output in graph.output}) is tells


def test_a_graph_that_is_no_export_is_refused(tmp_path: Path) -> None:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    y = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["logits"])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y])), tmp_path / "m")
    with pytest.raises(ValueError, match="last position"):
        add_likeliest(tmp_path / "m")
