"""A tokenizer trained on the corpus at hand, for models that start from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# Qwen2's split: single digits, so that arithmetic is learnable. ONNX Runtime GenAI reads only
# ByteLevel BPE; a plain BPE exports silently broken.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a ByteLevel BPE with Qwen's special tokens and the project's chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        special_tokens=[PAD, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
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


def corpus_texts(cases: Iterable[Case]) -> Iterator[str]:
    """Everything a model of these cases will read or write, for training a tokenizer."""
    for case in cases:
        yield "assistant\n"
        for message in build_messages(normalise_fact(case.fact), 0):
            yield f"{message['role']}\n{message['content']}"
        yield from case.reasonings.values()
        yield render_answer(case.verdict)
