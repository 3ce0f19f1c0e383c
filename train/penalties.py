"""Length penalties: pure functions over one prompt's group of completions.

A penalty turns each completion's correctness `c` in {0, 1} and length `L` in thinking tokens into
a shaped correctness. Invariants, tested for every penalty here: a wrong short completion never
outranks a right long one; a group of equal lengths keeps the order of plain GRPO; values are
bounded; penalties pickle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True, slots=True)
class Group:
    """All completions of one prompt. `budget` is the thinking budget stated in the prompt."""

    correct: tuple[float, ...]
    lengths: tuple[int, ...]
    budget: int

    def __post_init__(self) -> None:
        if len(self.correct) != len(self.lengths) or not self.correct:
            raise ValueError(
                f"a group of {len(self.correct)} scores and {len(self.lengths)} lengths: "
                "give one of each for every completion"
            )


class _Penalty(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class NoPenalty(_Penalty):
    """Plain correctness: c."""

    type: Literal["none"] = "none"

    def __call__(self, group: Group) -> list[float]:
        """Shaped correctness, one value a completion, in [0, 1]."""
        return list(group.correct)


class KimiPenalty(_Penalty):
    """Kimi k1.5 (arXiv 2501.12599, section 2.3.3).

    lambda = 0.5 - (L - min) / (max - min) over the group; a right completion gains
    weight x lambda, a wrong one weight x min(0, lambda). All zero when lengths are equal.

    Example, weight 0.4: right with lengths 10 and 30 gives 1.2 and 0.8.
    """

    type: Literal["kimi"] = "kimi"
    weight: float = Field(0.4, ge=0, le=1)

    def __call__(self, group: Group) -> list[float]:
        """Shaped correctness in [-weight/2, 1 + weight/2]."""
        shortest, longest = min(group.lengths), max(group.lengths)
        if shortest == longest:
            return list(group.correct)
        shaped = []
        for c, length in zip(group.correct, group.lengths, strict=True):
            bonus = 0.5 - (length - shortest) / (longest - shortest)
            shaped.append(c + self.weight * (bonus if c else min(0.0, bonus)))
        return shaped


class LcpoMaxPenalty(_Penalty):
    """LCPO-Max (L1, arXiv 2503.04697, equation 2): reward for staying under the stated budget n.

    c x (clip(alpha (n - L), -1, 1) + 1) / 2. The paper's alpha of 3e-4 is for budgets of
    thousands of tokens; the default here keeps alpha x n at the same magnitude for n near 100.

    Example, alpha 0.01, n 32: right with L = 32 gives 0.5, with L = 12 gives 0.6.
    """

    type: Literal["lcpo-max"] = "lcpo-max"
    alpha: float = Field(0.01, gt=0)

    def __call__(self, group: Group) -> list[float]:
        """Shaped correctness in [0, 1]."""
        return [
            c * (max(-1.0, min(1.0, self.alpha * (group.budget - length))) + 1) / 2
            for c, length in zip(group.correct, group.lengths, strict=True)
        ]


class GatedPenalty(_Penalty):
    """The default: correctness-gated, multiplicative, scaled by the group's pass rate.

    c x (1 - weight x p x excess) x (1 - over_budget x overrun), where p is the share of right
    completions, excess = clip((L - shortest right - tolerance) / max(longest - shortest right,
    floor), 0, 1) and overrun = clip((L - n) / max(n, floor), 0, 1) against the stated budget n.

    The pass rate keeps the pressure off prompts the policy cannot solve yet; `tolerance` and
    `floor` keep a spread of a few tokens from being amplified into a full-size advantage.

    Example, weight 0.4, tolerance 0, floor 16, all right, budget 128, lengths 10 and 110:
    1.0 and 0.6.
    """

    type: Literal["gated"] = "gated"
    weight: float = Field(0.4, ge=0, lt=1)
    over_budget: float = Field(0.5, ge=0, lt=1)
    """Largest share taken for running past the stated budget."""
    tolerance: int = Field(2, ge=0)
    """Tokens above the shortest right completion that cost nothing."""
    floor: int = Field(16, ge=1)
    """Smallest spread, in tokens, that counts as a full one."""

    def __call__(self, group: Group) -> list[float]:
        """Shaped correctness in [0, 1]."""
        right = [n for c, n in zip(group.correct, group.lengths, strict=True) if c]
        if not right:
            return list(group.correct)
        shortest = min(right)
        spread = max(max(group.lengths) - shortest, self.floor)
        pass_rate = len(right) / len(group.correct)
        shaped = []
        for c, length in zip(group.correct, group.lengths, strict=True):
            excess = _clip((length - shortest - self.tolerance) / spread)
            overrun = _clip((length - group.budget) / max(group.budget, self.floor))
            shaped.append(
                c * (1 - self.weight * pass_rate * excess) * (1 - self.over_budget * overrun)
            )
        return shaped


PENALTIES: dict[str, type[_Penalty]] = {
    "none": NoPenalty,
    "kimi": KimiPenalty,
    "lcpo-max": LcpoMaxPenalty,
    "gated": GatedPenalty,
}
Penalty = Annotated[
    NoPenalty | KimiPenalty | LcpoMaxPenalty | GatedPenalty, Field(discriminator="type")
]


def _clip(value: float) -> float:
    return max(0.0, min(1.0, value))
