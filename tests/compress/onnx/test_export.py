from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import onnxruntime_genai as og
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from compress.onnx.export import ExportOrtConfig, export_ort
from curt.artifact import ArtifactError, load_manifest, parent_of, write_artifact
from curt.config import load_config
from curt.dialogue import CHAT_TEMPLATE, THINK_END, THINK_START
from curt.engines.onnx.engine import OrtEngine
from curt.engines.protocol import Request
from tests.compress.onnx.exports import export, export_config, write_cases
from tests.micro import FACTS
from tests.warm import start_warm

GIVEN = ["--model", "m", "--out", "o"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int4", "--block_size", "48"], "block_size 48: use one of"),
        (["--precision", "int3"], "precision int3: use one of w8a8, int4"),
        (["--block_size", "32"], "w8a8 has no blocks of weights: leave block_size out"),
        (["--device", "cuda"], r"w8a8 on cuda: .*export to TensorRT-LLM in fp8"),
        (["--precision", "fp16"], r"fp16 on cpu: .*no float16 kernel.*--device cuda"),
        (["--device", "tpu"], "device"),
    ],
)
def test_settings_that_disagree_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        load_config(ExportOrtConfig, [*GIVEN, *arguments])


def test_a_width_that_blocks_do_not_divide_is_refused(micro_model: Path, tmp_path: Path) -> None:
    config = export_config(micro_model, tmp_path / "out", precision="int4", block_size=256)
    with pytest.raises(ValueError, match="hidden_size 128"):
        export_ort(config)
    assert not config.out.exists()


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        export_ort(export_config(tmp_path, tmp_path / "out"))


@pytest.fixture(scope="module")
def artifact(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(micro_model, tmp_path_factory.mktemp("export") / "int4", "int4")


@pytest.mark.slow
def test_the_artifact_names_its_parent_limits_and_parity(artifact: Path, micro_model: Path) -> None:
    manifest, parent = load_manifest(artifact, expect="ort-genai"), load_manifest(micro_model)
    assert manifest.parent == parent_of(micro_model)
    assert (manifest.precision, manifest.base) == ("int4", parent.base)
    assert manifest.max_fact_tokens == parent.max_fact_tokens
    assert manifest.max_thinking_tokens == parent.max_thinking_tokens
    assert manifest.evaluation == json.loads((artifact / "parity.json").read_text())
    assert manifest.config["block_size"] == 32
    assert {"model.onnx", "model.onnx.data", "tokenizer.json", "parity.json"} <= set(manifest.files)


@pytest.mark.slow
def test_int4_generates_the_same_text_every_time(artifact: Path) -> None:
    request = Request(FACTS[0], 16, 8)
    first, second = OrtEngine(artifact, guided=False), OrtEngine(artifact, threads=2, guided=False)
    outs = [*first.generate([request, request]), *second.generate([request])]
    assert len({out.text for out in outs}) == 1
    assert outs[0].thinking_tokens <= 8


@pytest.mark.slow
def test_every_tokenizer_of_the_folder_agrees_on_chinese(artifact: Path, micro_model: Path) -> None:
    parent, full = (
        AutoTokenizer.from_pretrained(micro_model),
        AutoTokenizer.from_pretrained(artifact),
    )
    runtime = og.Tokenizer(og.Model(str(artifact)))
    for text in (
        *FACTS,
        "罪名：走私、贩卖毒品；诈骗\n刑期：12个月",
        "龘靐𠮷 <think>ＡＢ</think>\n\n 9",
    ):
        expected = parent(text)["input_ids"]
        assert [int(i) for i in runtime.encode(text)] == expected
        assert full(text)["input_ids"] == expected
    assert full.chat_template == parent.chat_template


@pytest.mark.slow
def test_an_artifact_too_far_from_its_parent_is_refused(
    artifact: Path, micro_model: Path, tmp_path: Path
) -> None:
    standing = tmp_path / "standing"
    shutil.copytree(artifact, standing)
    before = load_manifest(standing)
    with pytest.raises(ValueError, match="max_kl 0"):
        export_ort(export_config(micro_model, standing, max_kl=0.0))
    assert load_manifest(standing) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cases.jsonl", "standing"]


@pytest.mark.slow
def test_a_tokenizer_the_runtime_misreads_is_refused(micro_model: Path, tmp_path: Path) -> None:
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", THINK_START, THINK_END]
    plain.train_from_iterator(
        FACTS, trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    parent = load_manifest(micro_model)
    describe = parent.model_dump(exclude={"tools", "created", "files"})
    with write_artifact(tmp_path / "model", describe) as folder:
        for name in ("config.json", "generation_config.json", "model.safetensors"):
            shutil.copy(micro_model / name, folder)
        PreTrainedTokenizerFast(
            tokenizer_object=plain, eos_token="<|im_end|>", chat_template=CHAT_TEMPLATE
        ).save_pretrained(folder)
    with pytest.raises((ValueError, RuntimeError)):
        export_ort(export_config(tmp_path / "model", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_kill_leaves_nothing_that_loads(micro_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cases = write_cases(tmp_path / "cases.jsonl")
    arguments = ["--model", str(micro_model), "--out", str(out), "--cases", str(cases)]
    arguments += ["--calibration", str(cases)]
    process = start_warm("compress.onnx.export", arguments, tmp_path / "log")
    try:
        patience = time.monotonic() + 120
        while not list(tmp_path.glob(".out.*/model.onnx")) and time.monotonic() < patience:
            assert process.poll() is None, "the export ended before it was killed"
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    [leftover] = tmp_path.glob(".out.*")
    assert not out.exists()
    with pytest.raises(ArtifactError, match="unfinished"):
        OrtEngine(leftover, guided=False)
