from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.decode_peers import (
    CHECK_TOKENS,
    DecodePeersConfig,
    agreement,
    follow_transformers,
    make_prompts,
    measure,
    prepare_peers,
    summarise,
)
from benchmarks.peer_formats import FACTS, convert
from benchmarks.peer_process import Variant, open_worker
from benchmarks.random_model import NOTICE, RandomModelConfig, _build, make_random_model
from curt.artifact import load_manifest
from tests.compress.exports import export

TEXTS = st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=4)


@pytest.fixture
def bare_python(tmp_path):
    """A Python without any installed package."""
    file = tmp_path / "python"
    file.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    file.chmod(0o755)
    return file


def settings(model, tmp_path, **changes):
    given_settings = {
        "model": model,
        "ort": [tmp_path / "ort"],
        "work": tmp_path / "work",
        "prompt_tokens": 60,
        "decode_tokens": 4,
        **changes,
    }
    return DecodePeersConfig(**given_settings)


@given(TEXTS)
def test_a_text_agrees_with_itself(texts):
    assert agreement(texts, texts) == 1.0


@given(TEXTS, TEXTS)
def test_agreement_is_a_share(left, right):
    count = min(len(left), len(right))
    assert 0.0 <= agreement(left[:count], right[:count]) <= 1.0


def test_what_follows_the_first_difference_does_not_count():
    assert agreement([[1, 2, 3, 4]], [[1, 2, 9, 4]]) == 0.5
    assert agreement([[1], [2, 3, 4]], [[7], [2, 3, 4]]) == 0.75


def test_ratios_are_taken_within_a_round():
    variant = Variant("a", "openvino", Path("a"), Path("python"), 2_000_000_000, 3_000_000)
    first = [
        {"prefill_s": 2.0, "decode_s": 4.0, "passes": 40, "runs": 2, "rss_mb": 1.0},
        {"prefill_s": 1.0, "decode_s": 2.0, "passes": 20, "runs": 1, "rss_mb": 1.0},
    ]
    own = [
        {"prefill_s": 0.5, "decode_s": 2.0, "passes": 40, "runs": 1, "rss_mb": 5.0},
        {"prefill_s": 0.5, "decode_s": 1.0, "passes": 40, "runs": 1, "rss_mb": 6.0},
    ]
    row = summarise(variant, 100, own, first, [80.0, 160.0])
    assert row["prefill_tokens_per_s"] == {"median": 200.0, "low": 200.0, "high": 200.0}
    assert row["prefill_to_first"]["median"] == 2.0
    assert row["decode_to_first"] == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert row["bandwidth_share"] == {"median": 0.5, "low": 0.5, "high": 0.5}
    assert (row["weight_mb_per_token"], row["model_mb"], row["peak_rss_mb"]) == (2000.0, 3.0, 6.0)


def test_the_prompts_are_as_long_as_asked_and_differ(micro_model, tmp_path):
    timed, *short = make_prompts(settings(micro_model, tmp_path, prompt_tokens=333))
    assert len(timed) == 333
    assert {len(p) for p in short} == {48}
    assert len({tuple(p) for p in short}) == 4


def test_a_peer_that_is_not_installed_is_reported(micro_model, tmp_path, bare_python):
    config = settings(micro_model, tmp_path, peers_python=bare_python, peers=["q4_0", "ov-int8"])
    variants, missing = prepare_peers(config)
    assert variants == []
    assert missing == {
        "llama.cpp q4_0": "not installed: llama_cpp, gguf, safetensors",
        "openvino int8": "not installed: openvino_genai, optimum.intel, nncf",
    }


def test_formats_that_are_not_known_are_refused(micro_model, tmp_path):
    with pytest.raises(ValueError, match="q3_9: use some of"):
        measure(settings(micro_model, tmp_path, peers=["q3_9"]))


def test_a_prompt_beyond_the_context_is_refused(micro_model, tmp_path):
    with pytest.raises(ValueError, match="do not fit the context of 512"):
        measure(settings(micro_model, tmp_path, prompt_tokens=510))


