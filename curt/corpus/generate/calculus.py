"""The declared sentencing calculus behind generated cases: what each charge's harm weighs.

It follows the Supreme People's Court's sentencing guideline (量刑指导意见) in shape: a starting
point, increments by quantity, adjustment ratios by circumstance, rounding, clamp to what the charge
allows. Its numbers are near that guideline and the terms that courts give, and rounded so that a
small model can follow: a *declared* law that can be checked step by step, no claim about what a
court would decide. They stand in `charges/*.toml`, a table a charge, and in
`wording/circumstances.toml`.

A sentence is computed so:

1. find the charge's highest bracket that the quantity reaches, or its named grade;
2. base = bracket's months + quantity // bracket's `every`, or the grade's months;
3. ratio = sum of the circumstances' percentages, kept from -60 up;
4. months = base x (100 + ratio) / 100, rounded half up;
5. kept within what the charge allows: at most its `ceiling`;
6. under 6 months is 拘役, from 6 months 有期徒刑; under 1 month before the clamp, exempt.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from curt.corpus.generate.grammar import Lists
from curt.law.numerals import article_order
from curt.law.statutes import MIN_FIXED_MONTHS
from curt.law.verdict import MAX_SUSPENDED_MONTHS, Term
from curt.law.weighing import scale_months, sum_ratios

LIFE = -1  # months of a bracket that means 无期徒刑, whatever the circumstances
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Bracket:
    """From `threshold` units on: `months`, and one month more for every `every` units.

    All in the offence's own grains: yuan, or tenths of a gram where `decimals` is 1.
    """

    threshold: int
    months: int
    every: int
    limit: int
    """Largest quantity drawn in this bracket."""


@dataclass(frozen=True, slots=True)
class Grade:
    """A named harm: 轻伤二级. `acts` replace the offence's where they are given."""

    name: str
    months: int
    odds: float
    told: tuple[str, ...]
    acts: tuple[str, ...] = ()
    articles: tuple[str, ...] = ()
    """Where others than the offence's hold: 放火 with a death is article 115, not 114."""


@dataclass(frozen=True, slots=True)
class Circumstance:
    """What moves a term by `ratio` percent of its base, and how it is told."""

    name: str
    ratio: int
    odds: float
    told: tuple[str, ...]
    group: str = ""
    """Of each group a case holds at most one."""
    only: frozenset[str] = frozenset()
    """Kinds of offence (`Offence.kinds`) that it goes with; any where empty."""
    signs: tuple[str, ...] = ()
    """Words one of which stands in nearly every sentence that tells it, and in others too."""
    train_only: tuple[str, ...] = ()
    """More ways to tell it, by writers who had not seen the others; none of them is held out."""


@dataclass(frozen=True, slots=True)
class Offence:
    """One charge of the generator: brackets for counted harm, grades for named harm."""

    charge: str
    articles: tuple[str, ...]
    share: float
    unit: str
    decimals: int
    brackets: tuple[Bracket, ...]
    bracket_odds: tuple[float, ...]
    grades: tuple[Grade, ...]
    grain: int
    incidents: tuple[float, ...]
    fine: int
    ceiling: int
    acts: tuple[str, ...]
    after: tuple[str, ...]
    slots: Lists
    without: frozenset[str] = frozenset()
    """Circumstances that make no sense for it."""
    circumstances: Mapping[str, Circumstance] = field(default_factory=dict)

    @property
    def kinds(self) -> frozenset[str]:
        """What a circumstance or a clause may ask for: "money", "victim", "harmed" (no money)."""
        kinds = {"money"} if self.unit == "元" else set()
        if any("{v}" in act for act in self.acts):
            kinds |= {"victim"} if kinds else {"victim", "harmed"}
        return frozenset(kinds)

    def admits(self, circumstance: Circumstance) -> bool:
        """Whether a circumstance can go with it."""
        fits = not circumstance.only or bool(self.kinds.intersection(circumstance.only))
        return fits and circumstance.name not in self.without

    def articles_of(self, harm: int | Grade) -> tuple[str, ...]:
        """The articles that a verdict on such a harm rests on."""
        own = harm.articles if isinstance(harm, Grade) else ()
        return own or self.articles

    def write(self, quantity: int) -> str:
        """A quantity without its unit: 0.9 for 9 tenths."""
        return f"{quantity / 10**self.decimals:g}" if self.decimals else f"{quantity}"


@dataclass(frozen=True, slots=True)
class Sentence:
    """A computed sentence with every intermediate value, for reasoning that can be checked."""

    start: int
    extra: int
    base: int
    ratio: int
    months: int
    term: Term
    fine_yuan: int
    bracket: Bracket | None


