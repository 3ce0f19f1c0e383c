"""GPTQ: four-bit weights rounded so that a layer's output, not its weights, changes least.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv 2210.17323, algorithm 1: columns are rounded one after another, and what a
column loses is made good in those not yet rounded, by the inverse Hessian of the layer's
squared output error over calibration inputs. Decoder layers are quantised in order, each on what
the quantised layers before it give.

The grid is the one ONNX Runtime's MatMulNBits computes with: along a weight's input width, every
block of `block_size` values shares a scale and a zero point of four bits, and stands for
`scale * (code - zero_point)`. Output layer and embedding are left to the exporter.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

BITS = 4
MAX_CODE = 2**BITS - 1
# Matrices of a decoder layer that read the same input are rounded together, in order of use.
GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
_LAZY_COLUMNS = 128  # columns rounded before the rest of the matrix is updated at once
_MIN_SCALE = 2.0**-20  # the checkpoint reader passes through float16, where less would be lost
_SHRINKS = tuple(1 - step / 40 for step in range(17))  # candidate grids: 100% to 60% of the range


@dataclass(frozen=True, slots=True)
class QuantisedWeight:
    """A matrix on the four-bit grid: N rows (outputs), K columns (inputs).

    `codes` (N, K) uint8 from 0 to 15; `scales` (N, K / block) float32, each of them exact in
    float16; `zero_points` (N, K / block) uint8.
    """

    codes: Tensor
    scales: Tensor
    zero_points: Tensor

    @property
    def block_size(self) -> int:
        """Columns that share a scale."""
        return self.codes.shape[1] // self.scales.shape[1]

    def dequantise(self) -> Tensor:
        """The matrix the codes stand for, (N, K) float32."""
        scales = self.scales.repeat_interleave(self.block_size, dim=1)
        zeros = self.zero_points.repeat_interleave(self.block_size, dim=1)
        return scales * (self.codes.float() - zeros.float())


def quantise_weight(
    weight: Tensor,
    hessian: Tensor,
    block_size: int,
    *,
    damping: float = 0.01,
) -> QuantisedWeight:
    """Quantise `weight` (N, K) by GPTQ for inputs whose mean outer product is `hessian` (K, K).

    Each block's grid is fitted when its first column's turn comes, to the weights as corrected so
    far. `damping` is the share of the mean of the diagonal that is added to it. Raises ValueError
    when K is no multiple of `block_size` or the Hessian is not finite.
    """
    rows, columns = weight.shape
    blocks = _count_blocks(columns, block_size)
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError("calibration gave inputs that are not finite: use a model in float32")
    weight = weight.double().clone()
    importance = hessian.diagonal().float().clone()
    upper = _inverse_factor(hessian.double().clone(), weight, damping)

    codes = torch.zeros(rows, columns, dtype=torch.uint8)
    scales = torch.zeros(rows, blocks)
    zeros = torch.zeros(rows, blocks, dtype=torch.uint8)
    stride = max(block_size, _LAZY_COLUMNS // block_size * block_size)
    for start in range(0, columns, stride):
        stop = min(start + stride, columns)
        errors = torch.zeros(rows, stop - start, dtype=torch.float64)
        for column in range(start, stop):
            block, offset = divmod(column, block_size)
            if offset == 0:
                part = slice(column, column + block_size)
                scale, zero = _find_grid(weight[:, part].float(), importance[part])
                scales[:, block], zeros[:, block] = scale[:, 0], zero[:, 0].byte()
            scale_c, zero_c = scales[:, block].double(), zeros[:, block].double()
            code = (torch.round(weight[:, column] / scale_c) + zero_c).clamp(0, MAX_CODE)
            codes[:, column] = code.byte()
            error = (weight[:, column] - scale_c * (code - zero_c)) / upper[column, column]
            weight[:, column:stop] -= error[:, None] * upper[column, column:stop]
            errors[:, column - start] = error
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return QuantisedWeight(codes, scales, zeros)


def quantise_model(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    block_size: int,
) -> dict[str, QuantisedWeight]:
    """Quantise the matrices of every decoder layer of a causal language model, in place.

    `prompts` are token ids to calibrate on. Afterwards the model computes with the quantised
    values. Returns them by module name ("model.layers.0.self_attn.q_proj"). Raises ValueError
    without prompts, for an architecture whose layers hold other matrices than those of Llama and
    Qwen, and for widths that blocks do not divide.
    """
    if not any(len(prompt) for prompt in prompts):
        raise ValueError("no calibration prompts: name a file of cases with --calibration.cases")
    layers = _decoder_layers(model)
    for layer in layers:
        for name, linear in _linears(layer).items():
            try:
                _count_blocks(linear.in_features, block_size)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    quantised: dict[str, QuantisedWeight] = {}
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        states, contexts = _layer_inputs(model, layers, prompts)
        for index, layer in enumerate(layers):
            linears = _linears(layer)
            for group in GROUPS:
                # all of a group read the same input: one Hessian serves them
                hessian = _hessian(layer, linears[group[0]], states, contexts[index])
                for name in group:
                    weight = quantise_weight(linears[name].weight, hessian, block_size)
                    linears[name].weight.copy_(weight.dequantise())
                    quantised[f"model.layers.{index}.{name}"] = weight
            states = [
                _first(layer(state, **context))
                for state, context in zip(states, contexts[index], strict=True)
            ]
            log.info("calibrated layer %d of %d", index + 1, len(layers))
    model.train(was_training)
    return quantised


def _count_blocks(width: int, block_size: int) -> int:
    if width % block_size:
        raise ValueError(f"an input width of {width} is no multiple of block_size {block_size}")
    return width // block_size


def _find_grid(part: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and zero point, each (N, 1), that lose least over a block `part` (N, block).

    Candidates span a share of the block's range: clipping a lone large value often costs less
    than a coarse grid for all others. Errors are weighed by the inputs' mean squares.
    """
    low = part.amin(1, keepdim=True).clamp(max=0)
    high = part.amax(1, keepdim=True).clamp(min=0)
    best = torch.full_like(low, torch.inf)
    best_scale, best_zero = torch.ones_like(low), torch.zeros_like(low)
    for shrink in _SHRINKS:
        # float16 now, so that what is rounded to is exactly what every backend multiplies by
        scale = ((high - low) / MAX_CODE * shrink).half().float()
        scale = torch.where(scale < _MIN_SCALE, _MIN_SCALE, scale)
        zero = torch.round(-low * shrink / scale).clamp(0, MAX_CODE)
        codes = (torch.round(part / scale) + zero).clamp(0, MAX_CODE)
        error = ((scale * (codes - zero) - part) ** 2 * importance).sum(1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _inverse_factor(hessian: Tensor, weight: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of the damped Hessian's inverse; dead inputs' weights become 0."""
    diagonal = hessian.diagonal()  # a view
    dead = diagonal == 0
    diagonal[dead] = 1
    weight[:, dead] = 0
    diagonal += damping * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)


def _decoder_layers(model: nn.Module) -> nn.ModuleList:
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not layers:
        raise ValueError(
            f"{type(model).__name__} has no model.layers: GPTQ here takes Llama- and Qwen-like "
            "models; use --precision kquant"
        )
    for layer in layers:
        _linears(layer)
    return layers


def _linears(layer: nn.Module) -> dict[str, nn.Linear]:
    found = {name: module for name, module in layer.named_modules() if type(module) is nn.Linear}
    expected = {name for group in GROUPS for name in group}
    if found.keys() != expected:
        odd = sorted(found.keys() ^ expected)
        raise ValueError(
            f"a decoder layer differs from Llama's and Qwen's in {', '.join(odd)}: use "
            "--precision kquant"
        )
    return found


def _layer_inputs(
    model: nn.Module, layers: nn.ModuleList, prompts: Sequence[Sequence[int]]
) -> tuple[list[Tensor], list[list[dict[str, Any]]]]:
    """What enters the first layer for each prompt, and the other arguments of every layer."""
    states: list[Tensor] = []
    contexts: list[list[dict[str, Any]]] = [[] for _ in layers]

    def keep(index: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            context = dict(kwargs)
            state = args[0] if args else context.pop("hidden_states")
            if index == 0:
                states.append(state)
            contexts[index].append(context)

        return hook

    handles = [
        layer.register_forward_pre_hook(keep(index), with_kwargs=True)
        for index, layer in enumerate(layers)
    ]
    try:
        for prompt in prompts:
            if len(prompt):
                model(input_ids=torch.tensor([list(prompt)]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return states, contexts


def _hessian(
    layer: nn.Module,
    linear: nn.Linear,
    states: Sequence[Tensor],
    contexts: Sequence[Mapping[str, Any]],
) -> Tensor:
    """Mean outer product of `linear`'s inputs over all tokens, (K, K) float64."""
    total = torch.zeros(linear.in_features, linear.in_features, dtype=torch.float64)
    tokens = 0

    def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal tokens
        inputs = args[0].reshape(-1, linear.in_features).double()
        total.addmm_(inputs.T, inputs)
        tokens += len(inputs)
        raise _SeenError  # what the layer computes after it is not asked for

    handle = linear.register_forward_pre_hook(add)
    try:
        for state, context in zip(states, contexts, strict=True):
            with suppress(_SeenError):
                layer(state, **context)
    finally:
        handle.remove()
    return total / tokens


class _SeenError(Exception):
    """Ends a layer's pass once the inputs of one of its matrices are known."""


def _first(output: Any) -> Tensor:
    value: Tensor = output[0] if isinstance(output, tuple) else output
    return value
