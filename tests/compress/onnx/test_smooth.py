"""Smoothed models say the same, and no channel of what they multiply stands out as before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.folders import load_model
from compress.onnx.smooth import largest_inputs, smooth_model
from tests.checkpoints import make_checkpoint

SAMPLES = [list(range(5, 60)), list(range(60, 140))]


def widest(model: torch.nn.Module) -> dict[str, float]:
    """By projection, its largest input channel over the median one."""
    largest = largest_inputs(model, SAMPLES)
    return {name: float(x.max() / x.median()) for name, x in largest.items()}


# Biases, norms of queries and keys, norms of 1 + weight around blocks, scaled residuals.
@pytest.mark.parametrize("kind", ["qwen2.5", "qwen3", "gemma2", "gemma3-base", "granite", "r1"])
def test_a_smoothed_model_says_the_same_in_more_even_numbers(kind: str, tmp_path: Path) -> None:
    model = load_model(make_checkpoint(tmp_path / "m", kind))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.5, generator=generator)
            elif "layernorm" in name:
                weight.uniform_(0.5, 1.5, generator=generator)[3] = 40.0
            elif name.endswith(("v_proj.weight", "up_proj.weight")):
                weight[3] *= 40
        before, spread = [model(torch.tensor([ids])).logits for ids in SAMPLES], widest(model)
        smooth_model(model, SAMPLES)
        for ids, logits in zip(SAMPLES, before, strict=True):
            torch.testing.assert_close(model(torch.tensor([ids])).logits, logits, atol=1e-3, rtol=0)
        after = widest(model)
    assert after.keys() == spread.keys()
    assert all(after[name] < spread[name] / 2 for name in after if name != "lm_head")


def test_smoothing_needs_samples(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give at least one"):
        smooth_model(load_model(make_checkpoint(tmp_path / "m", "qwen3")), [])
