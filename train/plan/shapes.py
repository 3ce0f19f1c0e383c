"""Sizes of models, exact to the parameter, from a folder or from a table of named ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A Llama-like decoder: grouped-query attention, SwiGLU, RMSNorm."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool
    """Whether the output layer is the embedding."""
    qkv_bias: bool = False
    qk_norm: bool = False

    @property
    def q(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of all key heads, or of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def layer_matrices(self) -> int:
        """Weights that a token is multiplied with in one layer: h·q + 2·h·kv + q·h + 3·h·f."""
        return 2 * self.hidden * self.q + 2 * self.hidden * self.kv + 3 * self.hidden * self.ffn

    @property
    def layer_parameters(self) -> int:
        """`layer_matrices`, norms and biases."""
        biases = self.q + 2 * self.kv if self.qkv_bias else 0
        head_norms = 2 * self.head_dim if self.qk_norm else 0
        return self.layer_matrices + 2 * self.hidden + biases + head_norms

    @property
    def output_matrix(self) -> int:
        """Weights of the output layer, vocabulary x hidden."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All of them, a tied output layer counted once."""
        embeddings = self.output_matrix * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + self.hidden + embeddings

    def trained_parameters(self, rank: int | None) -> int:
        """All; with LoRA, rank x (in + out) of every linear layer but the output."""
        if not rank:
            return self.parameters
        pairs = 2 * (self.hidden + self.q) + 2 * (self.hidden + self.kv)
        return self.layers * rank * (pairs + 3 * (self.hidden + self.ffn))

    def kv_bytes_a_token(self, bytes_each: int) -> int:
        """Keys and values of one token in all layers: 2·layers·kv·bytes."""
        return 2 * self.layers * self.kv * bytes_each


def _qwen3(name: str, hidden: int, layers: int, heads: int, ffn: int, tied: bool) -> ModelShape:
    return ModelShape(name, hidden, layers, heads, 8, 128, ffn, 151_936, tied, qk_norm=True)


NAMED = {
    shape.name: shape
    for shape in (
        _qwen3("Qwen3-0.6B", 1024, 28, 16, 3072, True),
        _qwen3("Qwen3-1.7B", 2048, 28, 16, 6144, True),
        _qwen3("Qwen3-4B", 2560, 36, 32, 9728, True),
        _qwen3("Qwen3-8B", 4096, 36, 32, 12288, False),
        ModelShape("Qwen2.5-1.5B", 1536, 28, 12, 2, 128, 8960, 151_936, True, qkv_bias=True),
        ModelShape("Qwen2.5-7B", 3584, 28, 28, 4, 128, 18944, 152_064, False, qkv_bias=True),
    )
}


def find_shape(model: str) -> ModelShape:
    """The shape of a model folder, or the named one that the text speaks of.

    `artifacts/qwen2.5-7b/warm-start` is a folder when it exists, Qwen2.5-7B otherwise. Raises
    ValueError when it is neither, naming the known ones.
    """
    if (config := Path(model) / "config.json").is_file():
        return read_shape(config)
    found = [shape for name, shape in NAMED.items() if name.lower() in model.lower()]
    if not found:
        raise ValueError(
            f"no model folder {model}, and no known model in its name: give --architecture one of "
            f"{', '.join(NAMED)}, or a folder with a config.json"
        )
    return found[0]


def read_shape(config: Path) -> ModelShape:
    """The shape in a Hugging Face `config.json`. Raises ValueError for other architectures."""
    row = json.loads(config.read_text(encoding="utf-8"))
    kind = row.get("model_type")
    if kind not in ("qwen2", "qwen3", "llama"):
        raise ValueError(f"{config} is of type {kind!r}: use one of qwen2, qwen3, llama")
    heads = row["num_attention_heads"]
    return ModelShape(
        name=config.parent.name,
        hidden=row["hidden_size"],
        layers=row["num_hidden_layers"],
        heads=heads,
        kv_heads=row.get("num_key_value_heads", heads),
        head_dim=row.get("head_dim") or row["hidden_size"] // heads,
        ffn=row["intermediate_size"],
        vocab=row["vocab_size"],
        tied=bool(row.get("tie_word_embeddings", False)),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
    )
