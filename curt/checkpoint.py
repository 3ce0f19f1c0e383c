"""Any causal checkpoint: what it must be to be trained and served here, and what is settled first.

    python -m curt.checkpoint --model Qwen/Qwen2.5-0.5B-Instruct --max_fact_tokens 512
    python -m curt.checkpoint --model model.gguf --max_fact_tokens 512 --out artifacts/start

A checkpoint is a hub id, a folder that `save_pretrained` wrote, or a GGUF file. The command says
what training would change in it; with `--out` it writes the checkpoint, untrained, as a model
folder.
`train.sft`, `train.grpo` and the exports go through the same checks before any work, so that none
of them spends hours on what no engine can serve.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from curt.artifact import (
    MANIFEST,
    READER,
    ArtifactError,
    Manifest,
    load_manifest,
    parent_of,
    write_artifact,
)
from curt.classifier.candidates import LONGEST_TOKENS
from curt.config import Config, run
from curt.dialogue import (
    BUDGET_LEVELS,
    CHAT_TEMPLATE,
    EXAMPLE_ANSWER,
    GRAMMAR_VERSION,
    MAX_ANSWER_TOKENS,
    PROMPT_VERSION,
    SYSTEM,
    THINK_END,
    THINK_START,
    Prompts,
    build_messages,
    encode,
)
from curt.engines.grammar import AnswerGrammar
from curt.engines.tokenizer import PromptTokenizer, read_context_tokens, read_eos_ids
from curt.engines.transformers import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SCRATCH = "scratch"  # the base of a model that began with random weights
FINE_TUNING_RATE, ADAPTER_RATE = 1e-4, 1e-3
"""Highest rates for all weights and for adapters of a pretrained model: ten times the usual."""

_ROWS = 64  # a grown vocabulary is padded to a multiple of this
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_NESTED = ("text_config", "vision_config", "audio_config")
# What `generation_config.json` may keep: the rest would change what sampling and vLLM write.
_KEPT = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "do_sample"),
    *("_from_model_config", "output_attentions", "output_hidden_states", "use_cache"),
}  # fields of generation_config.json that change nothing of what is sampled
_PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}{% endfor %}"
)
# Put before a template that has no system role: its text begins the user's.
_FOLD_SYSTEM = (
    "{%- if messages[0]['role'] == 'system' -%}{%- set messages = [{'role': 'user', 'content': "
    "messages[0]['content'] + '\\n' + messages[1]['content']}] + messages[2:] -%}{%- endif -%}"
)
_INSTALL_GGUF = ".venv/bin/python -m pip install -r configs/real/requirements.txt"
_ANSWERED = "甲乙丙丁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a checkpoint lies: a folder or hub id, and the GGUF file in it where it is one."""

    name: str
    path: str
    gguf_file: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What every `from_pretrained` needs beside the path."""
        return {"gguf_file": self.gguf_file} if self.gguf_file else {}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found fit, its tokenizer settled and its weights not yet loaded."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    eos_ids: list[int]
    """Every token that ends a turn; the tokenizer's own is the one to learn."""
    pieces: dict[int, list[int]]
    """The marks of thinking that were added, and the tokens that spelt each before."""
    changes: list[str]
    """What is settled otherwise than the checkpoint has it, for people."""
    manifest: Manifest | None = None
    """Of a model folder made here."""

    @property
    def is_pretrained(self) -> bool:
        """Whether it knows more than our cases taught it."""
        return self.manifest is None or self.manifest.base != SCRATCH

    def check_as_it_is(self, who: str) -> None:
        """Raise ValueError where `who`, which reads the checkpoint itself, would read another."""
        if self.changes or self.source.gguf_file:
            name = self.source.name
            raise ValueError(
                f"{who} would load {name} as it is, without what is settled here "
                f"({'; '.join(self.changes) or 'it reads no GGUF file'}): start from the folder "
                f"that `python -m curt.checkpoint --model {name} --out FOLDER` writes"
            )

    def say_changes(self) -> None:
        """Log what is settled otherwise than the checkpoint has it."""
        for change in self.changes:
            logger.info("%s: %s", self.source.name, change)

    def load_model(self, **options: Any) -> Any:
        """The model in float32, or as `options` of `from_pretrained` say, with every change made.

        A mark of thinking begins as the mean of the tokens that spelt it before, as long as they
        are: as short as a mean is, it would never be likelier than all of them.
        """
        import torch
        from transformers import GenerationConfig

        options = {"dtype": torch.float32, **self.source.options, **options}
        model = load_model(self.source.path, **options)
        if self.source.gguf_file:
            _tie_again(model)
        tokenizer = self.tokenizer
        rows: int = model.get_input_embeddings().num_embeddings
        if len(tokenizer) > rows:
            model.resize_token_embeddings(
                len(tokenizer), pad_to_multiple_of=_ROWS, mean_resizing=False
            )
        if self.pieces or len(tokenizer) > rows:
            for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
                weight = layer.weight.data
                weight[rows:] = weight[:rows].mean(0)
                for token, pieces in self.pieces.items():
                    mean = weight[pieces].mean(0)
                    weight[token] = mean * (weight[pieces].norm(dim=1).mean() / mean.norm())
        special = {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": self.eos_ids if len(self.eos_ids) > 1 else self.eos_ids[0],
            "pad_token_id": tokenizer.pad_token_id,
        }
        model.generation_config = GenerationConfig(**special)  # type: ignore[no-untyped-call]
        for name, value in special.items():
            setattr(model.config, name, value)
        model.config.architectures = [type(model).__name__]  # GGUF files name none
        return model

    def check_servable(
        self,
        max_fact_tokens: int,
        max_thinking_tokens: int,
        version: str = PROMPT_VERSION,
        *,
        reader: bool = False,
    ) -> None:
        """Raise ArtifactError where no engine could serve a model trained from this.

        The engines' own readers are asked, over the files that training would write. With `reader`
        a classifier will read every fact first.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.tokenizer.save_pretrained(folder)
            shape = dict(_read_shape(self.source))
            shape["vocab_size"] = max(shape.get("vocab_size", 0), len(self.tokenizer))
            if reader or (Path(self.source.path) / READER).is_dir():
                (folder / READER).mkdir()
            (folder / "config.json").write_text(json.dumps(shape, default=str), encoding="utf-8")
            eos = json.dumps({"eos_token_id": self.eos_ids})
            (folder / "generation_config.json").write_text(eos, encoding="utf-8")
            try:
                check_servable(folder, max_fact_tokens, max_thinking_tokens, version)
            except ArtifactError as error:
                text = str(error).replace(str(folder), self.source.name)
                raise ArtifactError(text) from None


def read_checkpoint(model: str | Path) -> Checkpoint:
    """Check a checkpoint and settle its tokenizer; weights are left for `load_model`.

    Raises ArtifactError for a broken model folder of this project; ValueError for what is no causal
    language model, lacks a part, or can't be asked; OSError for a hub id out of reach. Each names
    the file and the remedy.
    """
    source = _find_source(str(model))
    folder = Path(source.path)
    manifest = load_manifest(folder, expect="hf") if (folder / MANIFEST).is_file() else None
    _check_architecture(source, _read_shape(source))
    tokenizer = _load_tokenizer(source)
    changes: list[str] = []
    pieces = _settle_thinking(tokenizer, changes)
    _settle_template(source, tokenizer, changes)
    eos_ids = _settle_ends(source, tokenizer, changes)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        changes.append(f"pads with {tokenizer.eos_token}")
    return Checkpoint(source, tokenizer, eos_ids, pieces, changes, manifest)


def check_servable(
    folder: Path, max_fact_tokens: int, max_thinking_tokens: int, version: str = PROMPT_VERSION
) -> None:
    """Raise ArtifactError where an "hf" folder's files are not what every engine reads.

    A warning is logged where an answer of two charges takes more tokens than serving allows.
    """
    tokenizer = PromptTokenizer(folder)
    tokenizer.single_id(THINK_END)
    ends = read_eos_ids(folder, tokenizer)
    context = read_context_tokens(folder)
    width = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    try:
        AnswerGrammar(folder, width, ends)
    except ValueError as error:
        raise ArtifactError(
            f"{folder}: answers can't be held to the grammar with this tokenizer ({error}): use a "
            "checkpoint whose tokenizer knows bytes (ByteLevel BPE, or byte fallback)"
        ) from None
    prompts = Prompts(tokenizer, max_fact_tokens, version=version)
    bare = max(len(prompts.encode("", budget, "")) for budget in BUDGET_LEVELS)
    if (folder / READER).is_dir():
        bare += LONGEST_TOKENS
    needed = bare + max_fact_tokens + max_thinking_tokens + 1 + MAX_ANSWER_TOKENS
    if needed > context:
        raise ArtifactError(
            f"{folder} reads {context} tokens, but a prompt of {bare + max_fact_tokens}, "
            f"{max_thinking_tokens} of thinking and an answer need {needed}: lower max_fact_tokens "
            "or max_thinking_tokens"
        )
    if (tokens := tokenizer.count(EXAMPLE_ANSWER)) > MAX_ANSWER_TOKENS:
        logger.warning(
            "an answer of two charges takes %d tokens of this tokenizer and serving allows %d: "
            "long answers will be cut; a tokenizer that knows Chinese takes about 45",
            tokens,
            MAX_ANSWER_TOKENS,
        )


def check_rate(checkpoint: Checkpoint, rate: float, *, adapters: bool) -> None:
    """Raise ValueError for a learning rate that suits random weights, not pretrained ones."""
    highest = ADAPTER_RATE if adapters else FINE_TUNING_RATE
    if checkpoint.is_pretrained and rate > highest:
        raise ValueError(
            f"a learning rate of {rate:g} ruins the pretrained weights of {checkpoint.source.name} "
            f"in a few steps: use at most {highest:g}, as configs/real/ does"
        )


def _find_source(model: str) -> Source:
    path = Path(model)
    if path.suffix == ".gguf":
        return _check_gguf(path)
    if path.is_file():
        raise ValueError(f"{model} is a file: give a .gguf file, a folder or a hub id")
    if not path.is_dir():
        if model.count("/") > 1 or model.startswith((".", "/", "~", "artifacts/")):
            raise ValueError(f"no folder {model}: give one, a .gguf file or a hub id")
        return Source(model, model)
    if (path / "config.json").is_file():
        if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
            raise ValueError(f"{model} has no weights: it needs .safetensors files")
        if not any((path / name).is_file() for name in _TOKENIZER_FILES):
            raise ValueError(f"{model} has no tokenizer: copy its tokenizer.json there")
        return Source(model, model)
    files = list(path.glob("*.gguf"))
    if len(files) != 1:
        raise ValueError(
            f"{model} has no config.json: give a folder that save_pretrained wrote, or a .gguf file"
        )
    return _check_gguf(files[0])


def _check_gguf(file: Path) -> Source:
    if not file.is_file():
        raise ValueError(f"no file {file}: give the path of a .gguf file, a folder or a hub id")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ValueError(f"{file} is no GGUF file: fetch it again")
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"{file}: reading GGUF needs the package gguf: {_INSTALL_GGUF}")
    return Source(str(file), str(file.parent), file.name)


@lru_cache(maxsize=8)
def _read_shape(source: Source) -> dict[str, Any]:
    """The checkpoint's config.json, or what stands for it in a GGUF file."""
    from transformers import PretrainedConfig

    try:
        shape, _ = PretrainedConfig.get_config_dict(source.path, **source.options)
    except (ValueError, IndexError, KeyError) as error:
        if not source.gguf_file:
            raise
        if "architecture" in str(error):
            what = f"{str(error).split('.')[0]}: use a checkpoint in .safetensors"
        else:  # whatever numpy says of bytes that are not there
            what = "cut short or damaged: fetch it again"
        raise ValueError(f"{source.name}: {what}") from error
    found: dict[str, Any] = shape
    return found


