"""A model folder of a known shape with random weights: for speed and size, never for answers.

    python -m benchmarks.random_model --shape qwen2.5-0.5b --out artifacts/bench/qwen2.5-0.5b

What a token costs depends on a model's shape and not on what it has learnt, so that a size no
hub is at hand for can still be exported, weighed and timed. The tokenizer is one that this
project trained; it knows a few thousand tokens, and the rows of the vocabulary beyond them keep
the output layer at its true cost. `--vocab 0` cuts the vocabulary to the tokenizer's instead.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from curt.artifact import write_artifact
from curt.config import Config, load_config
from curt.logs import configure_logging

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

STAGE = "random"
NOTICE = "random weights: speed and size only"
PADDING = 64  # a reduced vocabulary is rounded up to this, as models made from scratch are


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of a published model, as its config.json has them."""

    kind: Literal["qwen2", "qwen3"]
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool
    rope_theta: float = 1_000_000.0


SHAPES = {
    "qwen2.5-0.5b": Architecture("qwen2", 896, 24, 14, 2, 64, 4864, 151_936, tied=True),
    "qwen2.5-1.5b": Architecture("qwen2", 1536, 28, 12, 2, 128, 8960, 151_936, tied=True),
    "qwen3-0.6b": Architecture("qwen3", 1024, 28, 16, 8, 128, 3072, 151_936, tied=True),
}


class RandomModelConfig(Config):
    """Settings of `python -m benchmarks.random_model`."""

    shape: Literal["qwen2.5-0.5b", "qwen2.5-1.5b", "qwen3-0.6b"] = "qwen2.5-0.5b"
    """Which model's sizes to take."""
    out: Path
    """The model folder to write."""
    tokenizer: Path = Path("artifacts/demo/grpo-default")
    """Model folder that lends its tokenizer and chat template."""
    vocab: int | None = Field(None, ge=0)
    """Rows of the vocabulary; the shape's own when not given, the tokenizer's with 0."""
    layers: int | None = Field(None, ge=1)
    """Layers, where fewer are enough."""
    context: int = Field(2048, ge=64)
    """Longest sequence in tokens; less than the published one, which would size caches."""
    max_fact_tokens: int = Field(1024, ge=1)
    """Length a fact is clipped to."""
    max_thinking_tokens: int = Field(128, ge=1)
    """Largest thinking budget."""
    seed: int = 0


def make_random_model(config: RandomModelConfig) -> dict[str, int]:
    """Write the folder; returns its number of parameters and the sizes of both vocabularies.

    Weights are float32, drawn as a fresh model's are, norms at one and biases as random as the
    weights. Raises ValueError when the vocabulary is smaller than the tokenizer's.
    """
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
    known = len(tokenizer)
    wanted = SHAPES[config.shape].vocab if config.vocab is None else config.vocab
    vocab = wanted or -(-known // PADDING) * PADDING
    if vocab < known:
        raise ValueError(
            f"vocab {vocab} is smaller than the tokenizer's {known}: give more, or 0 for as many"
        )
    torch.manual_seed(config.seed)
    model = _build(config, vocab, tokenizer)
    sizes = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": vocab,
        "tokenizer_tokens": known,
    }
    describe = {
        "format": "hf",
        "precision": "fp32",
        "stage": STAGE,
        "base": f"{config.shape}, {NOTICE}",
        "max_fact_tokens": config.max_fact_tokens,
        "max_thinking_tokens": config.max_thinking_tokens,
        "config": config.model_dump(mode="json") | sizes | {"notice": NOTICE},
    }
    with write_artifact(config.out, describe) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return sizes


def _build(config: RandomModelConfig, vocab: int, tokenizer: Any) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, Qwen2Config, Qwen3Config

    shape = SHAPES[config.shape]
    layers = config.layers or shape.layers
    settings = {
        "vocab_size": vocab,
        "hidden_size": shape.hidden,
        "num_hidden_layers": layers,
        "max_window_layers": layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": config.context,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "tie_word_embeddings": shape.tied,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    made = (
        Qwen2Config(**settings)
        if shape.kind == "qwen2"
        else Qwen3Config(**settings, head_dim=shape.head_dim)
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):  # zeros would hide a converter that forgets them
                parameter.normal_(0.0, 0.02)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def main(argv: list[str] | None = None) -> None:
    """Write the folder; exits with a message on bad input."""
    config = load_config(RandomModelConfig, argv)
    configure_logging()
    try:
        sizes = make_random_model(config)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    log.info("%s: %s", config.out, json.dumps(sizes))


if __name__ == "__main__":
    main()
