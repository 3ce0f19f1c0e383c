from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from compress.compare.compare import (
    CompareConfig,
    Store,
    measure_closeness,
    verdict_key,
    work,
    write_report,
)
from curt.artifact import ArtifactError, load_manifest, parent_of, write_artifact
from curt.config import load_config, run
from curt.dialogue import THINK_END, ParseFailure, render_answer
from curt.engines import Generation, Request
from curt.law.verdict import Term, Verdict
from tests.compress.onnx.exports import export, make_untied_model, write_cases

RIGHT = Verdict(("盗窃",), ("264",), Term("fixed", 8), 8000)
WRONG = Verdict(("诈骗",), ("266",), Term("fixed", 8))


class Scripted:
    """An engine that answers every case with one verdict and counts what it was asked."""

    name = "scripted"

    def __init__(self, folder: Path, verdict: Verdict) -> None:
        self.manifest = load_manifest(folder)
        self._text = f"现金8000元。{THINK_END}{render_answer(verdict)}"

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        return [Generation(self._text, 30, 5, 20, False, "stop", 1.0, 1.0) for _ in requests]


class Opener:
    """Opens scripted engines, notes which, and may be stopped at one."""

    def __init__(self, stop_at: str = "") -> None:
        self.opened: list[str] = []
        self._stop_at = stop_at

    def __call__(self, folder: Path) -> Scripted:
        if folder.name == self._stop_at:
            raise KeyboardInterrupt
        self.opened.append(folder.name)
        return Scripted(folder, WRONG if folder.name == "worse" else RIGHT)


def copy_artifact(parent: Path, out: Path, kind: str = "hf") -> Path:
    """A folder with the parent's files and a manifest that says it was made from it."""
    describe = load_manifest(parent).model_dump(exclude={"files", "tools", "created", "parent"})
    describe["format"] = kind
    with write_artifact(
        out, {**describe, "stage": out.name, "parent": parent_of(parent)}
    ) as temporary:
        for name in load_manifest(parent).files:
            shutil.copy(parent / name, temporary / name)
    return out


@pytest.fixture
def folders(micro_model: Path, tmp_path: Path) -> list[Path]:
    parent = copy_artifact(micro_model, tmp_path / "parent")
    return [parent, *(copy_artifact(parent, tmp_path / name) for name in ("same", "worse"))]


def configure(folders: Sequence[Path], tmp_path: Path, **settings: object) -> CompareConfig:
    return CompareConfig(
        parent=folders[0],
        artifacts=list(folders[1:]),
        corpus=write_cases(tmp_path / "test.jsonl"),
        out=tmp_path / "out",
        **{
            "speed_threads": (1,),
            "speed_rounds": 2,
            "decode_tokens": 8,
            "kl_prompts": 2,
            "kl_tokens": 8,
            **settings,
        },
    )


@pytest.mark.slow
def test_a_stopped_run_goes_on_where_it_was(folders: list[Path], tmp_path: Path) -> None:
    config = configure(folders, tmp_path)
    stopped, resumed, again = Opener(stop_at="worse"), Opener(), Opener()
    with pytest.raises(KeyboardInterrupt):
        write_report(config, stopped)
    assert stopped.opened == ["parent", "same"]
    assert not (config.out / "report.json").exists()
    first = write_report(config, resumed)
    assert resumed.opened == ["worse"]
    assert write_report(config, again) == first
    assert again.opened == []
    assert json.loads((config.out / "report.json").read_text()) == first

    rows = {row["identity"]["name"]: row for row in first["rows"]}
    assert rows["same"]["same_verdict"] == 1.0
    assert rows["same"]["kl"] == pytest.approx(0, abs=1e-9)
    assert rows["same"]["change"]["value"] == 0.0
    assert rows["same"]["identity"]["of_this_parent"]
    assert rows["same"]["thinking_mean"] == 5
    assert rows["worse"]["change"]["value"] == -1.0
    assert rows["worse"]["same_verdict"] == 0.0
    assert all(len(row["speeds"]) == 1 for row in rows.values())
    assert first["choice"]["name"] == "same"
    assert '<p class="value">same</p>' in (config.out / "report.html").read_text()

    fewer = Opener()
    write_report(configure(folders, tmp_path, limit=3), fewer)
    assert fewer.opened == ["parent", "same", "worse"]


