"""Penalties on one numeric scale, from exemption to death, so that there are intervals of terms.

A counted term stands at ln(months + 1), the unit of the CAIL2018 term score; a month of 管制 counts
half, as article 41 credits two days of it for one day in custody. Life, death with reprieve and
death lie above every number of months.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from curt.law.statutes import (
    CHARGES,
    MIN_FIXED_MONTHS,
    SINGLE_OFFENCE_MONTHS,
    Tier,
    canonical_charge,
)
from curt.law.verdict import CAPITAL_KINDS, MAX_MONTHS, Term

LIFE, REPRIEVE, DEATH = 6.5, 7.0, 7.5  # ln(301) = 5.7 is the most that months reach
SURVEILLANCE_WEIGHT = 0.5
_MOST_MONTHS = MAX_MONTHS["fixed"]
_TOLERANCE = 1e-6  # so that rounding of logarithms loses no month


@dataclass(frozen=True, slots=True)
class TermInterval:
    """Two terms and everything between them in severity, both ends included."""

    low: Term
    high: Term

    def contains(self, term: Term) -> bool:
        """Whether a term lies inside, by severity."""
        return severity(self.low) - _TOLERANCE <= severity(term) <= severity(self.high) + _TOLERANCE

    @property
    def width(self) -> float:
        """Distance of the ends in severity: ln of the ratio of (months + 1)."""
        return severity(self.high) - severity(self.low)


def severity(term: Term) -> float:
    """The place of a penalty on the scale: 0 for exemption, ln(months + 1), `LIFE` to `DEATH`."""
    if term.kind in CAPITAL_KINDS:
        return {"life": LIFE, "reprieve": REPRIEVE, "death": DEATH}[term.kind]
    weight = SURVEILLANCE_WEIGHT if term.kind == "surveillance" else 1.0
    return math.log(term.months * weight + 1)


def legal_range(charges: Sequence[str]) -> tuple[float, float]:
    """The severities that the statutory tiers of these charges span; exemption is not counted.

    For several offences the longest minimum and the sum of the longest terms, at most 25 years
    (article 69). A charge without tiers, or one that is not known, bounds nothing.
    """
    lows, highs, months = [0.0], [0.0], 0
    for name in charges:
        charge = CHARGES.get(canonical_charge(name))
        if charge is None or not charge.tiers:
            return 0.0, DEATH
        low, high, longest = _span_of(charge.name)
        lows.append(low)
        highs.append(high)
        months += longest
    joint = math.log(min(months, _MOST_MONTHS) + 1)
    return max(lows), max(*highs, joint)


def to_interval(low: float, high: float, charges: Sequence[str]) -> TermInterval:
    """The terms in whole months that lie between two severities.

    Ends are rounded inwards, since courts sentence in whole months; where no month is left
    between them, the nearest one stands for both. Raises ValueError when low is above high.
    """
    if low > high:
        raise ValueError(f"an interval from {low} to {high}: give the lower end first")
    # Nothing lies between 25 years and life.
    if math.log(_MOST_MONTHS + 1) + _TOLERANCE < low < LIFE <= high:
        low = LIFE
    first = math.ceil(min(math.expm1(low - _TOLERANCE), _MOST_MONTHS))
    last = math.floor(min(math.expm1(high + _TOLERANCE), _MOST_MONTHS))
    if first > last:
        first = last = round(min(math.expm1((low + high) / 2), _MOST_MONTHS))
    detention = _allows_detention(charges)
    return TermInterval(_term_at(low, first, detention), _term_at(high, last, detention))


def _term_at(place: float, months: int, detention: bool) -> Term:
    if place >= DEATH - _TOLERANCE:
        return Term("death")
    if place >= REPRIEVE - _TOLERANCE:
        return Term("reprieve")
    if place >= LIFE - _TOLERANCE:
        return Term("life")
    return count_term(months, detention=detention)


def count_term(months: int, *, detention: bool = True) -> Term:
    """So many months: exempt below one, 拘役 under six if `detention`, else 有期徒刑."""
    if months <= 0:
        return Term("exempt")
    return Term("detention" if detention and months < MIN_FIXED_MONTHS else "fixed", months)


def _allows_detention(charges: Sequence[str]) -> bool:
    known = [CHARGES.get(canonical_charge(name)) for name in charges]
    return any(_brings_detention(charge.name) for charge in known if charge)


@cache
def _brings_detention(known: str) -> bool:
    return any(tier.detention for tier in CHARGES[known].tiers)


@cache
def _span_of(known: str) -> tuple[float, float, int]:
    """The lowest and highest severity that the tiers of a charge allow, and the most months."""
    tiers = CHARGES[known].tiers
    return (
        min(map(_tier_low, tiers)),
        max(map(_tier_high, tiers)),
        max(tier.max_months for tier in tiers),
    )


def _tier_low(tier: Tier) -> float:
    places = [
        severity(Term(kind, low))
        for kind, (low, _) in SINGLE_OFFENCE_MONTHS.items()
        if getattr(tier, kind)
    ]
    if tier.max_months:
        places.append(severity(Term("fixed", tier.min_months)))
    places += [LIFE] * tier.life + [DEATH] * tier.death
    return min(places, default=0.0)


def _tier_high(tier: Tier) -> float:
    if tier.death:
        return DEATH
    if tier.life:
        return LIFE
    if tier.max_months:
        return severity(Term("fixed", tier.max_months))
    return max(
        (
            severity(Term(kind, high))
            for kind, (_, high) in SINGLE_OFFENCE_MONTHS.items()
            if getattr(tier, kind)
        ),
        default=0.0,
    )
