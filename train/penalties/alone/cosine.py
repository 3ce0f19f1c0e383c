"""Cosine length reward."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from train.penalties.base import (
    NO_HISTORY,
    Group,
    History,
    Invariant,
    LengthPenalty,
    clip,
    resolve_limit,
)


class CosinePenalty(LengthPenalty):
    """Cosine reward (arXiv 2502.03373, section 4.2), in place of c.

    Falls from `right_short` to `right_long` as L goes from 0 to the limit, and rises from
    `wrong_short` to `wrong_long`: end + (start - end) x (1 + cos(pi x L / limit)) / 2. L is
    clamped to the limit: without it, twice the limit would earn the full reward again. The
    paper's separate reward of -10 at the limit is left out; `gated` and `dler` cover overruns.

    >>> CosinePenalty()(Group((1, 1, 0, 0), (0, 64, 0, 200), 64))
    [1.0, 0.5, -1.0, -0.5]
    """

    type: Literal["cosine"] = "cosine"
    needs_group: ClassVar[bool] = False
    breaks: ClassVar[Mapping[Invariant, str]] = {
        "prefers_shorter": "a wrong completion is worth more the longer it is, to keep exploring",
        "spares_wrong": "the wrong branch depends on length",
    }
    right_short: float = Field(1.0, gt=0)
    """Value of a right answer with no reasoning (paper: 2)."""
    right_long: float = Field(0.5, gt=0)
    """Value of a right answer at the limit (paper: 1)."""
    wrong_short: float = Field(-1.0, le=0)
    """Value of a wrong answer with no reasoning (paper: -10)."""
    wrong_long: float = Field(-0.5, le=0)
    """Value of a wrong answer at the limit (paper: 0)."""
    limit: int | None = Field(None, ge=1)
    """Length in tokens where the cosine ends (paper: about 14,000); None: the stated budget."""

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Values between the wrong and the right constants."""
        limit = max(resolve_limit(self.limit, group), 1)
        shaped = []
        for right, length in zip(group.right, group.lengths, strict=True):
            start, end = (
                (self.right_short, self.right_long)
                if right
                else (self.wrong_short, self.wrong_long)
            )
            phase = math.cos(math.pi * clip(length / limit))
            shaped.append(end + (start - end) * (1 + phase) / 2)
        return shaped
