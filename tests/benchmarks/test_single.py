"""One prompt at a time, side by side."""

from __future__ import annotations

import json

import pytest

from benchmarks.peers.engines import EngineConfig, OwnGraph
from benchmarks.single import Answers, SingleConfig, name_of, summarise, work
from curt.engines.onnx.engine import OrtEngine
from curt.engines.protocol import Request
from tests.compress.onnx.exports import export, write_cases


@pytest.fixture(scope="module")
def artifact(micro_model, tmp_path_factory):
    return export(micro_model, tmp_path_factory.mktemp("single") / "fp32", likeliest=True)


def test_the_bare_graph_writes_what_the_engine_writes(artifact):
    engine = OrtEngine(artifact, guided=False, speculate=False)
    request = Request("被告人张某盗窃手机一部。", 32, 8)
    prompt = engine.encode(request).ids
    bare = OwnGraph(EngineConfig(model=artifact, slots=1)).complete(prompt, 6)
    thought = engine.tokenizer.encode(engine.generate([request])[0].text)
    assert len(bare) == 6
    assert bare[:3] == thought[:3]


def test_everybody_is_asked_in_turn_and_named(artifact, tmp_path):
    config = SingleConfig(
        artifacts=[artifact], cases=write_cases(tmp_path / "cases.jsonl"), chars=60, facts=2,
        tokens=4, rounds=2, threads=[1], report=tmp_path / "single.json",
    )  # fmt: skip
    work(config)
    told = json.loads(config.report.read_text())
    (engine,) = told["engines"]
    assert (engine["library"], engine["model"], engine["threads"]) == ("curt", name_of(artifact), 1)
    assert 0 < told["reused_tokens"] < told["prompt_tokens"]
    assert engine["token_ms"] > 0
    at = {int(n): ms for n, ms in engine["answer_ms"].items()}
    assert at[16] - at[0] == pytest.approx(16 * engine["token_ms"], abs=1)
    assert config.report.with_suffix(".rows.csv.gz").is_file()


def test_a_library_that_is_not_there_is_named(artifact, tmp_path):
    file = tmp_path / "model.gguf"
    config = SingleConfig(
        artifacts=[artifact], cases=write_cases(tmp_path / "cases.jsonl"), facts=1, threads=[1],
        gguf=[file], peers_python=tmp_path / "none", report=tmp_path / "single.json",
    )  # fmt: skip
    with pytest.raises(OSError, match="none"):
        work(config)
    assert not config.report.exists()


def test_answers_are_measured_of_ours_and_computed_for_others():
    rows = [
        {"library": name, "model": "m", "threads": 1, "prompt_ms": prompt, "token_ms": token}
        for name, prompt, token in (("curt", 100, 10), ("curt", 120, 12), ("llama.cpp", 200, 5))
    ]
    ours, theirs = summarise(rows, {("m", 1): Answers(150, 50, 20, 8)}, 100, [0, 8])
    assert ours["prompt_ms"] == 110
    assert ours["answer_passes"] == 8
    assert ours["answer_ms"] == {0: 150, 8: 238}
    assert theirs["answer_ms"] == {0: 200, 8: 240}
