"""Drop the tokens that no verdict reads or writes, from a model folder and its tokenizer together.

    python -m compress.trim --model DIR --corpus artifacts/cail/corpus/train.jsonl --out DIR

A checkpoint of a hundred languages holds half of its parameters, or more, in rows of other ones
than ours. What stays is exact: rows are gathered, and a text whose tokens all stay has the same
tokens and the same logits. Any other text is spelt with shorter tokens and decodes to itself.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from compress.folders import describe_child, load_model
from curt.artifact import load_manifest, write_artifact
from curt.classifier.candidates import HEAD, PROBE, load_prompts, read_candidates
from curt.config import Config, run
from curt.corpus.store import read_cases
from curt.dialogue import (
    BUDGET_LEVELS,
    EXAMPLE_ANSWER,
    GRAMMAR_VERSION,
    PROMPT_VERSION,
    Prompts,
    render_completion,
)
from curt.engines.tokenizer import PromptTokenizer
from curt.files import sha256, write_atomic, write_json
from curt.law.statutes import CHARGES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_CHECKED_TEXTS = 500  # read by the tokenizers before and after


class TrimConfig(Config):
    """Settings of `python -m compress.trim`."""

    model: Path
    """The parent: a Hugging Face model folder of this project (`curt.checkpoint --out`)."""
    corpus: Path
    """Case file, the training cases: every token of their prompts and completions stays."""
    out: Path
    """Where the smaller model folder goes; an older one there is replaced when all is well."""
    candidates: Path | None = None
    """Lines of candidates that the cases will be asked with, of `compress.classifier.train`; those
    of the folder's own reader for cases without."""

    @model_validator(mode="after")
    def _has_another_out(self) -> TrimConfig:
        if self.out.resolve() == self.model.resolve():
            raise ValueError(f"out {self.out} is the parent itself: name another folder")
        return self


