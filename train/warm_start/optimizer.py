"""Muon for the matrices, AdamW for the rest.

From scratch a small model spends half of its steps before its attention finds the facts at all;
orthogonalised updates (Muon) shorten that a good deal. For a model that is already trained, plain
AdamW is the usual choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from curt.hardware import choose_bf16


class Muon(torch.optim.Muon):
    """torch's, which orthogonalises in bf16, in fp32 where the hardware has no bf16 products."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update."""
        if choose_bf16(True):
            super().step(closure)
            return
        for group in self.param_groups:
            weights, gradients, buffers = [], [], []
            self._init_group(group, weights, gradients, buffers)
            for weight, gradient, buffer in zip(weights, gradients, buffers, strict=True):
                buffer.lerp_(gradient, 1 - group["momentum"])
                update = gradient.lerp(buffer, group["momentum"])  # Nesterov
                update = orthogonalise(update, group["ns_coefficients"], group["ns_steps"])
                rate = group["lr"] * math.sqrt(max(1, weight.shape[0] / weight.shape[1]))
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(rate * update)


def orthogonalise(
    matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int
) -> torch.Tensor:
    """Bring the singular values of a matrix near 1 by Newton and Schulz's quintic iteration.

    In the matrix's own precision; see `torch.optim.Muon`.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on hidden matrices and AdamW on embeddings, norms and biases.

    One optimiser to the Trainer: the scheduler scales both learning rates.
    """

    def __init__(self, model: torch.nn.Module, *, muon_lr: float, adamw_lr: float) -> None:
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim == 2 and id(p) not in embeddings]
        chosen = {id(p) for p in matrices}
        others = [p for p in trained if id(p) not in chosen]
        self.muon = Muon(matrices, lr=muon_lr, weight_decay=0.01)
        self.adamw = torch.optim.AdamW(others, lr=adamw_lr, weight_decay=0.0, betas=(0.9, 0.95))
        # The base class serves `isinstance` and hooks; both parts keep their own state.
        super().__init__([torch.nn.Parameter(torch.empty(0))], {})

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The live groups of both, so that a scheduler reaches each."""
        return self.muon.param_groups + self.adamw.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        """The base class fills its own list; ours stays with the two optimisers."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of both."""
        self.muon.step()
        self.adamw.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients."""
        self.muon.zero_grad(set_to_none)
        self.adamw.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """State of both, by name."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
