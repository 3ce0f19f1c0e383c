"""Checkpoints of every shape are settled once, and then any engine can serve them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from curt.artifact import ArtifactError, load_manifest, write_artifact
from curt.checkpoint import (
    CheckpointConfig,
    _restore_merges,
    check_rate,
    check_servable,
    read_checkpoint,
    write_checkpoint,
)
from curt.classifier.candidates import load_prompts
from curt.dialogue import SYSTEM, THINK_END, THINK_START, Prompts
from curt.dialogue.answer import describe_grammar
from curt.engines.remote import VllmModel
from curt.engines.tokenizer import PromptTokenizer, read_eos_ids
from curt.engines.transformers import load_model
from tests.checkpoints import GEMMA, KINDS, SHAPE, make_checkpoint, score_pieces
from tests.micro import FACTS
from train.branches import can_pack

ROOT = Path(__file__).parents[2]
BEGINS = {"r1": "<|begin|>", "llama-base": "<s>", "gemma3-base": "<bos>", "gemma2": "<bos>",
          "unigram": "<bos>", "mistral": "<s>", "llama2": "<s>"}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def find(sources):
    def find(kind: str) -> Path:
        folder = sources / kind
        return folder if folder.exists() else make_checkpoint(folder, kind)

    return find


@pytest.fixture(scope="module")
def written(sources, find):
    def written(kind: str) -> Path:
        out = sources / f"{kind}-written"
        if not out.exists():
            write_checkpoint(
                CheckpointConfig(
                    model=str(find(kind)), out=out, max_fact_tokens=200, max_thinking_tokens=64
                )
            )
        return out

    return written


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_needs_no_further_change(written, kind):
    folder = written(kind)
    assert load_manifest(folder, expect="hf").stage == "checkpoint"
    again = read_checkpoint(folder)
    assert again.changes == []
    assert again.pieces == {}
    assert again.is_pretrained
    check_servable(folder, 200, 64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_opens_thinking_once_and_begins_with_bos_once(written, kind):
    full, light = AutoTokenizer.from_pretrained(written(kind)), PromptTokenizer(written(kind))
    prompt = Prompts(light, 200).encode(FACTS[0], 16)
    text = Prompts(full, 200).text(FACTS[0], 16)
    told = load_prompts(written(kind), light, 200).text(FACTS[0], 16)
    assert describe_grammar() in told
    assert told.rstrip().endswith(THINK_START)
    assert prompt.ids == Prompts(full, 200).encode(FACTS[0], 16).ids
    assert text.count(THINK_START) == 1
    assert text.rstrip().endswith(THINK_START)
    assert SYSTEM in text
    assert FACTS[0] in text
    if begins := BEGINS.get(kind):
        assert prompt.ids.count(full.convert_tokens_to_ids(begins)) == 1
        assert text.startswith(begins)


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_thinking_is_one_token_that_decoding_keeps(written, kind):
    tokenizer = AutoTokenizer.from_pretrained(written(kind))
    ids = tokenizer(f"甲{THINK_END}乙", add_special_tokens=False)["input_ids"]
    assert PromptTokenizer(written(kind)).single_id(THINK_END) in ids
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert text.replace(" ", "" if kind == "llama2" else " ") == f"甲{THINK_END}乙"


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        ("qwen2.5", ["<|endoftext|>", "<|im_end|>"]),
        ("r1", ["<|end|>"]),
        ("llama-base", ["</s>"]),
        ("gemma2", ["<eos>", "<end_of_turn>"]),
    ],
)
def test_every_end_of_a_turn_is_known_and_the_templates_is_learned(written, kind, ends):
    folder = written(kind)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert read_eos_ids(folder, PromptTokenizer(folder)) == tokenizer.convert_tokens_to_ids(ends)
    assert tokenizer.eos_token == ends[-1]


def test_sampling_fields_do_not_come_along(written):
    settings = json.loads((written("qwen2.5") / "generation_config.json").read_text())
    assert settings.keys() <= {"eos_token_id", "pad_token_id", "bos_token_id",
                               "transformers_version"}  # fmt: skip
    assert settings["eos_token_id"] == [0, 2]


def test_a_conversion_that_names_the_begin_of_turns_as_their_end_is_mended(find, tmp_path):
    folder = shutil.copytree(find("qwen3"), tmp_path / "c")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"eos_token": "<|im_start|>", "bos_token": "<|im_start|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text("{}")
    shape = json.loads((folder / "config.json").read_text()) | {"eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(shape))
    checkpoint = read_checkpoint(folder)
    assert checkpoint.eos_ids == [2]
    assert checkpoint.tokenizer.eos_token == "<|im_end|>"


def test_a_padded_vocabulary_keeps_its_rows_and_one_without_room_grows(find):
    padded, full = read_checkpoint(find("qwen2.5")), read_checkpoint(find("llama-base"))
    rows = padded.load_model().get_input_embeddings().num_embeddings
    assert rows == len(padded.tokenizer) - 2 + 40  # the marks of thinking fit its padding
    model = full.load_model()
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == 512
    assert len(full.tokenizer) <= 512


def test_a_mark_of_thinking_begins_between_its_pieces_and_as_long(find):
    checkpoint = read_checkpoint(find("llama-base"))
    model = checkpoint.load_model()
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        for token, pieces in checkpoint.pieces.items():
            row, mean = layer.weight[token], layer.weight[pieces].mean(0)
            assert torch.cosine_similarity(row, mean, dim=0) > 0.999
            lengths = layer.weight[pieces].norm(dim=1)
            assert row.norm().item() == pytest.approx(lengths.mean().item())


@pytest.mark.parametrize("kind", KINDS)
def test_branches_are_what_they_are_alone_in_every_architecture(find, sources, kind):
    """Large weights: windows, caps and scales that were left out would show."""
    folder = make_checkpoint(sources / f"{kind}-large", kind, scale=20.0)
    assert can_pack(load_model(folder))


def test_a_model_that_is_no_attention_is_given_plain_rows():
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=1)
    assert not can_pack(MambaForCausalLM(config))


def test_capped_attention_is_computed_as_trained(sources, find):
    folder = make_checkpoint(sources / "gemma2-capped", "gemma2", scale=20.0)
    assert load_model(folder).config._attn_implementation == "eager"
    assert load_model(find("gemma3-base")).config._attn_implementation == "sdpa"


def test_rates_for_random_weights_are_refused_for_pretrained_ones(find, micro_model):
    checkpoint = read_checkpoint(find("qwen3"))
    check_rate(checkpoint, 1e-5, adapters=False)
    check_rate(checkpoint, 2e-4, adapters=True)
    with pytest.raises(ValueError, match="ruins the pretrained weights"):
        check_rate(checkpoint, 3e-3, adapters=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["Qwen3Model"]}, "writes no text"),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "writes no text"),
        ({"model_type": "strange9"}, "transformers does not have"),
        ({"text_config": {"model_type": "qwen3"}}, r"several parts \(text_config\)"),
        ({"vision_config": {}}, "several parts"),
    ],
)
def test_other_architectures_are_refused_by_name(find, tmp_path, change, said):
    folder = shutil.copytree(find("qwen3"), tmp_path / "c")
    shape = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(shape))
    with pytest.raises(ValueError, match=said) as error:
        read_checkpoint(folder)
    assert "config.json" in str(error.value)
    assert str(folder) in str(error.value)


def test_an_embedding_model_under_a_causal_name_is_refused(find, tmp_path):
    folder = shutil.copytree(find("qwen3"), tmp_path / "c")
    (folder / "modules.json").write_text("[]")
    with pytest.raises(ValueError, match=r"modules\.json says that it writes no text"):
        read_checkpoint(folder)


def test_a_tokenizer_that_answers_cant_be_held_with_is_refused(find, tmp_path):
    folder = shutil.copytree(find("unigram"), tmp_path / "c")
    state = json.loads((folder / "tokenizer.json").read_text())
    state["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"}
    (folder / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ArtifactError, match="held to the grammar with this tokenizer") as refused:
        read_checkpoint(folder).check_servable(200, 64)
    assert str(folder) in str(refused.value)


def test_rows_are_grown_for_every_token_that_the_tokenizer_has(find, tmp_path):
    folder = shutil.copytree(find("qwen3"), tmp_path / "c")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = load_model(folder).get_input_embeddings().num_embeddings
    tokenizer.add_tokens([f"<extra_{i}>" for i in range(rows + 1 - len(tokenizer))])
    tokenizer.save_pretrained(folder)
    checkpoint = read_checkpoint(folder)
    assert checkpoint.pieces == {}
    checkpoint.check_servable(200, 64)
    assert checkpoint.load_model().get_input_embeddings().num_embeddings > rows


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (["tokenizer.json"], "has no tokenizer"),
        (["model.safetensors"], "has no weights"),
        (["config.json"], "has no config.json"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused(find, tmp_path, missing, said):
    folder = shutil.copytree(find("qwen3"), tmp_path / "c")
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(ValueError, match=said):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("no.gguf", None, "no file"),
        ("text.gguf", b"hello", "no GGUF file"),
        ("weights.bin", b"0", "give a .gguf file"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_checkpoint(tmp_path / name)


def test_a_gguf_file_names_what_reads_it(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("curt.checkpoint.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package gguf: .*-r (\S+)$") as refused:
        read_checkpoint(tmp_path)
    file = ROOT / str(refused.value).split()[-1]
    (pin,) = re.findall(r"^gguf==.+", file.read_text(), re.MULTILINE)
    assert pin in Path("constraints.txt").read_text().splitlines()


def write_gguf(path: Path, architecture: str, *, tokens: bool = True) -> Path:
    """A GGUF file of one small tensor."""
    gguf = pytest.importorskip("gguf", reason="configs/real/requirements.txt is not installed")
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(1024)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    if tokens:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["a", "b", "<eos>"])
        writer.add_token_merges(["a b"])
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_of_an_unknown_architecture_is_refused(tmp_path):
    file = write_gguf(tmp_path / "model.gguf", "strange9")
    with pytest.raises(ValueError, match="strange9 is not supported yet: use a checkpoint in") as e:
        read_checkpoint(file)
    assert str(file) in str(e.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.98])
def test_a_gguf_that_was_cut_short_is_refused(tmp_path, share):
    file = write_gguf(tmp_path / "model.gguf", "qwen2")
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="cut short or damaged: fetch it again") as refused:
        read_checkpoint(file)
    assert str(file) in str(refused.value)


def test_a_gguf_without_a_tokenizer_is_refused(tmp_path):
    file = write_gguf(tmp_path / "model.gguf", "qwen2", tokens=False)
    with pytest.raises(ValueError, match=r"the tokenizer of .* can't be read") as refused:
        read_checkpoint(file)
    assert str(file) in str(refused.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_damaged_file_of_a_folder_is_named(find, tmp_path, name):
    folder = shutil.copytree(find("qwen3"), tmp_path / "c")
    (folder / name).write_text((folder / name).read_text()[:200])
    with pytest.raises((ValueError, OSError), match=str(folder)):
        read_checkpoint(folder)


def test_a_gguf_files_scored_pieces_are_the_bpe_that_they_were(find):
    tokenizer = AutoTokenizer.from_pretrained(find("gemma2"))
    texts = [fact[start:-3] for fact in (*FACTS, SYSTEM) for start in range(2, 20, 3)]
    texts += ["罕见的字踟蹰🦊", "<start_of_turn>user\n甲<end_of_turn>"]
    expected = tokenizer(texts)["input_ids"]
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][: len(GEMMA)]  # no word of the marks of turns
    pieces = score_pieces(state, 0, 1)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(pieces))
    assert tokenizer(texts)["input_ids"] != expected
    _restore_merges(tokenizer)
    assert tokenizer(texts)["input_ids"] == expected
    assert tokenizer.decode(expected[2], skip_special_tokens=True) == texts[2]


def test_a_path_that_is_not_there_is_no_hub_id():
    with pytest.raises(ValueError, match="no folder artifacts/nowhere"):
        read_checkpoint("artifacts/nowhere")


def test_a_template_that_drops_what_it_is_given_is_refused(find, tmp_path):
    folder = shutil.copytree(find("qwen3"), tmp_path / "c")
    (folder / "chat_template.jinja").write_text("{{ 'always the same' }}")
    with pytest.raises(ValueError, match="leaves out what it is given"):
        read_checkpoint(folder)


def test_a_context_too_short_for_the_budgets_is_refused(find):
    with pytest.raises(ArtifactError, match="lower max_fact_tokens") as error:
        read_checkpoint(find("qwen3")).check_servable(900, 512)
    assert str(find("qwen3")) in str(error.value)
    needed = int(re.findall(r"need (\d+)", str(error.value))[0])
    room = 900 - (needed - SHAPE["max_position_embeddings"])
    read_checkpoint(find("qwen3")).check_servable(room, 512)
    with pytest.raises(ArtifactError, match="lower max_fact_tokens"):  # what a reader adds
        read_checkpoint(find("qwen3")).check_servable(room, 512, reader=True)


def test_a_folder_whose_config_nests_its_model_is_refused_by_serving(written, tmp_path):
    described = load_manifest(written("qwen3")).model_dump(exclude={"tools", "created", "files"})
    with write_artifact(tmp_path / "c", described) as folder:
        shutil.copytree(written("qwen3"), folder, dirs_exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"text_config": {}}))
    for refuse in (lambda f: check_servable(f, 200, 64), lambda f: VllmModel(f, "http://x:1")):
        with pytest.raises(ArtifactError, match="nested in text_config") as refused:
            refuse(tmp_path / "c")
        assert str(tmp_path / "c") in str(refused.value)
