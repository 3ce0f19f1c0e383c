"""Size of a model trained from scratch; torch-free, so that `--help` stays instant."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Shape(BaseModel):
    """Size of a model trained from scratch."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

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
