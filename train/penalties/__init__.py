"""Length penalties: pure functions over one prompt's group of completions.

Each module holds one algorithm with its formula, constants, source and a worked example. Its class
declares what it needs (`needs_group`, `needs_history`) and which promises its published formula
breaks (`breaks`); `train.penalties.base` says what these mean. It stands in `alone/` when it needs
neither, in `history/` when it needs the history, else in `group/`. A new penalty is its module, an
entry of `PENALTIES` and its constants in tests/train/penalties/test_penalties.py.
"""

from __future__ import annotations

from typing import Annotated, Union

from pydantic import Field

from train.penalties.alone.cosine import CosinePenalty
from train.penalties.alone.dapo_overlong import DapoOverlongPenalty
from train.penalties.alone.dler import DlerPenalty
from train.penalties.alone.laser import LaserPenalty
from train.penalties.alone.lcpo_exact import LcpoExactPenalty
from train.penalties.alone.lcpo_max import LcpoMaxPenalty
from train.penalties.alone.linear import LinearPenalty
from train.penalties.alone.none import NoPenalty
from train.penalties.base import Group, Invariant, LengthPenalty
from train.penalties.group.alp import AlpPenalty
from train.penalties.group.arora_zanette import AroraZanettePenalty
from train.penalties.group.ddca import DdcaPenalty
from train.penalties.group.drpo import DrpoPenalty
from train.penalties.group.gated import GatedPenalty
from train.penalties.group.gr3 import Gr3Penalty
from train.penalties.group.granted import GrantedPenalty
from train.penalties.group.kimi import KimiPenalty
from train.penalties.group.shorter_better import ShorterBetterPenalty
from train.penalties.history.laser_d import LaserDPenalty
from train.penalties.history.short_rl import ShortRlPenalty

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
    "granted": GrantedPenalty,
}
# The union of all of them, told apart by `type`.
Penalty = Annotated[Union[tuple(PENALTIES.values())], Field(discriminator="type")]  # noqa: UP007

__all__ = ["PENALTIES", "Group", "Invariant", "LengthPenalty", "Penalty"]
