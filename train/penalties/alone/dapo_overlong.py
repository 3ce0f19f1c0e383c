"""DAPO's soft overlong punishment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from train.penalties.base import NO_HISTORY, Group, History, Invariant, LengthPenalty, resolve_limit


class DapoOverlongPenalty(LengthPenalty):
    """Soft overlong punishment (DAPO, arXiv 2503.14476, equation 13), added to c.

    0 up to limit - cache; then (limit - cache - L) / cache; -1 past the limit; all x weight.
    A cache larger than the limit is cut down to it.

    >>> DapoOverlongPenalty(cache=20)(Group((1, 1, 1, 0), (40, 50, 90, 90), 60))
    [1.0, 0.75, 0.5, -0.5]
    """

    type: Literal["dapo-overlong"] = "dapo-overlong"
    needs_group: ClassVar[bool] = False
    breaks: ClassVar[Mapping[Invariant, str]] = {
        "spares_wrong": "wrong completions are punished for length too",
    }
    weight: float = Field(0.5, ge=0, lt=1)
    """Paper: 1, for rewards of 1 and -1; correctness here spans half of that."""
    cache: int = Field(24, ge=1)
    """Tokens before the limit over which the punishment grows (paper: 4,096 of 20,480)."""
    limit: int | None = Field(None, ge=0)
    """Longest length in tokens (paper: 20,480); None: the stated budget."""

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness in [-weight, 1]."""
        limit = resolve_limit(self.limit, group)
        free = max(limit - self.cache, 0)
        return [
            c + self.weight * _punishment(length, free, limit)
            for c, length in zip(group.correct, group.lengths, strict=True)
        ]


def _punishment(length: int, free: int, limit: int) -> float:
    if length <= free:
        return 0.0
    if length > limit:
        return -1.0
    return (free - length) / (limit - free)