def trim(config: TrimConfig) -> None:
    """Trim one model folder; its manifest says what went.

    Raises ArtifactError when the parent must not be loaded, and ValueError when its tokenizer does
    not fall back to bytes or the case file can't be read; then nothing is written.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    parent = load_manifest(config.model, expect="hf")
    file = config.model / "tokenizer.json"
    before = json.loads(Tokenizer.from_file(str(file)).to_str())
    _check_kind(before, file)
    vocab = _vocabulary(before)
    prompts = load_prompts(
        config.model, PromptTokenizer(config.model), parent.max_fact_tokens, parent.prompt_version
    )
    texts = list(dict.fromkeys(_texts(config, prompts)))
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    used = {token for text in texts for token in prompts.tokenizer.encode(text)}
    used |= {vocab[character] for character in _characters() if character in vocab}
    model = load_model(config.model, "auto")
    # The tokenizer's settings may name a token that its file does not call special.
    kept = choose_tokens(before, used | {*_named_ids(model), *tokenizer.all_special_ids})
    parameters = model.num_parameters()
    keep_rows(model, kept)
    report = {
        "tokens_before": len(tokenizer),
        "tokens_after": len(kept),
        "parameters_before": parameters,
        "parameters_after": model.num_parameters(),
        "corpus_sha256": sha256(config.corpus),
    }
    describe = describe_child(
        config.model,
        parent,
        format="hf",
        precision=parent.precision,
        stage="trim",
        config=config.model_dump(mode="json") | {"trimming": report},
    )
    with write_artifact(config.out, describe) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _renumber_files(folder, trim_tokenizer(before, kept))
        _check_same(config.model, folder, kept, texts[:: len(texts) // _CHECKED_TEXTS + 1])
    log.info("tokens %(tokens_before)d -> %(tokens_after)d", report)
    log.info("parameters %(parameters_before)d -> %(parameters_after)d", report)
    log.info("%s is ready", config.out)


def choose_tokens(tokenizer: Mapping[str, Any], used: Iterable[int]) -> list[int]:
    """The ids to keep of a `tokenizer.json`, ascending.

    These are `used`, all special tokens, the bytes that any text falls back to, and what each of
    them is merged from. Merges inside a token go the same way whatever stands around it; so a text
    whose tokens all stay has all the merges that made them, in their order. The least likely piece
    of a Unigram model says what an unknown character costs.
    """
    model = tokenizer["model"]
    vocab = _vocabulary(tokenizer)
    ranks = {(left, right): rank for rank, (left, right) in enumerate(model.get("merges", []))}
    added = {token["id"] for token in tokenizer["added_tokens"]}
    kept = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    names = {place: name for name, place in vocab.items()}
    base = [*_byte_tokens(tokenizer), model.get("unk_token"), names.get(model.get("unk_id"))]
    if model["type"] == "Unigram":
        base.append(min(model["vocab"], key=lambda piece: piece[1])[0])
    for token in {*used, *(vocab[name] for name in base if name in vocab)}:
        kept.add(token)
        if token not in added:
            parts = _merge(names[token], ranks)
            kept.update(vocab[part] for part in parts if part in vocab)
    return sorted(kept)


def trim_tokenizer(tokenizer: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """A `tokenizer.json` of the tokens `kept` alone, numbered anew in their order."""
    ids = {old: new for new, old in enumerate(kept)}
    model = tokenizer["model"]
    vocab = {name: ids[token] for name, token in _vocabulary(tokenizer).items() if token in ids}
    if model["type"] == "Unigram":
        pieces = [piece for token, piece in enumerate(model["vocab"]) if token in ids]
        model = {**model, "vocab": pieces, "unk_id": ids.get(model["unk_id"])}
    else:
        merges = [m for m in model["merges"] if {*m, "".join(m)} <= vocab.keys()]
        model = {**model, "vocab": vocab, "merges": merges}
    added = [t | {"id": ids[t["id"]]} for t in tokenizer["added_tokens"] if t["id"] in ids]
    named = vocab | {token["content"]: token["id"] for token in added}

    def renumber(part: Any) -> Any:  # the templates of a post-processor, however nested
        if isinstance(part, list):
            return [renumber(item) for item in part]
        if not isinstance(part, dict):
            return part
        own = {"ids": [named[name] for name in part["tokens"]]} if "tokens" in part else {}
        return {name: renumber(value) for name, value in part.items()} | own

    return {
        **tokenizer,
        "model": model,
        "added_tokens": added,
        "post_processor": renumber(tokenizer["post_processor"]),
    }


def keep_rows(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Keep these rows of the embeddings and the output layer, in place; tied matrices stay tied.

    The ids that the configuration names are renumbered.
    """
    import torch

    rows = torch.tensor(kept)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    for parameter in {parameter for end in ends for parameter in end.parameters()}:
        parameter.data = parameter.data[rows]
    ids = {old: new for new, old in enumerate(kept)}
    for settings in (model.config, model.generation_config):
        for name, value in _token_fields(settings):
            new = [ids[i] for i in value] if isinstance(value, list) else ids[value]
            setattr(settings, name, new)
    model.config.vocab_size = len(kept)


def _check_kind(tokenizer: Mapping[str, Any], file: Path) -> None:
    kind = tokenizer["model"]["type"]
    if kind not in ("BPE", "Unigram") or not _byte_tokens(tokenizer):
        raise ValueError(
            f"{file} is a {kind} model, and only a BPE or Unigram that falls back to bytes can be "
            "trimmed: train from the checkpoint as it is (make real TRIM=no)"
        )


def _vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """The id of each token of the model; a Unigram lists its own in their order."""
    vocab = tokenizer["model"]["vocab"]
    if isinstance(vocab, list):
        return {name: token for token, (name, _) in enumerate(vocab)}
    return dict(vocab)


def _byte_tokens(tokenizer: Mapping[str, Any]) -> list[str]:
    """The tokens that spell any byte; none where the tokenizer has none."""
    from tokenizers import pre_tokenizers

    alphabet = [name for name in _vocabulary(tokenizer) if _BYTE.fullmatch(name)]
    if '"ByteLevel"' in json.dumps([tokenizer["pre_tokenizer"], tokenizer["decoder"]]):
        alphabet += pre_tokenizers.ByteLevel.alphabet()
    return alphabet


