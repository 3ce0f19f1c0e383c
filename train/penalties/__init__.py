"""Length penalties: pure functions over one prompt's group of completions.

Each module holds one algorithm with its formula, constants, source and a worked example. What a
formula promises, and which published ones break it, is declared in `breaks` and tested: see
`train.penalties.base`.
"""

from __future__ import annotations

from typing import Annotated

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
Penalty = Annotated[
    NoPenalty
    | LinearPenalty
    | CosinePenalty
    | KimiPenalty
    | DapoOverlongPenalty
    | LcpoExactPenalty
    | LcpoMaxPenalty
    | AroraZanettePenalty
    | LaserPenalty
    | LaserDPenalty
    | AlpPenalty
    | ShorterBetterPenalty
    | ShortRlPenalty
    | DlerPenalty
    | Gr3Penalty
    | DdcaPenalty
    | DrpoPenalty
    | GatedPenalty,
    Field(discriminator="type"),
]

__all__ = [
    "PENALTIES",
    "AlpPenalty",
    "AroraZanettePenalty",
    "CosinePenalty",
    "DapoOverlongPenalty",
    "DdcaPenalty",
    "DlerPenalty",
    "DrpoPenalty",
    "GatedPenalty",
    "Gr3Penalty",
    "Group",
    "Invariant",
    "KimiPenalty",
    "LaserDPenalty",
    "LaserPenalty",
    "LcpoExactPenalty",
    "LcpoMaxPenalty",
    "LengthPenalty",
    "LinearPenalty",
    "NoPenalty",
    "Penalty",
    "ShortRlPenalty",
    "ShorterBetterPenalty",
]