@cache
def offences() -> Mapping[str, Offence]:
    """Every charge of the generator by name.

    Raises ValueError naming a table that can't be read.
    """
    found: dict[str, Offence] = {}
    for path in sorted((_HERE / "charges").glob("*.toml")):
        for charge, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
            try:
                found[charge] = _read_offence(charge, table)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path.name}, {charge}: {error!r}") from error
    return MappingProxyType(found)


@cache
def circumstances() -> Mapping[str, Circumstance]:
    """The circumstances that any charge may have, in the order in which reasoning lists them."""
    text = (_HERE / "wording" / "circumstances.toml").read_text(encoding="utf-8")
    return _read_circumstances(tomllib.loads(text))


def _read_circumstances(tables: Mapping[str, Any]) -> Mapping[str, Circumstance]:
    if uneven := [name for name, table in tables.items() if table["ratio"] % 10]:
        raise ValueError(f"ratios of {uneven}: use multiples of 10, which tenths can tell")
    return {
        name: Circumstance(
            name,
            table["ratio"],
            table["odds"],
            tuple(table["told"]),
            table.get("group", ""),
            frozenset(table.get("only", ())),
            tuple(table.get("signs", ())),
            tuple(table.get("train_only", ())),
        )
        for name, table in tables.items()
    }


def _read_offence(charge: str, table: Mapping[str, Any]) -> Offence:
    size = 10 ** table.get("decimals", 0)
    brackets = tuple(
        Bracket(round(low * size), months, round(every * size), round(limit * size))
        for low, months, every, limit in table.get("brackets", ())
    )
    grades = tuple(
        Grade(
            g["name"],
            g["months"],
            g["odds"],
            tuple(g["told"]),
            tuple(g.get("acts", ())),
            tuple(g.get("articles", ())),
        )
        for g in table.get("grades", ())
    )
    if bool(brackets) == bool(grades):
        raise ValueError("give either brackets or grades")
    odds = tuple(table.get("bracket_odds", (1,) * len(brackets)))
    if len(odds) != len(brackets):
        raise ValueError(f"{len(odds)} bracket_odds for {len(brackets)} brackets")
    return Offence(
        charge=charge,
        articles=tuple(sorted(table["articles"], key=article_order)),
        share=table["share"],
        unit=table.get("unit", ""),
        decimals=table.get("decimals", 0),
        brackets=brackets,
        bracket_odds=odds,
        grades=grades,
        grain=table.get("round", (1,))[0],
        incidents=tuple(table.get("incidents", (1,))),
        fine=table.get("fine", 0),
        ceiling=table.get("ceiling", 180),
        acts=tuple(table["acts"]),
        after=tuple(table.get("after", ())),
        slots=table.get("slots", {}),
        without=frozenset(table.get("without", ())),
        circumstances=_read_circumstances(table.get("circumstances", {})),
    )


def sentence(offence: Offence, harm: int | Grade, held: tuple[Circumstance, ...]) -> Sentence:
    """Apply the calculus. `harm` is a quantity in the offence's grains, or a grade.

    Raises ValueError for a quantity under the lowest bracket.
    """
    bracket = None
    if isinstance(harm, Grade):
        start, extra = harm.months, 0
    else:
        reached = [bracket for bracket in offence.brackets if harm >= bracket.threshold]
        if not reached:
            raise ValueError(
                f"{harm}{offence.unit} is under the lowest bracket of {offence.charge}"
            )
        bracket = reached[-1]
        start, extra = bracket.months, harm // bracket.every
    ratio = sum_ratios(circumstance.ratio for circumstance in held)
    if start == LIFE:
        return Sentence(LIFE, 0, LIFE, ratio, 0, Term("life"), 50_000, bracket)
    base = start + extra
    months = scale_months(base, ratio)
    if months < 1:
        return Sentence(start, extra, base, ratio, 0, Term("exempt"), 0, bracket)
    months = min(months, offence.ceiling)
    probation = probation_months(months, ratio, "累犯" in {one.name for one in held})
    term = Term("detention" if months < MIN_FIXED_MONTHS else "fixed", months, probation)
    return Sentence(start, extra, base, ratio, months, term, months * offence.fine, bracket)


def probation_months(months: int, ratio: int, recidivist: bool) -> int:
    """Probation: at most 36 months, mitigated by 20% or more, no recidivist (articles 72-74)."""
    if months > MAX_SUSPENDED_MONTHS or ratio > -20 or recidivist:
        return 0
    if months < MIN_FIXED_MONTHS:
        return 2 * months
    return 12 * min(5, -(-months // 12) + 1)
