from __future__ import annotations

import pytest
import torch

from train.warm_start import optimizer

SHAPES = (6, 10), (10, 6), (8, 8)


def train(kind: type[torch.optim.Muon], steps: int = 5) -> list[torch.Tensor]:
    """Weights after steps by gradients that are the same for every kind."""
    generator = torch.Generator().manual_seed(3)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    muon = kind(weights, lr=0.02, weight_decay=0.01)
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        muon.step()
    return [weight.detach() for weight in weights]


@pytest.mark.parametrize("bf16", [False, True])
def test_steps_are_those_of_torch(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    monkeypatch.setattr(optimizer, "choose_bf16", lambda wanted: bf16)
    start, got = train(optimizer.Muon, steps=0), train(optimizer.Muon)
    if not bf16:
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    for before, mine, theirs in zip(start, got, train(torch.optim.Muon), strict=True):
        assert (theirs - before).abs().mean() > 0.01
        torch.testing.assert_close(mine, theirs)


def test_singular_values_come_near_one() -> None:
    matrix = torch.randn(12, 30, generator=torch.Generator().manual_seed(1))
    coefficients = torch.optim.Muon([torch.nn.Parameter(matrix)]).defaults["ns_coefficients"]
    values = torch.linalg.svdvals(optimizer.orthogonalise(matrix, coefficients, 5))
    assert values.min() > 0.6
    assert values.max() < 1.3