def _merge(name: str, ranks: Mapping[tuple[str, str], int]) -> Iterator[str]:
    """What a token begins from, and every token on the way to it."""
    parts = list(name)
    yield from parts
    while len(parts) > 1:
        known = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not known:  # a token that is only ever found whole
            return
        _, first = min(known)
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
        yield parts[first]


def _texts(config: TrimConfig, prompts: Prompts) -> Iterator[str]:
    """All that is kept: what the cases are asked and answered, and what any other may be.

    Each is a text as training and serving encode it, for a token may reach over a boundary.
    """
    for version in (PROMPT_VERSION, GRAMMAR_VERSION):
        plain = Prompts(prompts.tokenizer, None, None, version)
        yield from (plain.text("", budget, PROBE) for budget in BUDGET_LEVELS)
    yield EXAMPLE_ANSWER
    yield from (f"罪名：{name}；{name}\n" for name in CHARGES)
    yield from (f"{HEAD}{name}8{name}1；" for name in CHARGES)
    yield from _characters()
    yield from map(str, range(1000))
    lines = read_candidates(config.candidates)
    for case in read_cases(config.corpus):
        line = prompts.propose(case.fact, lines.get(case.id))
        for asked in (prompts, Prompts(prompts.tokenizer, None)):  # the excerpt, and the whole
            yield asked.text(case.fact, 0, line)
            yield asked.text(case.fact, 0, "")
        for thinking in ("", *case.reasonings.values()):
            yield thinking
            yield render_completion(thinking, case.verdict)


def _characters() -> Iterator[str]:
    """ASCII, the punctuation of Chinese text, and GB 2312 with both levels of its characters."""
    yield from map(chr, [10, *range(32, 127), *range(0x3000, 0x3040), *range(0xFF01, 0xFF66)])
    for row in range(0xA1, 0xF8):
        codes = (bytes((row, cell)).decode("gb2312", "ignore") for cell in range(0xA1, 0xFF))
        yield from filter(None, codes)


def _token_fields(settings: Any) -> list[tuple[str, Any]]:
    return [
        (name, value)
        for name, value in settings.to_dict().items()
        if name.endswith("_token_id") and value is not None
    ]


def _named_ids(model: PreTrainedModel) -> Iterator[int]:
    for settings in (model.config, model.generation_config):
        for _, value in _token_fields(settings):
            yield from value if isinstance(value, list) else [value]


def _renumber_files(folder: Path, tokenizer: Mapping[str, Any]) -> None:
    """Put the trimmed tokenizer in the place of the one saved, and leave no other list of ids."""
    write_atomic(folder / "tokenizer.json", json.dumps(tokenizer, ensure_ascii=False, indent=1))
    for name in ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json"):
        (folder / name).unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    stale = {name for name in settings if name.endswith("_token_id")} | {"added_tokens_decoder"}
    settings = {name: value for name, value in settings.items() if name not in stale}
    write_json(file, settings)


def _check_same(before: Path, after: Path, kept: Sequence[int], texts: Sequence[str]) -> None:
    """Raise ValueError unless both tokenizers read the texts alike but for the numbering."""
    from transformers import AutoTokenizer

    old, new = AutoTokenizer.from_pretrained(before), AutoTokenizer.from_pretrained(after)
    if len(new) != len(kept):
        raise ValueError(
            f"{before / 'tokenizer.json'} has {len(new) - len(kept)} tokens more once trimmed and "
            "loaded than the model has rows: train from the checkpoint as it is"
        )
    for text, ids in zip(texts, new(list(texts))["input_ids"], strict=True):
        if [kept[i] for i in ids] != old(text)["input_ids"]:
            raise ValueError(
                f"{before / 'tokenizer.json'} reads other tokens once trimmed: train from the "
                "checkpoint as it is"
            )


if __name__ == "__main__":
    run(TrimConfig, trim)
