"""Checkpoints as hubs have them: small random weights behind tokenizers of the real shapes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from curt.dialogue import SYSTEM
from tests.micro import FACTS

QWEN_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Raises on a system role, and begins with BOS.
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Opens thinking itself, and leaves BOS to the tokenizer.
R1_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}<|User|>{{ m['content'] }}"
    "{% else %}<|Assistant|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
LLAMA_TEMPLATE = (
    "{% if messages[0].role == 'system' %}{% set begins = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set begins = '' %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token }}[INST] {{ begins if loop.first else '' }}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
QWEN, GEMMA = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), ("<pad>", "<eos>", "<bos>", "<unk>")
TURNS = ("<start_of_turn>", "<end_of_turn>")
THINK = ("<think>", "</think>")
SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 1024,
}  # fmt: skip

# By name: architecture, shape of its own, special tokens in their order, what of the tokenizer's
# settings differs, and generation_config.json.
KINDS: dict[str, tuple[str, dict[str, Any], tuple[str, ...], dict[str, Any], dict[str, Any]]] = {
    # Two ends of a turn, a penalty that must not reach evaluation, more rows than tokens.
    "qwen2.5": (
        "Qwen2", {"tie_word_embeddings": True, "extra_rows": 40}, QWEN,
        {"eos": "<|im_end|>", "pad": "<|endoftext|>", "template": QWEN_TEMPLATE},
        {"eos_token_id": [2, 0], "repetition_penalty": 1.1, "temperature": 0.7, "do_sample": True},
    ),
    "qwen3": (
        "Qwen3", {"tie_word_embeddings": True}, QWEN,
        {"eos": "<|im_end|>", "pad": "<|endoftext|>", "template": QWEN_TEMPLATE, "think": False},
        {"eos_token_id": [2, 0]},
    ),
    "r1": (
        "Llama", {}, ("<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>"),
        {"bos": "<|begin|>", "eos": "<|end|>", "template": R1_TEMPLATE, "think": True,
         "adds_bos": True},
        {},
    ),
    "llama-base": (
        "Llama", {}, ("<s>", "</s>"), {"bos": "<s>", "eos": "</s>", "adds_bos": True}, {},
    ),
    "gemma3-base": (
        "Gemma3", {"sliding_window": 16, "query_pre_attn_scalar": 32,
                   "layer_types": ["sliding_attention", "full_attention"]},
        GEMMA, {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "unk": "<unk>", "adds_bos": True,
                "pieces": True},
        {},
    ),
    # SentencePiece's BPE, which puts a space before every text.
    "llama2": (
        "Llama", {}, ("<unk>", "<s>", "</s>"),
        {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "adds_bos": True, "pieces": True,
         "prefix": True, "template": LLAMA_TEMPLATE},
        {},
    ),
    "unigram": (
        "Llama", {}, GEMMA,
        {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "unk": "<unk>", "adds_bos": True,
         "pieces": True, "unigram": True},
        {},
    ),
    "gemma2": (
        "Gemma2", {"sliding_window": 16, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 32,
                   "final_logit_softcapping": 1.0},
        (*GEMMA, *TURNS), {"bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "unk": "<unk>",
                           "adds_bos": True, "pieces": True, "template": GEMMA_TEMPLATE},
        {},
    ),
    "granite": (
        "Granite", {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "extra_rows": 0}, QWEN,
        {"eos": "<|im_end|>", "pad": "<|endoftext|>", "template": QWEN_TEMPLATE}, {},
    ),
    "mistral": (
        "Mistral", {"sliding_window": 16}, ("<s>", "</s>"), {"bos": "<s>", "eos": "</s>"}, {},
    ),
}  # fmt: skip


def make_checkpoint(
    folder: Path, kind: str, *, scale: float = 1.0, texts: Sequence[str] = (), tokens: int = 700
) -> Path:
    """Write a checkpoint of a kind; `scale` makes its random weights larger.

    Its tokenizer learns up to so many `tokens`, from further `texts` too.
    """
    family, shape, special, settings, generation = KINDS[kind]
    tokenizer = _make_tokenizer(special, settings, texts, tokens)
    shape = {**SHAPE, **shape}
    rows = len(tokenizer) + shape.pop("extra_rows", 0)
    name = {"Gemma3": "Gemma3Text"}.get(family, family)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=rows, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id, **shape,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


def score_pieces(tokenizer: dict[str, Any], first: float, step: float) -> dict[str, Any]:
    """A BPE's `tokenizer.json` as a Unigram: scores from `first` down with the rank of merges."""
    model = tokenizer["model"]
    ranks = {"".join(merge): rank for rank, merge in enumerate(model["merges"])}
    names = sorted(model["vocab"], key=model["vocab"].get)
    # Characters come after all merges, as in SentencePiece.
    pieces = [[name, first - step * ranks.get(name, len(ranks) + 1)] for name in names]
    unigram = {"type": "Unigram", "vocab": pieces, "unk_id": names.index("<unk>")}
    return tokenizer | {"model": unigram | {"byte_fallback": True}}


def _make_tokenizer(
    special: tuple[str, ...], settings: dict[str, Any], texts: Sequence[str], tokens: int
) -> PreTrainedTokenizerFast:
    """A BPE of bytes, as GPT-2's, or with `pieces` one that falls back to bytes, as Gemma's."""
    pieces = settings.get("pieces", False)
    prompts = ["思考预算：罪名法条刑期缓刑罚金", "<start_of_turn>system user model"]
    texts = [SYSTEM, *FACTS, *prompts, *texts]
    if pieces:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        decoded = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if settings.get("prefix"):
            tokenizer.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            )
            decoded.append(decoders.Strip(" ", 1, 0))
        tokenizer.decoder = decoders.Sequence(decoded)
        alphabet, bytes_too = [], [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet, bytes_too = pre_tokenizers.ByteLevel.alphabet(), []
    trainer = trainers.BpeTrainer(
        vocab_size=tokens, initial_alphabet=alphabet, special_tokens=[*special, *bytes_too],
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(
        [text.replace(" ", "▁") if pieces else text for text in texts], trainer
    )
    if pieces:  # the fall-back is by token, not by added token
        kept = json.loads(tokenizer.to_str())
        kept["added_tokens"] = kept["added_tokens"][: len(special)]
        if settings.get("unigram"):
            kept = score_pieces(kept, -10, 0.01)
        tokenizer = Tokenizer.from_str(json.dumps(kept))
    if (is_special := settings.get("think")) is not None:
        marks = [AddedToken(mark, normalized=False, special=is_special) for mark in THINK]
        (tokenizer.add_special_tokens if is_special else tokenizer.add_tokens)(marks)
    names = {f"{n}_token": settings[n] for n in ("bos", "eos", "pad", "unk") if n in settings}
    if settings.get("adds_bos"):
        bos = settings["bos"]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=settings.get("template"), **names
    )
