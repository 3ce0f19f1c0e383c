"""How much each attention head, feed-forward neuron and layer of a model matters.

Two criteria for heads and neurons: `weigh` reads the weights alone, `measure` runs prompts
through the model and looks at what each part adds to the residual stream. Layers are ranked by
measurement only. Higher is more important everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Importance:
    """Scores on the CPU in float32; comparable within one layer and one criterion only."""

    heads: list[Tensor]
    """For each layer, one score a query head, (heads,)."""
    neurons: list[Tensor]
    """For each layer, one score a feed-forward neuron, (neurons,)."""
    influence: Tensor | None = None
    """Block influence of each layer, (layers,); None where no prompt was run."""


def weigh(model: nn.Module) -> Importance:
    """Score heads and neurons by the mean absolute value of their own weights.

    A head's weights are its rows of `q_proj` and its columns of `o_proj`; a neuron's are its
    rows of `gate_proj` and `up_proj` and its column of `down_proj`.
    """
    heads, neurons = [], []
    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            queries = _by_head(attention, attention.q_proj.weight.T)  # (hidden, heads, head_dim)
            outputs = _by_head(attention, attention.o_proj.weight)
            heads.append((queries.abs().mean((0, 2)) + outputs.abs().mean((0, 2))) / 2)
            rows = mlp.gate_proj.weight.float().abs().mean(
                1
            ) + mlp.up_proj.weight.float().abs().mean(1)
            neurons.append((rows + mlp.down_proj.weight.float().abs().mean(0)) / 3)
    return Importance([_checked(score) for score in heads], [_checked(score) for score in neurons])


def measure(model: nn.Module, prompts: Sequence[Sequence[int]]) -> Importance:
    """Score heads, neurons and layers by what they do on prompts given as token ids.

    - head: mean over tokens of the L2 norm of what it adds through its columns of `o_proj`;
    - neuron: mean over tokens of its absolute activation, times the norm of its column of
      `down_proj`;
    - layer: block influence, 1 - mean cosine similarity of a token's hidden state before and
      after it (ShortGPT, arXiv 2403.03853, equation 1).

    The model is left as it was. Raises ValueError without prompts or when a score is not finite.
    """
    if not any(prompts):
        raise ValueError("no prompts to measure importance on: give at least one")
    layers = list(model.model.layers)
    observers = [_LayerObserver(layer) for layer in layers]
    training = model.training
    device = next(model.parameters()).device
    try:
        model.eval()
        with torch.inference_mode():
            for prompt in prompts:
                # The head of the vocabulary is not needed; the rows are not padded.
                model.model(torch.tensor([prompt], device=device), use_cache=False)
    finally:
        for observer in observers:
            observer.remove()
        model.train(training)
    tokens = sum(map(len, prompts))
    return Importance(
        [_checked(observer.heads / tokens) for observer in observers],
        [_checked(observer.neurons / tokens * observer.column_norms) for observer in observers],
        _checked(torch.stack([observer.influence / tokens for observer in observers])),
    )


class _LayerObserver:
    """Sums over tokens of one decoder layer's heads, neurons and influence."""

    def __init__(self, layer: nn.Module) -> None:
        self._attention = layer.self_attn
        outputs = _by_head(self._attention, self._attention.o_proj.weight.detach())
        # |W_h x| needs only W_hᵀ W_h, which is smaller than what the head adds at each token.
        self._grams = torch.einsum("ohd,ohe->hde", outputs, outputs)
        self.column_norms = layer.mlp.down_proj.weight.detach().float().norm(dim=0)
        self.heads = torch.zeros(outputs.shape[1], device=outputs.device)
        self.neurons = torch.zeros_like(self.column_norms)
        self.influence = torch.zeros((), device=outputs.device)
        self._handles = [
            self._attention.o_proj.register_forward_pre_hook(self._see_heads),
            layer.mlp.down_proj.register_forward_pre_hook(self._see_neurons),
            layer.register_forward_hook(self._see_layer, with_kwargs=True),
        ]

    def _see_heads(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        mixed = _by_head(self._attention, args[0].flatten(0, -2))  # (tokens, heads, head_dim)
        squares = torch.einsum("thd,hde,the->th", mixed, self._grams, mixed)
        self.heads += squares.clamp(min=0).sqrt().sum(0)

    def _see_neurons(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.neurons += args[0].flatten(0, -2).float().abs().sum(0)

    def _see_layer(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], after: Any
    ) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = after[0] if isinstance(after, tuple) else after
        similarity = nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
        self.influence += (1 - similarity).sum()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _by_head(attention: nn.Module, flat: Tensor) -> Tensor:
    """Split the last axis, heads x head_dim, in float32."""
    return flat.float().unflatten(-1, (-1, attention.head_dim))


def _checked(score: Tensor) -> Tensor:
    if not torch.isfinite(score).all():
        raise ValueError("an importance score is not finite: the model's weights are broken")
    return score.cpu()