def test_a_model_that_does_not_load_says_why(tmp_path):
    variant = Variant("gone", "onnxruntime-genai", tmp_path / "gone", Path(sys.executable), 1, 1)
    with (
        pytest.raises(RuntimeError, match=r"gone failed: .*genai_config"),
        open_worker(variant, 1, 64),
    ):
        pass


def test_a_failed_conversion_leaves_nothing(micro_model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(micro_model, broken)
    file = broken / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "mamba"}))
    pytest.importorskip("gguf", reason="the peers' environment has it")
    with pytest.raises(ValueError, match="mamba"):
        convert("f32", broken, tmp_path / "work" / "out")
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("shape", ["qwen2.5-0.5b", "qwen3-0.6b"])
def test_a_gguf_file_holds_every_weight(micro_model, tmp_path, shape):
    gguf = pytest.importorskip("gguf", reason="the peers' environment has it")
    folder = tmp_path / "model"
    make_random_model(
        RandomModelConfig(shape=shape, out=folder, tokenizer=micro_model, vocab=500, layers=1)
    )
    convert("f32", folder, tmp_path / "out")
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    weights = load_file(folder / "model.safetensors")
    assert sum(t.n_elements for t in reader.tensors) == sum(w.numel() for w in weights.values())
    named = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    assert torch.equal(named["token_embd.weight"], weights["model.embed_tokens.weight"])
    assert torch.equal(
        named["blk.0.ffn_gate.weight"], weights["model.layers.0.mlp.gate_proj.weight"]
    )
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert len(tokens) == 500
    facts = json.loads((tmp_path / "out" / FACTS).read_text())
    assert facts["weight_bytes_per_token"] == 4 * sum(w.numel() for w in weights.values())


def test_a_random_model_says_what_it_is(micro_model, tmp_path):
    folder = tmp_path / "model"
    config = RandomModelConfig(out=folder, tokenizer=micro_model, vocab=0, layers=1)
    sizes = make_random_model(config)
    manifest = load_manifest(folder, expect="hf")
    assert NOTICE in manifest.base
    assert manifest.config["parameters"] == sizes["parameters"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == sizes["parameters"]
    biases = [p for name, p in model.named_parameters() if name.endswith(".bias")]
    assert biases
    assert all(float(p.detach().abs().max()) > 0 for p in biases)


def test_a_seed_gives_the_same_weights_again(micro_model, tmp_path):
    weights = []
    for name in ("one", "two"):
        config = RandomModelConfig(out=tmp_path / name, tokenizer=micro_model, vocab=0, layers=1)
        make_random_model(config)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(micro_model, tmp_path):
    with pytest.raises(ValueError, match="vocab 100 is smaller than the tokenizer's"):
        make_random_model(
            RandomModelConfig(out=tmp_path / "m", tokenizer=micro_model, vocab=100, layers=1)
        )


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen3-0.6b", 596_049_920),
    ],
)
def test_a_shape_has_as_many_parameters_as_published(micro_model, tmp_path, shape, parameters):
    config = RandomModelConfig(shape=shape, out=tmp_path / "m")
    with torch.device("meta"):
        model = _build(config, 151_936, AutoTokenizer.from_pretrained(micro_model))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.slow
def test_the_exported_model_writes_what_transformers_does_and_is_timed(
    micro_model, tmp_path, bare_python
):
    folder = export(micro_model, tmp_path / "ort")
    config = settings(micro_model, tmp_path, ort=[folder], peers_python=bare_python, threads=(1,))
    result = measure(config.model_copy(update={"rounds": 2}))
    assert len(result["missing"]) == len(config.peers)
    assert [row["variant"] for row in result["rows"]] == ["ort", "ort, spinning"]
    for row in result["rows"]:
        assert row["greedy_agreement"] == 1.0
        assert row["decode_tokens_per_s"]["low"] > 0
    assert result["rows"][0]["decode_to_first"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert all(
        len(t) <= CHECK_TOKENS for t in follow_transformers(micro_model, make_prompts(config)[1:])
    )
