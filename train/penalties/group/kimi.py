"""Kimi k1.5's length reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from train.penalties.base import NO_HISTORY, Group, History, Invariant, LengthPenalty


class KimiPenalty(LengthPenalty):
    """Kimi k1.5 (arXiv 2501.12599, section 2.3.3).

    lambda = 0.5 - (L - min) / (max - min) over the group; a right completion gains
    weight x lambda, a wrong one weight x min(0, lambda). All zero when lengths are equal.
    A spread of a few tokens counts as much as one of hundreds.

    >>> KimiPenalty(weight=0.4)(Group((1, 1), (10, 30), 128))
    [1.2, 0.8]
    """

    type: Literal["kimi"] = "kimi"
    breaks: ClassVar[Mapping[Invariant, str]] = {
        "spares_wrong": "a wrong completion longer than the middle of the group's range loses",
    }
    weight: float = Field(0.4, ge=0, le=1)

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness in [-weight/2, 1 + weight/2]."""
        shortest, longest = min(group.lengths), max(group.lengths)
        if shortest == longest:
            return list(group.correct)
        shaped = []
        for c, length in zip(group.correct, group.lengths, strict=True):
            bonus = 0.5 - (length - shortest) / (longest - shortest)
            shaped.append(c + self.weight * (bonus if c > 0 else min(0.0, bonus)))
        return shaped
