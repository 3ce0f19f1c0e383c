"""Arora and Zanette's efficient-reasoning reward."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from train.penalties.base import NO_HISTORY, Group, History, LengthPenalty, shrink, standings


class AroraZanettePenalty(LengthPenalty):
    """Training Language Models to Reason Efficiently (arXiv 2502.04463, section 4).

    c x (1 - alpha x sigmoid((L - mean) / std)), mean and std over the right completions of the
    group; a truncated completion earns nothing, whatever it says. Free of scale: a spread of a
    few tokens counts as much as one of hundreds.

    >>> AroraZanettePenalty(alpha=0.5)(Group((1, 1, 0), (40, 40, 9), 64))
    [0.75, 0.75, 0]
    >>> AroraZanettePenalty(alpha=0.5)(Group((1, 1, 0), (40, 128, 9), 64, (False, True, False)))
    [0.75, 0.0, 0]
    """

    type: Literal["arora-zanette"] = "arora-zanette"
    alpha: float = Field(0.2, ge=0, lt=1)
    """Largest share taken for length (paper: 0.05 to 0.4; free of scale)."""

    def __call__(self, group: Group, history: History = NO_HISTORY) -> list[float]:
        """Shaped correctness in [0, 1]."""
        pairs = list(zip(group.right, group.cut, strict=True))
        kept = [i for i, (ok, cut) in enumerate(pairs) if ok and not cut]
        values = standings([group.lengths[i] for i in kept])
        shaped = [min(c, 0.0) for c in group.correct]
        for i, value in zip(kept, values, strict=True):
            shaped[i] = shrink(group.correct[i], 1 - self.alpha * value)
        return shaped
