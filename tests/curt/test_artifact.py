from __future__ import annotations

import json
import shutil

import pytest

from curt.artifact import (
    MANIFEST,
    READER,
    ArtifactError,
    load_manifest,
    parent_of,
    write_artifact,
)
from curt.dialogue import PROMPT_VERSION
from curt.files import sha256
from curt.law.statutes import STATUTE_VERSION

DESCRIPTION = {
    "format": "hf",
    "precision": "fp32",
    "stage": "test",
    "base": "none",
    "max_fact_tokens": 10,
    "max_thinking_tokens": 5,
}


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    with write_artifact(folder, DESCRIPTION) as temporary:
        (temporary / "weights.bin").write_bytes(b"1234")
        (temporary / "sub").mkdir()
        (temporary / "sub" / "config.json").write_text("{}")
    return folder


def rewrite(folder, **changes):
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_finished_folder_loads_and_lists_every_file(model):
    manifest = load_manifest(model)
    assert manifest.prompt_version == PROMPT_VERSION
    assert manifest.statute_version == STATUTE_VERSION
    assert manifest.created
    assert manifest.files == {
        "weights.bin": sha256(model / "weights.bin"),
        "sub/config.json": sha256(model / "sub" / "config.json"),
    }
    assert load_manifest(str(model), expect="hf") == manifest


def test_a_parent_is_named_by_the_hash_of_its_manifest(model):
    assert parent_of(model).manifest_sha256 == sha256(model / MANIFEST)


def test_the_description_may_be_filled_in_while_the_folder_is_written(tmp_path):
    description = dict(DESCRIPTION)
    with write_artifact(tmp_path / "model", description):
        description["evaluation"] = {"exact": 0.5}
    assert load_manifest(tmp_path / "model").evaluation == {"exact": 0.5}


def write_half(folder):
    with write_artifact(folder, DESCRIPTION) as temporary:
        (temporary / "weights.bin").write_bytes(b"12")
        raise RuntimeError("killed")


def test_a_half_written_folder_is_no_model(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        write_half(tmp_path / "model")
    with pytest.raises(ArtifactError, match="not a folder"):
        load_manifest(tmp_path / "model")


def test_a_folder_without_a_manifest_is_refused(model):
    (model / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        load_manifest(model)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "hf"}'])
def test_a_broken_manifest_is_refused(model, text):
    (model / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match="not a valid manifest"):
        load_manifest(model)


def test_unknown_manifest_fields_are_refused(model):
    rewrite(model, colour="blue")
    with pytest.raises(ArtifactError, match="colour"):
        load_manifest(model)


def test_a_missing_file_is_named(model):
    (model / "weights.bin").unlink()
    with pytest.raises(ArtifactError, match=r"lacks weights\.bin"):
        load_manifest(model)


def test_a_tampered_file_is_named(model):
    (model / "weights.bin").write_bytes(b"1235")
    with pytest.raises(ArtifactError, match=r"weights\.bin is not the file that was made"):
        load_manifest(model)


def test_another_prompt_version_is_refused(model):
    rewrite(model, prompt_version="verdict-0")
    with pytest.raises(ArtifactError, match=f"verdict-0, this code speaks {PROMPT_VERSION}"):
        load_manifest(model)


def test_another_format_than_the_expected_is_refused(model):
    with pytest.raises(ArtifactError, match="holds hf, but ort-genai is needed"):
        load_manifest(model, expect="ort-genai")


def test_a_description_that_is_no_manifest_makes_no_folder(tmp_path):
    with (
        pytest.raises(ValueError, match="precision"),
        write_artifact(
            tmp_path / "model", {k: v for k, v in DESCRIPTION.items() if k != "precision"}
        ),
    ):
        pass
    assert not (tmp_path / "model").exists()


@pytest.fixture
def reader(tmp_path):
    folder = tmp_path / "classifier"
    folder.mkdir()
    (folder / MANIFEST).write_text('{"format": "classifier"}')
    (folder / "model.onnx").write_bytes(b"scores")
    return folder


@pytest.fixture
def model_with_reader(tmp_path, reader):
    folder = tmp_path / "with-reader"
    with write_artifact(folder, DESCRIPTION, reader=reader) as temporary:
        (temporary / "weights.bin").write_bytes(b"1234")
    return folder


def test_a_reader_is_copied_named_and_goes_along_to_what_is_made_of_the_model(
    tmp_path, model_with_reader, reader
):
    manifest = load_manifest(model_with_reader)
    assert manifest.reader == sha256(reader / MANIFEST)
    assert set(manifest.files) == {
        "weights.bin", f"{READER}/{MANIFEST}", f"{READER}/model.onnx",
    }  # fmt: skip
    child = tmp_path / "child"
    with write_artifact(child, DESCRIPTION | {"parent": parent_of(model_with_reader)}):
        pass
    assert load_manifest(child).reader == manifest.reader
    assert (child / READER / "model.onnx").read_bytes() == b"scores"


def test_a_model_without_a_reader_names_none(model):
    assert load_manifest(model).reader is None
    assert not (model / READER).exists()


def test_another_reader_than_the_one_trained_with_is_refused(model, model_with_reader, reader):
    (model_with_reader / READER / MANIFEST).write_text('{"format": "other"}')
    with pytest.raises(ArtifactError, match="another reader"):
        load_manifest(model_with_reader)
    shutil.rmtree(model_with_reader / READER)
    with pytest.raises(ArtifactError, match="another reader"):
        load_manifest(model_with_reader)
    shutil.copytree(reader, model / READER)
    with pytest.raises(ArtifactError, match="another reader"):
        load_manifest(model)
