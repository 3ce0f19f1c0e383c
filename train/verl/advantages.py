"""The advantage estimators of `train.loop.advantages` in verl's form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from train.loop.advantages import ESTIMATORS, Estimator, estimate

if TYPE_CHECKING:
    import torch

PREFIX = "curt-"
"""Before an estimator's name in `algorithm.adv_estimator`: curt-whitened."""


def make_estimator(
    name: Estimator,
) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """An estimator as verl calls it, for rewards that count once a completion."""

    def compute(
        token_level_rewards: torch.Tensor,
        response_mask: torch.Tensor,
        index: Sequence[Any],
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages and returns, (rows, tokens); rows with the same `index` are one group."""
        rewards = token_level_rewards.sum(dim=-1).tolist()
        groups: dict[Any, list[int]] = {}
        for row, group in enumerate(index):
            groups.setdefault(group, []).append(row)
        values = estimate(name, [[rewards[row] for row in rows] for rows in groups.values()])
        advantages = token_level_rewards.new_zeros(len(rewards))
        for rows, group_values in zip(groups.values(), values, strict=True):
            advantages[rows] = advantages.new_tensor(group_values)
        spread = advantages[:, None] * response_mask  # (rows, tokens)
        return spread, spread

    return compute


VERL_ESTIMATORS = {f"{PREFIX}{name}": make_estimator(name) for name in ESTIMATORS}  # type: ignore[arg-type]
