"""Linear penalty: the plainest gated baseline."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from train.penalties.base import (
    NO_HISTORY,
    Group,
    History,
    LengthPenalty,
    clip,
    resolve_limit,
    shrink,
)


class LinearPenalty(LengthPenalty):
    """A right completion loses value in proportion to its length; no paper, a baseline.

    c x (1 - weight x min(L / limit, 1)). Unlike the common c - a x L it is gated on correctness
    and clamped, so it can neither teach to fail fast nor fall without end.

    >>> LinearPenalty(weight=0.4)(Group((1, 1, 0), (32, 200, 5), 64))
    [0.8, 0.6, 0]
    """

    type: Literal["linear"] = "linear"
    needs_group: ClassVar[bool] = False
    weight: float = Field(0.4, ge=0, lt=1)
    limit: int | None = Field(None, ge=1)
    """Length in tokens that costs the full weight; None: the stated budget."""

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness in [0, 1]."""
        limit = max(resolve_limit(self.limit, group), 1)
        return [
            shrink(c, 1 - self.weight * clip(length / limit))
            for c, length in zip(group.correct, group.lengths, strict=True)
        ]