def _check_architecture(source: Source, shape: Mapping[str, Any]) -> None:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.utils.hub import cached_file

    place = source.name if source.gguf_file else f"{source.name}: config.json"
    kind = str(shape.get("model_type"))
    names = shape.get("architectures") or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)]
    if nested := [name for name in _NESTED if name in shape]:
        raise ValueError(
            f"{place} holds a model of several parts ({', '.join(nested)}): give the checkpoint of "
            "its text model alone, as AutoModelForCausalLM saves it"
        )
    if kind not in CONFIG_MAPPING:
        raise ValueError(
            f"{place} names the architecture {kind!r}, which this version of transformers does not "
            "have: use a checkpoint of another"
        )
    if names[0] not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise ValueError(
            f"{place} names {names[0] or kind}, which writes no text (an embedding model, a "
            "classifier, an encoder): give a causal language model (…ForCausalLM)"
        )
    # Embedding models that began as causal ones keep their name.
    pooled = None if source.gguf_file else cached_file(
        source.path, "modules.json", _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,  # without a hub, what is there counts
    )  # fmt: skip
    if pooled:
        raise ValueError(
            f"{source.name}: modules.json says that it writes no text (an embedding model): give a "
            "causal language model"
        )


def _load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            source.path, padding_side="left", **source.options
        )
    except (AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the tokenizer of {source.name} can't be read ({error}): install what it asks for, or "
            "give the checkpoint a tokenizer.json"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"{source.name} has a slow tokenizer, which serving can't load: give the checkpoint a "
            "tokenizer.json"
        )
    if source.gguf_file:
        _restore_merges(tokenizer)
    tokenizer.clean_up_tokenization_spaces = False  # decoding must give back what was written
    found: PreTrainedTokenizerBase = tokenizer
    return found


