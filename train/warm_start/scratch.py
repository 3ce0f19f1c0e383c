"""A small Qwen3-architecture model from scratch, for where no hub is reachable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from curt.config import FrozenModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM


class ModelSize(FrozenModel):
    """Size of a model trained from scratch."""

    hidden: int = 256
    """Width of the residual stream."""
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    ffn: int = 768
    """Width of the feed-forward layer; keep multiples of 128 for block quantisation."""
    vocab: int = 2400
    """Upper bound of the tokenizer's vocabulary."""
    context: int = 1024
    """Longest sequence in tokens."""
    rope_theta: float = 10_000.0
    """Base of the rotary position embedding."""


def build_model(shape: ModelSize, tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """A randomly initialised model whose vocabulary is the tokenizer's, padded to 64."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    vocab = -(-len(tokenizer) // 64) * 64
    config = Qwen3Config(
        vocab_size=vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.ffn,
        max_position_embeddings=shape.context,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    return Qwen3ForCausalLM(config)
