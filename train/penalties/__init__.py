"""Length penalties: pure functions over one prompt's group of completions.

Each module holds one algorithm with its formula, constants, source and a worked example. Its class
declares what it needs (`needs_group`, `needs_history`) and which promises its published formula
breaks (`breaks`); `train.penalties.base` says what these mean. A new penalty is its module, a line
in `PENALTIES` and a line of constants in tests/train/penalties/test_penalties.py.
"""

from __future__ import annotations

from typing import Annotated, Union

from pydantic import Field

from train.penalties.alp import AlpPenalty
from train.penalties.arora_zanette import AroraZanettePenalty
from train.penalties.base import Group, Invariant, LengthPenalty
from train.penalties.cosine import CosinePenalty
from train.penalties.dapo_overlong import DapoOverlongPenalty
from train.penalties.ddca import DdcaPenalty
from train.penalties.dler import DlerPenalty
from train.penalties.drpo import DrpoPenalty
from train.penalties.gated import GatedPenalty
from train.penalties.gr3 import Gr3Penalty
from train.penalties.kimi import KimiPenalty
from train.penalties.laser import LaserPenalty
from train.penalties.laser_d import LaserDPenalty
from train.penalties.lcpo_exact import LcpoExactPenalty
from train.penalties.lcpo_max import LcpoMaxPenalty
from train.penalties.linear import LinearPenalty
from train.penalties.none import NoPenalty
from train.penalties.short_rl import ShortRlPenalty
from train.penalties.shorter_better import ShorterBetterPenalty

PENALTIES: dict[str, type[LengthPenalty]] = {
    "none": NoPenalty,
    "linear": LinearPenalty,
    "cosine": CosinePenalty,
    "kimi": KimiPenalty,
    "dapo-overlong": DapoOverlongPenalty,
    "lcpo-exact": LcpoExactPenalty,
    "lcpo-max": LcpoMaxPenalty,
    "arora-zanette": AroraZanettePenalty,
    "laser": LaserPenalty,
    "laser-d": LaserDPenalty,
    "alp": AlpPenalty,
    "shorter-better": ShorterBetterPenalty,
    "short-rl": ShortRlPenalty,
    "dler": DlerPenalty,
    "gr3": Gr3Penalty,
    "ddca": DdcaPenalty,
    "drpo": DrpoPenalty,
    "gated": GatedPenalty,
}
# The union of all of them, told apart by `type`.
Penalty = Annotated[Union[tuple(PENALTIES.values())], Field(discriminator="type")]  # noqa: UP007

__all__ = ["PENALTIES", "Group", "Invariant", "LengthPenalty", "Penalty"]
