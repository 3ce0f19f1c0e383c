"""A trimmed vocabulary reads, writes and computes what the whole one did, in fewer rows."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PhiConfig, PhiForCausalLM

from compress.folders import load_model
from compress.trim import TrimConfig, choose_tokens, keep_rows, trim, trim_tokenizer
from curt.artifact import MANIFEST, load_manifest, parent_of, write_artifact
from curt.checkpoint import CheckpointConfig, read_checkpoint, write_checkpoint
from curt.classifier.candidates import PROBE, load_prompts
from curt.corpus.generate.generator import generate_cases
from curt.corpus.store import read_cases, write_cases
from curt.dialogue import THINK_END, THINK_START, render_completion
from curt.engines.protocol import Request
from curt.engines.registry import open_engine
from curt.engines.tokenizer import PromptTokenizer, read_eos_ids
from curt.files import sha256
from tests.checkpoints import make_checkpoint
from tests.compress.onnx.exports import export

BYTE_LEVEL, PIECES = ("qwen2.5", "qwen3", "r1", "llama-base"), ("gemma3-base", "gemma2", "unigram")
RARE = "踟"  # level 2 of GB 2312, in no case
FOREIGN = "fox"


def write_elsewhere() -> list[str]:
    """Text that no case is like, and more of it than of any phrase of a case."""
    words = [FOREIGN, "quick", "brown", "jumps", "lazy", "съешь", "булок", "模型训练", "人工智能"]
    rng = random.Random(0)
    texts = [" ".join(rng.sample(words, 6)) for _ in range(900)]
    return texts + [f"{rng.randrange(10)}{RARE}{rng.randrange(10)}" for _ in range(2000)]


class Trimmed(NamedTuple):
    before: Path
    after: Path
    corpus: Path
    kept: list[int]
    """The id before of each token after."""


@pytest.fixture(scope="module")
def trimmed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trimmed]:
    root = tmp_path_factory.mktemp("trim")
    corpus = root / "train.jsonl"
    drawn = list(generate_cases(300, seed=3))
    write_cases(corpus, drawn[:12])
    texts = [*write_elsewhere(), *(case.fact for case in drawn)]

    @lru_cache
    def make(kind: str) -> Trimmed:
        source = make_checkpoint(root / kind, kind, scale=4.0, texts=texts, tokens=4000)
        before, after = root / f"{kind}-before", root / f"{kind}-after"
        write_checkpoint(CheckpointConfig(
            model=str(source), out=before, max_fact_tokens=200, max_thinking_tokens=64
        ))  # fmt: skip
        trim(TrimConfig(model=before, corpus=corpus, out=after))
        old, new = (AutoTokenizer.from_pretrained(folder) for folder in (before, after))
        names = new.convert_ids_to_tokens(range(len(new)))
        return Trimmed(before, after, corpus, old.convert_tokens_to_ids(names))

    return make


def texts_of(work: Trimmed) -> list[str]:
    prompts = load_prompts(work.before, PromptTokenizer(work.before), 200)
    texts = []
    for case in read_cases(work.corpus):
        texts += [prompts.text(case.fact, 32), prompts.text(case.fact, 0, PROBE)]
        texts += [render_completion(t, case.verdict) for t in case.reasonings.values()]
    return texts


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, *PIECES])
def test_what_the_cases_say_has_the_same_tokens_and_the_same_logits(trimmed, kind):
    work = trimmed(kind)
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (work.before, work.after))
    assert sorted(work.kept) == work.kept
    assert len(new) < len(old)
    whole, small = (load_model(folder) for folder in (work.before, work.after))
    for text in texts_of(work):
        ids = new(text)["input_ids"]  # with what the tokenizer itself puts before it
        assert [work.kept[i] for i in ids] == old(text)["input_ids"]
        assert new.decode(ids) == old.decode(old(text)["input_ids"])
    with torch.no_grad():
        left = whole(torch.tensor([[work.kept[i] for i in ids]])).logits[..., work.kept]
        torch.testing.assert_close(small(torch.tensor([ids])).logits, left)
    for end in ("get_input_embeddings", "get_output_embeddings"):
        rows, all_rows = (getattr(model, end)().weight for model in (small, whole))
        assert torch.equal(rows, all_rows[work.kept])
    assert small.config.vocab_size == len(new)


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, *PIECES])
def test_what_is_special_keeps_its_part(trimmed, kind):
    work = trimmed(kind)
    before, after = PromptTokenizer(work.before), PromptTokenizer(work.after)
    for mark in (THINK_START, THINK_END):
        assert work.kept[after.single_id(mark)] == before.single_id(mark)
    ends = [work.kept[i] for i in read_eos_ids(work.after, after)]
    assert ends == read_eos_ids(work.before, before)
    again = read_checkpoint(work.after)
    assert again.changes == []
    assert [work.kept[i] for i in again.eos_ids] == ends
    whole = json.loads((work.before / "tokenizer.json").read_text())["added_tokens"]
    left = json.loads((work.after / "tokenizer.json").read_text())["added_tokens"]
    assert [t["content"] for t in left] == [t["content"] for t in whole]
    shapes = [json.loads((f / "config.json").read_text()) for f in (work.before, work.after)]
    named = [{n: v for n, v in s.items() if n.endswith("_token_id") and v} for s in shapes]
    assert named[0].keys() == named[1].keys()
    for name, value in named[1].items():
        new = value if isinstance(value, list) else [value]
        old = named[0][name]
        assert [work.kept[i] for i in new] == (old if isinstance(old, list) else [old])


def test_a_token_that_only_the_settings_name_stays(trimmed, tmp_path):
    """Gemma GGUF files call no token special; the settings name a <mask> all the same."""
    before, corpus = tmp_path / "before", trimmed("gemma2").corpus
    shutil.copytree(trimmed("gemma2").before, before)
    tokenizer = json.loads((before / "tokenizer.json").read_text())
    names = {place: name for name, place in tokenizer["model"]["vocab"].items()}
    kept = set(trimmed("gemma2").kept)
    unused = max(place for place in names if place not in kept)
    marks = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"].append(
        {"id": unused, "content": names[unused], "special": False, **marks}
    )
    tokenizer["added_tokens"].sort(key=lambda token: token["id"])
    (before / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((before / "tokenizer_config.json").read_text())
    (before / "tokenizer_config.json").write_text(
        json.dumps(settings | {"mask_token": names[unused]})
    )
    manifest = json.loads((before / MANIFEST).read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        manifest["files"][name] = sha256(before / name)
    (before / MANIFEST).write_text(json.dumps(manifest))

    trim(TrimConfig(model=before, corpus=corpus, out=tmp_path / "after"))
    new = AutoTokenizer.from_pretrained(tmp_path / "after")
    assert new.mask_token == names[unused]
    assert len(new) == load_model(tmp_path / "after").config.vocab_size


@pytest.mark.parametrize("kind", ["qwen2.5", "gemma3-base"])
def test_a_common_character_that_no_case_has_stays_whole(trimmed, kind):
    before, after = (PromptTokenizer(folder) for folder in trimmed(kind)[:2])
    assert RARE not in trimmed(kind).corpus.read_text()
    assert before.count(RARE) == after.count(RARE) == 1
    assert before.count(FOREIGN) == 1 < after.count(FOREIGN)


PIECES_OF_TEXT = st.lists(
    st.sampled_from([
        "盗窃", "被告人", "现金", "8000元", "2019年", "，", "。", " ", "\n", RARE, FOREIGN, "булок",
        "🦊", "罪名：", "刑期", "有期徒刑", "</think>", "mg/100ml", "\t", "é",
    ]), max_size=12,
).map("".join)  # fmt: skip


@pytest.mark.parametrize("kind", ["qwen2.5", "gemma3-base", "unigram"])
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=PIECES_OF_TEXT)
def test_kept_tokens_stay_and_any_text_comes_back(trimmed, kind, text):
    work = trimmed(kind)
    before, after = (Tokenizer.from_file(str(f / "tokenizer.json")) for f in work[:2])
    old, new = (
        tokenizer.encode(text, add_special_tokens=False).ids for tokenizer in (before, after)
    )
    if set(old) <= set(work.kept):
        assert [work.kept[i] for i in new] == old
    kept = before.decode(old, skip_special_tokens=False)
    assert after.decode(new, skip_special_tokens=False) == kept


def test_a_token_is_kept_with_what_it_is_really_merged_from():
    """`abc` has two last merges; the one of the lower rank is never reached."""
    merges = [["a", "b"], ["a", "bc"], ["b", "c"], ["ab", "c"]]
    vocab = {name: i for i, name in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
    model = {"type": "BPE", "vocab": vocab, "merges": merges}
    whole = {"model": model, "added_tokens": [], "pre_tokenizer": None, "decoder": None}
    assert choose_tokens(whole, [vocab["abc"]]) == [vocab[n] for n in ("a", "b", "c", "ab", "abc")]


def test_a_character_that_goes_costs_no_less_than_it_did():
    """The cost of an unknown one follows from the least likely piece, which so stays."""
    pieces = [["<unk>", 0.0], ["<0x41>", 0.0], ["盗", -90.0], ["窃", -80.0], ["盗窃", -60.0]]
    pieces.append(["踟", -100.0])
    model = {"type": "Unigram", "vocab": pieces, "unk_id": 0, "byte_fallback": True}
    whole = {
        "model": model, "added_tokens": [], "pre_tokenizer": None, "decoder": None,
        "post_processor": None,
    }  # fmt: skip
    kept = choose_tokens(whole, [1])
    assert kept == [0, 1, 5]
    assert trim_tokenizer(whole, kept)["model"]["vocab"] == [pieces[i] for i in kept]
    assert choose_tokens(whole, [4]) == [0, 1, 2, 3, 4, 5]


def test_an_output_layer_with_a_bias_of_its_own_loses_the_same_rows():
    model = PhiForCausalLM(PhiConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, bos_token_id=3, eos_token_id=7, pad_token_id=None,
    ))  # fmt: skip
    torch.nn.init.normal_(model.lm_head.bias)
    kept = [3, 5, 7, 19]
    with torch.no_grad():
        before = model(torch.tensor([kept])).logits[..., kept]
        keep_rows(model, kept)
        torch.testing.assert_close(model(torch.tensor([[0, 1, 2, 3]])).logits, before)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (0, 2)


def test_the_manifest_names_the_parent_and_what_went(trimmed):
    work = trimmed("qwen2.5")
    manifest, parent = load_manifest(work.after, expect="hf"), load_manifest(work.before)
    assert (manifest.stage, manifest.base) == ("trim", parent.base)
    assert manifest.parent == parent_of(work.before)
    assert manifest.prompt_version == parent.prompt_version
    report = manifest.config["trimming"]
    assert report["tokens_after"] == len(work.kept) < report["tokens_before"]
    assert report["parameters_after"] == load_model(work.after).num_parameters()
    assert report["parameters_after"] < report["parameters_before"]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (models.Unigram([("<unk>", 0.0), ("盗", -1.0)], unk_id=0), "is a Unigram model"),
        (models.BPE({"盗": 0, "<unk>": 1}, [], unk_token="<unk>"), "falls back to bytes"),
    ],
)
def test_other_tokenizers_are_refused(micro_model, tmp_path, model: Any, said: str):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    describe = load_manifest(micro_model).model_dump(exclude={"tools", "created", "files"})
    with write_artifact(tmp_path / "parent", describe) as folder:
        shutil.copytree(micro_model, folder, dirs_exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))
    config = TrimConfig(model=tmp_path / "parent", corpus=tmp_path / "c", out=tmp_path / "out")
    with pytest.raises(ValueError, match=said):
        trim(config)
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]


def test_the_parent_is_not_overwritten(tmp_path):
    with pytest.raises(ValueError, match="is the parent itself"):
        TrimConfig(model=tmp_path, corpus=tmp_path / "c", out=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2.5", "gemma3-base"])
def test_a_trimmed_folder_is_exported_and_every_engine_writes_the_same(trimmed, kind, tmp_path):
    work = trimmed(kind)
    artifact = export(work.after, tmp_path / "fp32")
    requests = [Request(case.fact, 8, 8, 40) for case in read_cases(work.corpus, 3)]
    texts = [
        [generation.text for generation in open_engine(folder).generate(requests)]
        for folder in (work.after, artifact)
    ]
    assert texts[0] == texts[1]
