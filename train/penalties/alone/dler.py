"""DLER: plain truncation."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from train.penalties.base import NO_HISTORY, Group, History, LengthPenalty, resolve_limit, shrink


class DlerPenalty(LengthPenalty):
    """DLER's truncation (arXiv 2510.15110): c x factor past the limit or when cut off, else c.

    The paper's gain comes with its baseline and batch whitening (`whitened` in
    `train.loop.advantages`) and dynamic sampling. Only a positive c is multiplied: a tenth of a
    negative reward would reward a wrong answer for running over.

    >>> DlerPenalty()(Group((1, 1, -1), (64, 65, 200), 64))
    [1, 0.1, -1]
    """

    type: Literal["dler"] = "dler"
    needs_group: ClassVar[bool] = False
    factor: float = Field(0.1, gt=0, le=1)
    """Share of the reward kept past the limit (paper: 0.1)."""
    limit: int | None = Field(None, ge=0)
    """Longest length in tokens that earns everything (paper: thousands); None: the budget."""

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness in [0, 1]."""
        limit = resolve_limit(self.limit, group)
        return [
            shrink(c, self.factor) if cut or length > limit else c
            for c, length, cut in zip(group.correct, group.lengths, group.cut, strict=True)
        ]
