"""LASER: a bonus for right answers within a target length."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from train.penalties.base import NO_HISTORY, Group, History, LengthPenalty, resolve_limit


class LaserPenalty(LengthPenalty):
    """LASER (arXiv 2505.15612): a step, c + bonus x c x [L <= limit].

    >>> LaserPenalty()(Group((1, 1, 0), (64, 65, 10), 64))
    [1.5, 1, 0]
    """

    type: Literal["laser"] = "laser"
    needs_group: ClassVar[bool] = False
    bonus: float = Field(0.5, ge=0)
    """Paper: 0.5."""
    limit: int | None = Field(None, ge=0)
    """Target length in tokens (paper: 2,048 to 8,192); None: the stated budget."""

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness in [0, 1 + bonus]."""
        return add_bonus(group, self.bonus, resolve_limit(self.limit, group))


def add_bonus(group: Group, bonus: float, target: float) -> list[float]:
    """c x (1 + bonus) for right completions of at most `target` tokens, c for all others."""
    return [
        c * (1 + bonus) if c > 0 and length <= target else c
        for c, length in zip(group.correct, group.lengths, strict=True)
    ]
