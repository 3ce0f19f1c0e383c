from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
)

from compress.prune.prune import (
    PruneConfig,
    prune,
)
from curt.artifact import ArtifactError, load_manifest, parent_of, write_artifact
from curt.config import load_config, run
from tests.compress.onnx.exports import export, write_cases


def make_config(model: Path, out: Path, **settings: Any) -> PruneConfig:
    cases = write_cases(out.parent / "cases.jsonl")
    return PruneConfig(**({"model": model, "out": out, "cases": cases} | settings))


def size_bytes(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("criterion", ["magnitude", "activation"])
def test_a_pruned_folder_is_smaller_describes_itself_and_generates(
    micro_model: Path, tmp_path: Path, criterion: str
) -> None:
    config = make_config(
        micro_model,
        tmp_path / "out",
        heads=0.4,
        neurons=0.3,
        layers=1,
        criterion=criterion,
        calibration_cases=4,
    )
    prune(config)
    manifest, parent = load_manifest(config.out, expect="hf"), load_manifest(micro_model)
    report = manifest.config["pruning"]
    assert manifest.config["heads"] == 0.4
    assert manifest.parent == parent_of(micro_model)
    assert (manifest.stage, manifest.precision, manifest.base) == ("prune", "fp32", parent.base)
    assert manifest.max_fact_tokens == parent.max_fact_tokens
    assert manifest.max_thinking_tokens == parent.max_thinking_tokens
    assert report["asked"] == {"heads": 0.4, "neurons": 0.3, "layers": 1}
    removed = report["removed"]
    assert (removed["heads"], removed["key_value_heads"], removed["neurons"]) == (0.5, 0.0, 0.25)
    assert len(removed["layers"]) == 1
    assert report["calibration_cases"] == 4
    assert len(report["calibration_sha256"]) == len(hashlib.sha256().hexdigest())

    shape = json.loads((config.out / "config.json").read_text())
    assert (shape["num_attention_heads"], shape["num_key_value_heads"]) == (1, 1)
    assert (shape["head_dim"], shape["intermediate_size"]) == (64, 192)
    assert shape["num_hidden_layers"] == len(shape["layer_types"]) == 1
    model = AutoModelForCausalLM.from_pretrained(config.out)
    original = AutoModelForCausalLM.from_pretrained(micro_model)
    assert report["parameters_after"] == model.num_parameters() < original.num_parameters()
    assert report["parameters_before"] == original.num_parameters()
    assert size_bytes(config.out) < size_bytes(micro_model)
    assert model.generation_config.to_dict() == original.generation_config.to_dict()
    tokenizer = AutoTokenizer.from_pretrained(config.out)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(micro_model).chat_template
    ids = tokenizer("被告人张某", return_tensors="pt")
    assert (
        model.generate(**ids, max_new_tokens=4, do_sample=False).shape[1]
        > ids["input_ids"].shape[1]
    )


def test_the_same_settings_give_the_same_model(micro_model: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        prune(
            make_config(micro_model, tmp_path / name, heads=0.5, neurons=0.5, calibration_cases=2)
        )
    one, two = load_manifest(tmp_path / "one"), load_manifest(tmp_path / "two")
    assert one.files == two.files
    assert one.config["pruning"] == two.config["pruning"]


def test_a_bf16_parent_gives_a_bf16_child(micro_model: Path, tmp_path: Path) -> None:
    describe = load_manifest(micro_model).model_dump(exclude={"tools", "created", "files"})
    with write_artifact(tmp_path / "parent", describe | {"precision": "bf16"}) as folder:
        AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.bfloat16).save_pretrained(
            folder
        )
        AutoTokenizer.from_pretrained(micro_model).save_pretrained(folder)
    config = make_config(tmp_path / "parent", tmp_path / "out", heads=0.5, calibration_cases=2)
    prune(config)
    assert AutoModelForCausalLM.from_pretrained(config.out, dtype="auto").dtype == torch.bfloat16
    assert load_manifest(config.out).precision == "bf16"


def test_magnitude_without_layers_needs_no_cases(micro_model: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent.jsonl"
    settings = {"heads": 0.5, "cases": absent, "head_unit": "query"}
    prune(make_config(micro_model, tmp_path / "a", criterion="magnitude", **settings))
    report = load_manifest(tmp_path / "a").config["pruning"]
    assert (report["calibration_cases"], report["layer_influence"]) == (0, [])
    assert report["calibration_sha256"] == ""
    with pytest.raises(ValueError, match="no case file"):
        prune(make_config(micro_model, tmp_path / "b", criterion="activation", **settings))
    with pytest.raises(ValueError, match="no case file"):
        prune(make_config(micro_model, tmp_path / "c", criterion="magnitude", layers=1, **settings))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "cases.jsonl"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 0.2}, r"heads 0\.2 removes no head.* 0\.5"),
        ({"heads": 0.5, "head_unit": "group"}, "head_unit group are: none"),
        ({"neurons": 0.05}, r"neurons 0\.05 removes none of 256"),
        ({"layers": 2}, "layers 2 leaves no layer: remove 1 at most"),
    ],
)
def test_a_request_that_cannot_be_met_writes_nothing(
    micro_model: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    config = make_config(micro_model, tmp_path / "out", **settings)
    with pytest.raises(ValueError, match=message):
        prune(config)
    assert [path.name for path in tmp_path.iterdir()] == ["cases.jsonl"]


def test_a_failed_write_leaves_the_standing_folder_whole(
    micro_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(micro_model, tmp_path / "out", heads=0.5, calibration_cases=2)
    prune(config)
    before = load_manifest(config.out)

    def break_off(self: object, folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", break_off)
        with pytest.raises(OSError, match="no space"):
            prune(config)
    assert load_manifest(config.out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases.jsonl", "out"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt_neox"}, "architecture gpt_neox is not one of"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
    ],
)
def test_models_it_cannot_slice_are_refused(
    micro_model: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    describe = load_manifest(micro_model).model_dump(exclude={"tools", "created", "files"})
    shape = json.loads((micro_model / "config.json").read_text()) | change
    with write_artifact(tmp_path / "parent", describe) as folder:
        (folder / "config.json").write_text(json.dumps(shape))
    with pytest.raises(ValueError, match=message):
        prune(make_config(tmp_path / "parent", tmp_path / "out", heads=0.5))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "parent").mkdir()
    with pytest.raises(ArtifactError):
        prune(make_config(tmp_path / "parent", tmp_path / "out", heads=0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--heads", "1.0"], "less than 1"),
        (["--neurons=-0.1"], "greater than or equal to 0"),
        (["--criterion", "random"], "criterion"),
        ([], "nothing to remove: set heads, neurons or layers"),
        (["--heads", "0.5", "--out", "m"], "parent itself"),
        (["--heads", "0.5", "--head_count", "3"], "head_count"),
    ],
)
def test_bad_settings_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--model", "m", *([] if "--out" in arguments else ["--out", "o"])]
    with pytest.raises(SystemExit) as caught:
        load_config(PruneConfig, [*base, *arguments])
    assert message in f"{caught.value}{capsys.readouterr().err}"


def test_the_command_line_prunes_and_reports_what_it_cannot(
    micro_model: Path, tmp_path: Path
) -> None:
    cases = write_cases(tmp_path / "cases.jsonl")
    command = ["--model", str(micro_model), "--out", str(tmp_path / "out"), "--cases", str(cases)]
    with pytest.raises(SystemExit, match=r"error: heads 0\.2 removes no head"):
        run(PruneConfig, prune, [*command, "--heads", "0.2"])
    assert not (tmp_path / "out").exists()
    run(PruneConfig, prune, [*command, "--heads", "0.5", "--criterion", "magnitude", "--seed", "7"])
    assert load_manifest(tmp_path / "out").config["criterion"] == "magnitude"


@pytest.mark.slow
def test_a_pruned_model_exports_to_onnx_runtime(micro_model: Path, tmp_path: Path) -> None:
    prune(
        make_config(
            micro_model, tmp_path / "out", heads=0.5, neurons=0.25, layers=1, calibration_cases=2
        )
    )
    manifest = load_manifest(export(tmp_path / "out", tmp_path / "fp32"), expect="ort-genai")
    # the logits, not KL: a random model with tied embeddings is sure of its last token
    assert manifest.evaluation["max_logit_difference"] < 1e-3