def _restore_merges(tokenizer: Any) -> None:
    """Make a BPE again of what a GGUF file stores as pieces with scores; others are left alone.

    The scores are ranks of merges (SentencePiece's BPE: Gemma). transformers reads them as the log
    likelihoods of a Unigram model, which then spells most words with other tokens than the model
    was trained on. What no merge makes is only ever found whole, as marks of turns are.
    """
    from tokenizers import AddedToken, Tokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    if model["type"] != "Unigram" or not model["byte_fallback"]:
        return
    names, scores = zip(*model["vocab"], strict=True)
    if names.count("\t") > names.count("<0x09>"):  # the byte was given the character's name
        place = names.index("\t")
        names = (*names[:place], "<0x09>", *names[place + 1 :])
    vocab = {name: token for token, name in enumerate(names)}
    merges = generate_merges(vocab, zip(names, scores, strict=True))
    state["model"] = {
        "type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": True, "fuse_unk": True,
        "unk_token": None if model["unk_id"] is None else names[model["unk_id"]],
    }  # fmt: skip
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    made = {left + right for left, right in merges}
    whole = [n for n in names if len(n) > 1 and n not in made and not _BYTE.fullmatch(n)]
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in whole])


def _settle_thinking(
    tokenizer: PreTrainedTokenizerBase, changes: list[str]
) -> dict[int, list[int]]:
    """Make the marks of thinking single tokens that decoding keeps; those added, with pieces."""
    from transformers import AddedToken

    spelt = {mark: encode(tokenizer, mark) for mark in (THINK_START, THINK_END)}
    added = {mark: ids for mark, ids in spelt.items() if len(ids) != 1}
    if added:
        sizes = " and ".join(str(len(ids)) for ids in added.values())
        changes.append(f"adds {' and '.join(added)} as single tokens, in place of {sizes}")
    dropped = [
        mark for mark, ids in spelt.items() if not tokenizer.decode(ids, skip_special_tokens=True)
    ]
    if dropped:
        changes.append(f"keeps {' and '.join(dropped)} when decoding")
    marks = [AddedToken(mark, normalized=False, special=False) for mark in {*added, *dropped}]
    tokenizer.add_tokens(sorted(marks, key=str))
    return {encode(tokenizer, mark)[0]: ids for mark, ids in added.items()}


