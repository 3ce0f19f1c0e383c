"""The Criminal Law as data: charge → articles → statutory tiers, and CAIL2018's label order.

Facts only (names, numbers, ranges), in `statutes.json`: the 483 charges of today's law (the
Supreme People's Court's list with its supplements, Amendment XII), what each has carried since
1997-10-01, and charges that are gone. The names of CAIL2018 stand where it has one, older and
newer names lead to them; two of its labels (走私, 经济犯) name a family of offences rather than
one, so they have no tiers.

A tier's `months` are those of 有期徒刑. 拘役 and 管制 keep their own bounds (articles 38, 42). An
amendment ends a set of tiers the day before it comes into force. Functions take the day whose law
counts, by default today; that a milder later law goes before (从旧兼从轻, article 12) is for the
caller: ask for both days.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from curt.law.numerals import article_order
from curt.law.verdict import Term, TermKind

# What one offence may bring (articles 38 and 42); sums under article 69 may go higher.
SINGLE_OFFENCE_MONTHS: Mapping[TermKind, tuple[int, int]] = {
    "detention": (1, 6),
    "surveillance": (3, 24),
}
MIN_FIXED_MONTHS = 6  # article 45

_BRACKETS_AND_SPACE = re.compile(r"[\s\[\]【】［］〔〕]")
_LIST_MARKS = re.compile(r"[、,，､·；;]")
_CHOICE = re.compile(r"\{([^}]*)\}")


@dataclass(frozen=True, slots=True)
class Tier:
    """One step of a charge's penalties (量刑幅度).

    `min_months` to `max_months` bound 有期徒刑, both ends included (article 99); both are 0
    where the tier has none. The flags say what else the tier allows; `fine` covers 罚金 and
    没收财产.
    """

    min_months: int = 0
    max_months: int = 0
    detention: bool = False
    surveillance: bool = False
    life: bool = False
    death: bool = False
    fine: bool = False


@dataclass(frozen=True, slots=True)
class Charge:
    """A charge under its CAIL2018 name, without 罪.

    `articles` start with the one that defines it, followed by those that set its penalty or
    send other conduct to it; `tiers` rise in severity. `forms` spell the choices of a selective
    charge: `{走私、贩卖}毒品` stands for any of them, alone or together.

    `tiers` hold since the day `since`; `earlier` has the sets before, each with its own first day,
    the oldest first. A set without tiers is one the table does not know: it bounds nothing.
    `until` is the last day of a charge that the law has given up or merged into another.
    """

    name: str
    articles: tuple[str, ...]
    tiers: tuple[Tier, ...]
    aliases: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    since: date = date(1997, 10, 1)
    earlier: tuple[tuple[date, tuple[Tier, ...]], ...] = ()
    until: date | None = None

    def tiers_on(self, day: date) -> tuple[Tier, ...] | None:
        """The set that held on a day; None before the charge was made.

        A charge that is gone keeps its last one: deeds of its time are still judged by it.
        """
        known = (*self.earlier, (self.since, self.tiers))
        return next((tiers for first, tiers in reversed(known) if first <= day), None)

    def in_force(self, day: date) -> bool:
        """Whether the law of a day has the charge under this name."""
        return self.tiers_on(day) is not None and (self.until is None or day <= self.until)


def _read_charge(row: Mapping[str, Any]) -> Charge:
    return Charge(
        name=row["name"],
        articles=tuple(row["articles"]),
        tiers=_read_tiers(row),
        aliases=tuple(row.get("aliases", ())),
        forms=tuple(row.get("forms", ())),
        since=date.fromisoformat(row["since"]),
        earlier=tuple(
            (date.fromisoformat(old["since"]), _read_tiers(old)) for old in row.get("earlier", ())
        ),
        until=date.fromisoformat(row["until"]) if "until" in row else None,
    )


def _read_tiers(row: Mapping[str, Any]) -> tuple[Tier, ...]:
    return tuple(
        Tier(*tier.get("months", (0, 0)), **{k: v for k, v in tier.items() if k != "months"})
        for tier in row["tiers"]
    )


_DATA = json.loads(Path(__file__).with_name("statutes.json").read_text(encoding="utf-8"))

CHARGES: Mapping[str, Charge] = MappingProxyType(
    {row["name"]: _read_charge(row) for row in _DATA["cail_charges"] + _DATA["later_charges"]}
)
"""Every known charge by name: the 202 of CAIL2018 in official order, then the others."""

CAIL_CHARGES: tuple[str, ...] = tuple(row["name"] for row in _DATA["cail_charges"])
CAIL_ARTICLES: tuple[int, ...] = tuple(_DATA["cail_articles"])

STATUTE_VERSIONS: Mapping[str, date] = MappingProxyType(
    {name: date.fromisoformat(first) for name, first in _DATA["versions"].items()}
)
"""Versions of the law that the table holds, the oldest first, and the first day of each."""
STATUTE_VERSION = tuple(STATUTE_VERSIONS)[-1]
del _DATA


def _key(name: str) -> str:
    """What all spellings of a charge share: the name without list marks, with one form of 账."""
    return _LIST_MARKS.sub("", name).replace("账", "帐")


# Where two charges share a spelling, the one that stands first in the table keeps it.
_NAMES: Mapping[str, str] = {
    _key(spelling): charge.name
    for charge in reversed(tuple(CHARGES.values()))
    for spelling in (*charge.aliases, charge.name)
}


@lru_cache(maxsize=1)
def _forms() -> tuple[tuple[re.Pattern[str], str], ...]:
    def pattern(form: str) -> str:
        out, end = "", 0
        for choice in _CHOICE.finditer(form):
            parts = sorted(choice[1].split("、"), key=len, reverse=True)
            options = "|".join(re.escape(_key(part)) for part in parts)
            out += re.escape(_key(form[end : choice.start()])) + f"(?:{options})+"
            end = choice.end()
        return out + re.escape(_key(form[end:]))

    return tuple(
        (re.compile(pattern(form)), charge.name)
        for charge in CHARGES.values()
        for form in charge.forms
    )


@lru_cache(maxsize=4096)
def canonical_charge(name: str) -> str:
    """The name this project uses for a charge, from any spelling of it.

    Brackets, spaces and a final 罪 go; older and newer names, partial names of selective charges
    (贩卖毒品) and missing 、 resolve. A name that is not known comes back stripped. Raises
    ValueError when nothing is left.
    """
    stripped = _BRACKETS_AND_SPACE.sub("", name).removesuffix("罪")
    if not stripped:
        raise ValueError(f"no charge in {name!r}: give a name such as 盗窃")
    if stripped in CHARGES:
        return stripped
    key = _key(stripped)
    if key in _NAMES:
        return _NAMES[key]
    return next((charge for form, charge in _forms() if form.fullmatch(key)), stripped)


def is_charge(name: str, on: date | None = None) -> bool:
    """Whether a name, in any spelling, is a known charge; with a day, one of that day's law."""
    try:
        known = CHARGES.get(canonical_charge(name))
    except ValueError:
        return False
    return known is not None and (on is None or known.in_force(on))


