from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from compress.onnx.gptq import (
    MAX_CODE,
    QuantisedWeight,
    quantise_model,
    quantise_weight,
)
from tests.compress.onnx.nearest import round_to_nearest

PROMPTS = [[5, 6, 7, 8, 9, 10, 30, 31, 12] * 4, [40, 41, 42, 43, 6, 5, 7] * 5]


def correlated_inputs(columns: int, seed: int, rows: int = 400) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    return torch.randn(rows, columns, generator=generator) @ mixing / columns**0.5


def output_error(inputs: torch.Tensor, weight: torch.Tensor, quantised: QuantisedWeight) -> float:
    return float(((inputs @ (quantised.dequantise() - weight).T) ** 2).mean())


@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_outputs_change_less_than_with_rounding_to_nearest(block_size: int) -> None:
    inputs = correlated_inputs(192, seed=1)
    weight = torch.randn(48, 192, generator=torch.Generator().manual_seed(2)) * 0.05
    hessian = inputs.T @ inputs / len(inputs)
    nearest = round_to_nearest(weight, block_size)
    calibrated = quantise_weight(weight, hessian, block_size)
    assert output_error(inputs, weight, calibrated) < 0.7 * output_error(inputs, weight, nearest)


def test_independent_inputs_leave_nothing_to_make_good() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    calibrated = quantise_weight(weight, torch.eye(64), 32)
    nearest = round_to_nearest(weight, 32)
    assert torch.equal(calibrated.codes, nearest.codes)
    assert torch.equal(calibrated.dequantise(), nearest.dequantise())


def test_columns_are_made_good_as_in_the_paper() -> None:
    """Two columns by hand: the second takes over what the first lost, through the Hessian."""
    grid = torch.tensor([[-8.0] + [0.0] * 14 + [7.0]])  # fixes scale 1 and zero point 8
    weight = torch.cat([torch.tensor([[0.4, 0.2]]), grid[:, 2:]], dim=1)
    weight[0, 2] = -8.0
    hessian = torch.eye(16)
    hessian[0, 1] = hessian[1, 0] = 0.9
    out = quantise_weight(weight, hessian, 16, damping=0.0).dequantise()
    # 0.4 rounds to 0; the inputs go together 0.9 : 1, so 0.36 moves over: 0.56 rounds to 1
    assert out[0, :2].tolist() == [0.0, 1.0]
    assert round_to_nearest(weight, 16).dequantise()[0, :2].tolist() == [0.0, 0.0]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from([16, 32]), st.floats(-4, 4), st.booleans())
def test_every_value_lies_on_the_grid_of_its_block(
    seed: int, block_size: int, exponent: float, dead: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 64, generator=generator) * 10**exponent
    inputs = correlated_inputs(64, seed, rows=80)
    if dead:
        inputs[:, :block_size] = 0
        weight[:, block_size : 2 * block_size] = 0
    hessian = inputs.T @ inputs / len(inputs)
    out = quantise_weight(weight, hessian, block_size)
    assert int(out.codes.max()) <= MAX_CODE
    assert int(out.zero_points.max()) <= MAX_CODE
    assert torch.equal(out.scales.half().float(), out.scales)
    assert bool((out.scales > 0).all())
    assert bool(torch.isfinite(out.dequantise()).all())


def test_inputs_never_seen_get_no_weight() -> None:
    inputs = correlated_inputs(32, seed=4)
    inputs[:, 5] = 0
    weight = torch.ones(8, 32)
    out = quantise_weight(weight, inputs.T @ inputs, 16)
    assert out.dequantise()[:, 5].abs().max() == 0


def test_the_given_weight_and_hessian_stay_as_they_are() -> None:
    inputs = correlated_inputs(32, seed=5)
    weight, hessian = torch.randn(8, 32), inputs.T @ inputs
    hessian[3] = hessian[:, 3] = 0
    copies = weight.clone(), hessian.clone()
    quantise_weight(weight, hessian, 16)
    assert torch.equal(weight, copies[0])
    assert torch.equal(hessian, copies[1])


def test_a_width_that_blocks_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="48 is no multiple of block_size 32"):
        quantise_weight(torch.ones(4, 48), torch.eye(48), 32)


def test_inputs_that_are_not_finite_are_refused() -> None:
    hessian = torch.eye(32)
    hessian[0, 0] = torch.inf
    with pytest.raises(ValueError, match="not finite"):
        quantise_weight(torch.ones(4, 32), hessian, 32)


def test_a_model_computes_with_the_quantised_values_and_repeats(micro_model: Path) -> None:
    results = []
    for _ in range(2):
        model = AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32)
        original = {name: p.clone() for name, p in model.named_parameters()}
        weights = quantise_model(model, PROMPTS, 32)
        assert len(weights) == 2 * 7
        for name, parameter in model.named_parameters():
            module = name.removesuffix(".weight")
            expected = weights[module].dequantise() if module in weights else original[name]
            assert torch.equal(parameter, expected), name
        results.append(weights)
    first, second = results
    assert all(torch.equal(first[name].codes, second[name].codes) for name in first)


def test_a_calibrated_model_is_nearer_to_its_parent(micro_model: Path) -> None:
    """On what it was calibrated on, against rounding the same matrices to nearest."""
    ids = torch.tensor([PROMPTS[0]])
    parent = AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32).eval()
    calibrated = AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32).eval()
    names = quantise_model(calibrated, PROMPTS, 64)
    nearest = AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32).eval()
    with torch.inference_mode():
        for name in names:
            weight = nearest.get_submodule(name).weight
            weight.copy_(round_to_nearest(weight, 64).dequantise())
        wanted, near, far = (m(ids).logits for m in (parent, calibrated, nearest))
    assert float(((near - wanted) ** 2).mean()) < float(((far - wanted) ** 2).mean())


@pytest.mark.parametrize("prompts", [[], [[]]])
def test_calibration_without_prompts_is_refused(
    micro_model: Path, prompts: list[list[int]]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(micro_model)
    with pytest.raises(ValueError, match="no calibration prompts"):
        quantise_model(model, prompts, 32)


def test_another_kind_of_model_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=64))
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel has no model.layers.*kquant"):
        quantise_model(model, PROMPTS, 32)


def test_a_layer_with_other_matrices_is_refused(micro_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(micro_model)
    model.model.layers[1].mlp.extra = torch.nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"mlp.extra"):
        quantise_model(model, PROMPTS, 32)
