from __future__ import annotations

from pathlib import Path

import pytest

from compress.folders import count_parameters, describe_child, folder_bytes, weight_bytes
from curt.artifact import ArtifactError, load_manifest, parent_of
from tests.compress.onnx.exports import make_untied_model


def test_a_tied_embedding_is_counted_once(micro_model: Path, tmp_path: Path) -> None:
    untied = make_untied_model(tmp_path / "untied", micro_model)
    vocabulary_times_width = count_parameters(untied) - count_parameters(micro_model)
    assert vocabulary_times_width > 0
    assert vocabulary_times_width % 128 == 0
    assert 4 * count_parameters(micro_model) < weight_bytes(micro_model) < folder_bytes(micro_model)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no \.safetensors"):
        count_parameters(tmp_path)


def test_a_child_inherits_what_it_does_not_say(micro_model: Path) -> None:
    parent = load_manifest(micro_model)
    said = describe_child(micro_model, parent, format="hf", max_fact_tokens=7)
    assert said["parent"] == parent_of(micro_model)
    assert (said["base"], said["max_thinking_tokens"]) == (parent.base, parent.max_thinking_tokens)
    assert (said["format"], said["max_fact_tokens"]) == ("hf", 7)
    assert "stage" not in said