@cache
def law_day(version: str) -> date | None:
    """The last day of the law that a version names, whose tiers its models were taught.

    None, which stands for today everywhere, for the newest version and one the table lacks.
    """
    ends = (first - timedelta(days=1) for first in list(STATUTE_VERSIONS.values())[1:])
    return dict(zip(STATUTE_VERSIONS, ends, strict=False)).get(version)


def version_on(day: date) -> str | None:
    """The version of the law that holds on a day; None before the table's first."""
    held = [name for name, first in STATUTE_VERSIONS.items() if first <= day]
    return held[-1] if held else None


def charge_articles(charge: str) -> tuple[str, ...]:
    """Article ids of a charge, the defining one first; empty for an unknown charge."""
    known = CHARGES.get(canonical_charge(charge))
    return known.articles if known else ()


def article_carries(article: str, charge: str) -> bool:
    """Whether an article ("264", "133之一") defines a charge, sets its penalty or leads to it."""
    return article in charge_articles(charge)


@lru_cache(maxsize=1024)
def article_charges(article: str) -> tuple[str, ...]:
    """Names of the charges an article carries, those it defines first."""
    carried = [charge for charge in CHARGES.values() if article in charge.articles]
    return tuple(c.name for c in sorted(carried, key=lambda c: c.articles.index(article)))


def locate_article(number: int, charges: tuple[str, ...]) -> str:
    """The article id a bare number stands for beside these charges.

    CAIL2018 cuts 133之一 to 133; with 危险驾驶 and no 交通肇事 it can only be 133之一. Where the
    number itself carries one of the charges, or none of its branches does, it stays as it is.
    """
    plain = str(number)
    articles = {article for charge in charges for article in charge_articles(charge)}
    if plain in articles:
        return plain
    branches = sorted((a for a in articles if a.startswith(f"{plain}之")), key=article_order)
    return branches[0] if branches else plain


def allowing_tiers(charge: str, term: Term, on: date | None = None) -> Iterator[Tier]:
    """Tiers of a charge that allow a term on a day, by default today, the mildest first."""
    for tier in _tiers_on(charge, on) or ():
        if term.kind == "fixed":
            allowed = tier.min_months <= term.months <= tier.max_months
        elif term.kind in SINGLE_OFFENCE_MONTHS:
            low, high = SINGLE_OFFENCE_MONTHS[term.kind]
            allowed = bool(getattr(tier, term.kind)) and low <= term.months <= high
        else:
            kind = "death" if term.kind == "reprieve" else term.kind
            allowed = kind != "exempt" and bool(getattr(tier, kind))
        if allowed:
            yield tier


def tier_of(charge: str, term: Term, on: date | None = None) -> Tier | None:
    """The mildest tier of a charge that allows a term on a day, by default today.

    None when no tier does, for an unknown charge, and for an exemption, which belongs to none.
    """
    return next(allowing_tiers(charge, term, on), None)


def term_in_range(charge: str, term: Term, on: date | None = None) -> bool:
    """Whether some statutory tier of a charge allows a term on a day, by default today.

    Only the tiers are checked: a court may go below a minimum where the law mitigates
    (减轻处罚, article 63) and sums several offences (article 69), so False is a reason to look,
    not proof of error. Exemption is always allowed (article 37). A label that names a family of
    offences has no tiers and allows everything; an unknown charge, or one that was not made by
    that day, allows nothing.
    """
    tiers = _tiers_on(charge, on)
    if tiers is None:
        return False
    return term.kind == "exempt" or not tiers or tier_of(charge, term, on) is not None


def other_tiers(charge: str, day: date, on: date | None = None) -> bool:
    """Whether the tiers of a charge that held on one day are known to be others than on another."""
    first, second = _tiers_on(charge, day), _tiers_on(charge, on)
    return bool(first) and bool(second) and first != second


def _tiers_on(charge: str, on: date | None) -> tuple[Tier, ...] | None:
    known = CHARGES.get(canonical_charge(charge))
    return known.tiers_on(on or date.today()) if known else None