def _settle_template(
    source: Source, tokenizer: PreTrainedTokenizerBase, changes: list[str]
) -> None:
    """Give the tokenizer one chat template that has our system text and begins with BOS once."""
    from jinja2 import TemplateError

    begins = tokenizer.bos_token if tokenizer.bos_token != tokenizer.eos_token else None
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template is None:
        chat = [encode(tokenizer, mark) for mark in ("<|im_start|>", "<|im_end|>")]
        is_chat = all(len(ids) == 1 for ids in chat)
        template = CHAT_TEMPLATE if is_chat else _PLAIN_TEMPLATE
        if begins is None:
            template = template.replace("{{ bos_token }}", "")
        changes.append(f"has no chat template: asked {'in ChatML' if is_chat else 'in plain text'}")
    tokenizer.chat_template = template
    messages = build_messages(_ANSWERED, 0)

    def render() -> str:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )

    try:
        text = render()
    except TemplateError:  # some raise on a system role, others leave it out
        text = ""
    if SYSTEM not in text:
        tokenizer.chat_template = template = _FOLD_SYSTEM + template
        changes.append("has no system role: the system text begins the user's")
        try:
            text = render()
        except TemplateError as error:
            raise ValueError(f"the chat template of {source.name} fails: {error}") from None
    if any(message["content"] not in text for message in messages):
        raise ValueError(
            f"the chat template of {source.name} leaves out what it is given: set another one"
        )
    adds = tokenizer(_ANSWERED)["input_ids"][:1] == [tokenizer.bos_token_id]
    if begins and adds and not text.startswith(begins):
        tokenizer.chat_template = "{{ bos_token }}" + template
        changes.append(f"begins prompts with {begins}, which its template leaves out")