def test_an_altered_artifact_is_refused_before_anything_is_measured(
    folders: list[Path], tmp_path: Path
) -> None:
    with open(folders[2] / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    opener = Opener()
    with pytest.raises(ArtifactError, match="not the file that was made"):
        write_report(configure(folders, tmp_path), opener)
    assert opener.opened == []
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_results_kept_for_a_folder_do_not_save_it_once_altered(
    folders: list[Path], tmp_path: Path
) -> None:
    config = configure(folders, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_report(config, Opener(stop_at="worse"))
    (folders[1] / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is not the file"):
        write_report(config, Opener())


@pytest.mark.slow
def test_the_command_reports_what_it_can_measure_of_each_format(
    micro_model: Path, tmp_path: Path
) -> None:
    parent = make_untied_model(tmp_path / "untied", micro_model)
    folder = export(parent, tmp_path / "int8", "int8")
    foreign = copy_artifact(parent, tmp_path / "elsewhere", "trtllm-hf")
    out = tmp_path / "out"
    settings = {
        "parent": str(parent),
        "artifacts": json.dumps([str(folder), str(foreign)]),
        "out": str(out),
        "corpus": str(write_cases(tmp_path / "test.jsonl")),
        "limit": "2",
        "budget": "8",
        "kl_prompts": "1",
        "kl_tokens": "8",
        "speed_threads": "[1]",
        "speed_rounds": "2",
        "prompt_tokens": "300",
        "decode_tokens": "8",
    }
    run(CompareConfig, work, [f"--{name}={value}" for name, value in settings.items()])
    report = json.loads((out / "report.json").read_text())
    elsewhere = report["rows"].pop()
    assert (elsewhere["speeds"], elsewhere["exact"]) == ([], None)
    assert "trtllm-hf: no engine on this machine runs it" in (out / "report.html").read_text()
    for row in report["rows"]:
        assert row["cases"] == 2
        assert row["speeds"][0]["decode_tokens_per_s"]["median"] > 0
    assert report["rows"][1]["times_smaller"] > 2
    assert report["choice"]["name"] == "int8"  # which loses nothing where nothing is right
    unmeasured = "its accuracy was not measured"
    assert report["choice"]["refused"] == {"elsewhere": unmeasured}


@pytest.mark.slow
def test_closeness_tells_another_model_from_the_parent(micro_model: Path, tmp_path: Path) -> None:
    parent = make_untied_model(tmp_path / "parent", micro_model)
    other = make_untied_model(tmp_path / "other", micro_model, seed=9)
    prompts = [[5, 6, 7, 8], [9, 10, 11]]
    near, far = (measure_closeness(parent, f, prompts, 8) for f in (parent, other))
    assert (near.kl, near.argmax_agreement) == (pytest.approx(0, abs=1e-12), 1.0)
    assert far.kl > 0.1
    assert near.positions == far.positions
    runtime = measure_closeness(parent, export(parent, tmp_path / "fp32"), prompts, 8)
    assert runtime.kl == pytest.approx(0, abs=1e-6)
    assert runtime.positions == near.positions


def test_another_tokenizer_leaves_no_closeness(micro_model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(micro_model, tmp_path / "other")
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    with pytest.raises(ValueError, match="another tokenizer"):
        measure_closeness(micro_model, other, [[5, 6]], 4)


def test_a_kept_result_that_does_not_read_back_is_measured_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.remember("number", ["a"], int, lambda: 1) == 1
    assert store.remember("number", ["a"], int, lambda: 2) == 1
    assert store.remember("number", ["b"], int, lambda: 3) == 3
    for file in tmp_path.iterdir():
        file.write_text("{half")
    assert store.remember("number", ["a"], int, lambda: 4) == 4


def test_verdicts_are_the_same_by_charges_articles_and_principal_penalty() -> None:
    fined = Verdict(("盗窃",), ("264",), Term("fixed", 8), 1)
    longer = Verdict(("盗窃",), ("264",), Term("fixed", 9))
    assert verdict_key(RIGHT) == verdict_key(fined) != verdict_key(longer)
    assert verdict_key(ParseFailure("nothing")) == ""


def test_folders_of_one_name_and_no_folders_are_refused(tmp_path: Path) -> None:
    common = ["--parent", "a/model", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="more than one folder named model"):
        load_config(CompareConfig, [*common, "--artifacts", '["b/model"]'])
    with pytest.raises(SystemExit, match="give at least one folder"):
        load_config(CompareConfig, [*common, "--artifacts", "[]"])
