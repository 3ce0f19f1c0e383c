"""A tokenizer trained on the corpus at hand, for models that start from scratch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from curt.corpus.case import Case
from curt.dialogue import (
    CHAT_TEMPLATE,
    THINK_END,
    THINK_START,
    build_messages,
    normalise_fact,
    render_answer,
)

PAD, TURN_START, TURN_END = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

_LONGEST = 4  # characters of a token
_CHARACTERS_SHARE = 2 / 3  # of the vocabulary, at most, to characters rather than words
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())

# Qwen2's split: single digits, so that arithmetic is learnable. ONNX Runtime GenAI reads only
# ByteLevel BPE; a plain BPE exports silently broken.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a ByteLevel BPE with Qwen's special tokens and the project's chat template.

    Characters come first, whole: those of the texts, then all others in common use. What is left of
    the vocabulary goes to merges of up to four characters, so that no token holds a clause that
    only one corpus has; any other character falls back to its bytes.
    """
    texts = list(texts)
    room = vocab_size - len(SPECIAL) - len(_ALPHABET) - 2  # two for the marks of thinking
    merges, known = _merge_bytes(_characters(texts), room * _CHARACTERS_SHARE)
    merges += [
        (_as_bytes(left), _as_bytes(right))
        for left, right in _learn_merges(texts, known, room - len(merges))
    ]
    tokens = dict.fromkeys([*SPECIAL, *_ALPHABET, *(left + right for left, right in merges)])
    tokenizer = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            _BYTES,
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    # As in Qwen3: whole tokens, but not special, so that decoding keeps them.
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in (THINK_START, THINK_END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=TURN_END,
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _characters(texts: Sequence[str]) -> list[str]:
    """Characters of more than one byte, the commonest of the texts first, then GB 2312, level 1."""
    counts = Counter(character for text in texts for character in text if not character.isascii())
    rows = (bytes((row, cell)) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF))
    common = (code.decode("gb2312", "ignore") for code in rows)
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    return list(dict.fromkeys([*ranked, *filter(None, common)]))


def _merge_bytes(characters: Iterable[str], room: float) -> tuple[list[tuple[str, str]], list[str]]:
    """Merges that make characters whole, as many as there is room for, and those characters."""
    merges: dict[tuple[str, str], None] = {}
    known = []
    for character in characters:
        signs = _as_bytes(character)
        steps = [(signs[:end], signs[end]) for end in range(1, len(signs))]
        if len(merges.keys() | set(steps)) > room:
            break
        merges.update(dict.fromkeys(steps))
        known.append(character)
    return list(merges), known


def _learn_merges(texts: Sequence[str], known: list[str], room: int) -> list[tuple[str, str]]:
    """Merges of known characters, the most useful first, into words of up to four."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated")
    alphabet = [*known, *(chr(code) for code in range(32, 127))]
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + max(0, room),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        max_token_length=_LONGEST,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges]


def _as_bytes(text: str) -> str:
    """A text in the signs that ByteLevel BPE writes bytes with."""
    return "".join(signs for signs, _ in _BYTES.pre_tokenize_str(text))


def corpus_texts(cases: Iterable[Case]) -> Iterator[str]:
    """Everything a model of these cases will read or write, for training a tokenizer."""
    for case in cases:
        yield "assistant\n"
        for message in build_messages(normalise_fact(case.fact), 0):
            yield f"{message['role']}\n{message['content']}"
        yield from case.reasonings.values()
        yield render_answer(case.verdict)
