"""Drawing a latent case: its offence, its harm told in parts, and its circumstances."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import pairwise

from curt.corpus.generate.calculus import Circumstance, Grade, Offence, circumstances, offences

_MOST_CIRCUMSTANCES = 4
_MONEY_GRAINS = (1, 10, 100, 100, 1000, 1000)  # exact sums are as common as round ones


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a fact has to tell.

    `parts` are the quantities of its incidents, none where harm is graded; `open_sum` says that the
    facts never tell what they add up to.
    """

    offence: Offence
    harm: int | Grade
    parts: tuple[int, ...]
    circumstances: tuple[Circumstance, ...]
    open_sum: bool = False


def draw(rng: random.Random) -> Drawn:
    """A latent case, each charge as often as its share."""
    table = tuple(offences().values())
    return draw_of(rng, rng.choices(table, weights=[o.share for o in table])[0])


def draw_of(rng: random.Random, offence: Offence) -> Drawn:
    """A latent case of one charge."""
    harm, parts = _draw_harm(rng, offence)
    return Drawn(offence, harm, parts, draw_circumstances(rng, offence))


def _draw_harm(rng: random.Random, offence: Offence) -> tuple[int | Grade, tuple[int, ...]]:
    if offence.grades:
        return rng.choices(offence.grades, weights=[g.odds for g in offence.grades])[0], ()
    bracket = rng.choices(offence.brackets, weights=offence.bracket_odds)[0]
    low = max(1, bracket.threshold)
    # Small harm is far commoner than large, in every bracket.
    place = rng.random() ** 1.5
    quantity = round(low * math.exp(place * math.log(bracket.limit / low)))
    grain = rng.choice(_MONEY_GRAINS) if offence.unit == "元" else offence.grain
    quantity = max(low, quantity // grain * grain)
    wanted = rng.choices(range(1, len(offence.incidents) + 1), weights=offence.incidents)[0]
    pieces = quantity // grain
    wanted = min(wanted, max(1, pieces // 3))  # few grains would fall into equal parts
    cuts = sorted(rng.sample(range(1, pieces), wanted - 1)) if wanted > 1 else []
    edges = [0, *(cut * grain for cut in cuts), quantity]
    return quantity, tuple(high - low for low, high in pairwise(edges))


def draw_circumstances(
    rng: random.Random, offence: Offence, odds: float | None = None
) -> tuple[Circumstance, ...]:
    """Those that the dice allow, in the order of their tables, at most one of a group.

    `odds`, in percent, are for all alike; without, each has its own.
    """
    held: list[Circumstance] = []
    for one in (*offence.circumstances.values(), *circumstances().values()):
        taken = {other.group for other in held if other.group}
        likely = odds or one.odds
        if offence.admits(one) and one.group not in taken and rng.random() * 100 < likely:
            held.append(one)
    while len(held) > _MOST_CIRCUMSTANCES:
        held.pop(rng.randrange(len(held)))
    return tuple(held)