def _settle_ends(
    source: Source, tokenizer: PreTrainedTokenizerBase, changes: list[str]
) -> list[int]:
    """Every token that ends a turn. The one that the template writes becomes the tokenizer's."""
    listed, dropped = _read_generation(source)
    messages = [*build_messages("甲", 0), {"role": "assistant", "content": _ANSWERED}]
    rendered = str(tokenizer.apply_chat_template(messages, tokenize=False))
    after = encode(tokenizer, rendered.rpartition(_ANSWERED)[2].strip())
    previous = tokenizer.eos_token_id
    if len(after) == 1 or (after and after[0] in tokenizer.added_tokens_decoder):
        token = str(tokenizer.convert_ids_to_tokens(after[0]))
        if after[0] != previous:
            tokenizer.eos_token = token
            changes.append(f"ends a turn with {token}, as its template does")
    elif previous is None:
        raise ValueError(
            f"{source.name} names no token that ends a turn: set eos_token in tokenizer_config.json"
        )
    if dropped:
        changes.append(f"leaves out {', '.join(dropped)} of generation_config.json")
    end: int = tokenizer.eos_token_id
    # A conversion may name any token: one that ends turns is a token of its own, and begins none.
    others = {i for i in (*listed, previous) if i in tokenizer.added_tokens_decoder}
    return sorted({end} | (others - {tokenizer.bos_token_id}))


def _read_generation(source: Source) -> tuple[list[int], list[str]]:
    """The ends of a turn that a checkpoint lists, and its fields that would change sampling."""
    from transformers import GenerationConfig

    shape = _read_shape(source)
    settings: dict[str, Any] = {}
    if not source.gguf_file:
        try:
            config = GenerationConfig.from_pretrained(source.path)
        except OSError:  # it has none, which is as good
            pass
        else:
            settings = config.to_diff_dict()
    listed: list[int] = []
    for eos in (settings.get("eos_token_id"), shape.get("eos_token_id")):
        listed += eos if isinstance(eos, list) else [] if eos is None else [eos]
    return listed, sorted(f"{k} {v}" for k, v in settings.items() if k not in _KEPT)


def _tie_again(model: Any) -> None:
    """Tie the two ends of a vocabulary that a GGUF file stores twice, rounded apart.

    Of the two the output is stored more exactly. Small models tie them; stored twice, they would
    be trained twice.
    """
    import torch

    first, last = (
        model.get_input_embeddings().weight.data,
        model.get_output_embeddings().weight.data,
    )
    if first.data_ptr() == last.data_ptr():
        return
    some = torch.arange(0, len(first), max(1, len(first) // 1000))
    alike = torch.nn.functional.cosine_similarity(first[some].float(), last[some].float())
    if alike.median() > 0.97:
        first.copy_(last)
        model.config.tie_word_embeddings = True
        model.tie_weights()


class CheckpointConfig(Config):
    """Settings of `python -m curt.checkpoint`."""

    model: str
    """Hub id, folder or GGUF file."""
    out: Path | None = None
    """Model folder to write; without it the checkpoint is only checked."""
    max_fact_tokens: int = Field(512, ge=1)
    """Longer facts become excerpts."""
    max_thinking_tokens: int = Field(256, ge=0)
    """Largest thinking budget it is asked for."""
    tell_grammar: bool = True
    """Tell the answer grammar in every prompt: it was not trained on it."""


def write_checkpoint(config: CheckpointConfig) -> None:
    """Say what is changed in a checkpoint; write it as a model folder where one is named."""
    checkpoint = read_checkpoint(config.model)
    version = GRAMMAR_VERSION if config.tell_grammar else PROMPT_VERSION
    checkpoint.check_servable(config.max_fact_tokens, config.max_thinking_tokens, version)
    checkpoint.say_changes()
    if config.out is None:
        return
    described: dict[str, Any] = {
        "format": "hf",
        "precision": "fp32",
        "stage": "checkpoint",
        "base": checkpoint.manifest.base if checkpoint.manifest else config.model,
        "parent": parent_of(Path(config.model)) if checkpoint.manifest else None,
        "prompt_version": version,
        "max_fact_tokens": config.max_fact_tokens,
        "max_thinking_tokens": config.max_thinking_tokens,
        "config": config.model_dump(mode="json"),
    }
    with write_artifact(config.out, described) as folder:
        checkpoint.load_model().save_pretrained(folder)
        checkpoint.tokenizer.save_pretrained(folder)
    logger.info("%s is ready", config.out)


if __name__ == "__main__":
    run(CheckpointConfig, write_checkpoint)
