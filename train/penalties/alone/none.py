"""No length penalty."""

from __future__ import annotations

from typing import ClassVar, Literal

from train.penalties.base import NO_HISTORY, Group, History, LengthPenalty


class NoPenalty(LengthPenalty):
    """Plain correctness: c.

    >>> NoPenalty()(Group((1, 0), (10, 30), 128))
    [1, 0]
    """

    type: Literal["none"] = "none"
    needs_group: ClassVar[bool] = False

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness, one value a completion."""
        return list(group.correct)
