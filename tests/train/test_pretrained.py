"""Pretrained checkpoints of every shape through warm start, GRPO, export and each engine."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from operator import methodcaller
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from curt.artifact import load_manifest
from curt.checkpoint import SCRATCH, read_checkpoint
from curt.corpus.store import write_cases
from curt.dialogue import THINK_END, THINK_START
from curt.engines.protocol import Request
from curt.engines.tokenizer import PromptTokenizer, read_eos_ids
from tests.cases import common_cases
from tests.checkpoints import make_checkpoint
from tests.train.training_runs import grpo_config, made_by, make_corpus, sft_config
from train.data.trajectories import read_rollouts
from train.grpo import GRPOSettings, check_vllm, train_grpo
from train.loop.trainer import RecordingTrainer
from train.runs.checkpoints import run_folder
from train.runs.lora import Lora
from train.sft import SFTConfig, train_warm_start

MATRIX = {  # how each is trained: all weights or adapters, rollouts of our own or of TRL
    "qwen2.5": (Lora(rank=4), True),
    "qwen3": (None, True),
    "r1": (None, False),
    "gemma3-base": (None, True),
    "gemma2": (Lora(rank=4), False),
    "llama2": (None, True),
    "unigram": (Lora(rank=4), False),
    "granite": (None, True),
    "mistral": (None, True),
}
NO_ORT = {"mistral"}  # refused there by name


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", MATRIX)
def test_a_checkpoint_trains_and_every_engine_writes_the_same(kind, corpus, tmp_path, monkeypatch):
    lora, compact = MATRIX[kind]
    changes = {
        "model": str(make_checkpoint(tmp_path / kind, kind)), "lora": lora, "epochs": 0.5,
        "learning_rate": 1e-4, "per_case": 1, "max_fact_tokens": 200, "max_thinking_tokens": 16,
        "verbosity_weights": {"mini": 0.5, "none": 0.5},
    }  # fmt: skip
    warm = made_by(train_warm_start, sft_config(corpus, tmp_path / "warm", **changes))
    manifest = load_manifest(warm, expect="hf")
    assert manifest.base == changes["model"]
    if lora:
        assert _rows_moved(changes["model"], warm) == {THINK_START, THINK_END}
    config = grpo_config(
        corpus, warm, tmp_path / "grpo", steps=1, learning_rate=1e-5, lora=lora, compact=compact,
        trackers=[],
    )  # fmt: skip
    read: list[list[int]] = []
    generate = RecordingTrainer._generate_single_turn

    def listen(trainer, prompt_ids, *others):
        read.extend(prompt_ids)
        return generate(trainer, prompt_ids, *others)

    monkeypatch.setattr(RecordingTrainer, "_generate_single_turn", listen)
    model = made_by(train_grpo, config)
    assert load_manifest(model).base == manifest.base

    ends = read_eos_ids(warm, PromptTokenizer(warm))
    assert read_eos_ids(model, PromptTokenizer(model)) == ends
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = read_rollouts(run_folder(model) / "trajectories").to_pylist()
    for row in rows:
        assert row["truncated"] == (not set(row["token_ids"]) & set(ends))
        assert row["completion"] == tokenizer.decode(row["token_ids"], skip_special_tokens=True)
    begins = tokenizer.bos_token_id
    assert read
    assert begins is None or all(ids.count(begins) == 1 for ids in read)
    engines = ("transformers", "vllm_dialect", "onnxruntime")
    _check_engines(model, engines if kind not in NO_ORT else engines[:2])


def _rows_moved(before: str, after: Path) -> set[str]:
    """Tokens whose embeddings training changed."""
    checkpoint = read_checkpoint(before)
    old, new = checkpoint.load_model(), AutoModelForCausalLM.from_pretrained(after)
    moved = [
        (layer(old).weight.data != layer(new).weight.data).any(dim=1).nonzero().flatten().tolist()
        for layer in (methodcaller("get_input_embeddings"), methodcaller("get_output_embeddings"))
    ]
    assert moved[0] == moved[1]
    return set(checkpoint.tokenizer.convert_ids_to_tokens(moved[0]))


def _check_engines(folder: Path, kinds: tuple[str, ...]) -> None:
    from contextlib import ExitStack

    from tests.curt.engines.subjects import VllmServers, open_subject
    from tests.micro import FACTS

    requests = [Request(fact, 8, 8, 40) for fact in FACTS]
    texts = {}
    with ExitStack() as stack:
        servers = VllmServers(stack)
        for kind in kinds:
            engine = open_subject(kind, folder, stack, servers).engine
            texts[kind] = [generation.text for generation in engine.generate(requests)]
            if kind != "vllm_dialect":  # it is told with each request
                assert set(engine.eos_ids) == set(read_eos_ids(folder, PromptTokenizer(folder)))
    assert all(text == texts["transformers"] for text in texts.values())
    assert all(THINK_END in text for text in texts["transformers"])
    assert json.loads((folder / "generation_config.json").read_text()).get("temperature") is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"muon_rate": 0.02}, "muon_rate is for models from scratch"),
        ({"learning_rate": 3e-3}, "ruins the pretrained weights"),
        ({"max_fact_tokens": 4000}, "lower max_fact_tokens"),
    ],
)
def test_what_would_be_hours_lost_is_refused_before_the_run(tmp_path, changes, said):
    (corpus := tmp_path / "corpus").mkdir()
    write_cases(corpus / "train.jsonl", common_cases(1, "train"))
    config = sft_config(
        corpus, tmp_path / "out", model=str(make_checkpoint(tmp_path / "qwen3", "qwen3")),
        **{"learning_rate": 1e-5, **changes},
    )  # fmt: skip
    with pytest.raises(ValueError, match=said):
        train_warm_start(config)
    assert not run_folder(config.out).exists()


def test_rates_follow_from_what_training_starts_from(tmp_path, micro_model):
    pretrained = read_checkpoint(make_checkpoint(tmp_path / "qwen3", "qwen3"))
    config = SFTConfig(model="m")
    assert config.choose_rate(None) == 2e-3
    assert config.choose_rate(pretrained) == 1e-5
    assert SFTConfig(model="m", lora={}).choose_rate(pretrained) == 1e-4
    ours = replace(
        pretrained, manifest=load_manifest(micro_model).model_copy(update={"base": SCRATCH})
    )
    assert SFTConfig(model="m", muon_rate=0.02).choose_rate(ours) == 2e-3


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is there")
def test_a_missing_vllm_is_said_before_the_run_folder_is_made(tmp_path, micro_model):
    config = grpo_config(tmp_path, micro_model, tmp_path / "out", trl={"use_vllm": True})
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(ValueError, match="use_vllm needs vLLM beside TRL"):
        train_grpo(config)
    assert not run_folder(config.out).exists()


def test_vllm_is_not_given_a_checkpoint_that_lacks_the_tokens_added(tmp_path, monkeypatch):
    monkeypatch.setattr("train.grpo.importlib.util.find_spec", lambda name: object())
    check_vllm(read_checkpoint(make_checkpoint(tmp_path / "qwen3", "qwen3")))
    with pytest.raises(ValueError, match=r"python -m curt\.checkpoint --model"):
        check_vllm(read_checkpoint(make_checkpoint(tmp_path / "qwen2.5", "qwen2.5")))
    # All its tokens are there, but it would write on past the end that its template writes.
    folder = shutil.copytree(tmp_path / "qwen3", tmp_path / "base")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["eos_token"] = "<|endoftext|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": None}))
    assert read_checkpoint(folder).pieces == {}
    with pytest.raises(ValueError, match=r"ends a turn with <\|im_end\|>.* start from the folder"):
        check_vllm(read_checkpoint(folder))


def test_adapters_are_not_kept_for_a_base_that_lacks_what_was_settled(tmp_path):
    write_cases(tmp_path / "train.jsonl", common_cases(1, "train"))
    source = make_checkpoint(tmp_path / "qwen2.5", "qwen2.5")
    config = SFTConfig(corpus=tmp_path, model=str(source), out=tmp_path / "out", max_fact_tokens=64,
                       max_thinking_tokens=16, lora={"keep": True})  # fmt: skip
    with pytest.raises(ValueError, match="a server of the kept adapter would load"):
        train_warm_start(config)
    assert not run_folder(config.out).exists()


def test_compact_rollouts_are_not_vllms():
    with pytest.raises(ValueError, match="compact samples without vLLM"):
        GRPOSettings(compact=True, trl={"use_vllm": True})
