"""Facts to refuse and warnings to give: pure rules over a fact's text and a verdict."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from curt.corpus.age import read_age
from curt.corpus.defendants import has_several_defendants
from curt.corpus.kinds import ORDINARY, Kind, chinese_share, kind_of, other_law
from curt.dialogue import normalise_fact
from curt.law.figures import foreign_money, read_figures
from curt.law.legality import share_carried
from curt.law.statutes import is_charge, other_tiers, term_in_range
from curt.law.verdict import CAPITAL_KINDS, Verdict
from serve.errors import UnusableFactError

OnUnusable = Literal["warn", "refuse"]
MIXED_CHINESE_SHARE = 0.6  # of the letters; below it the reader is warned
SHORT_FACT_CHARS = 20

MESSAGES: Mapping[str, str] = tomllib.loads(
    Path(__file__).with_name("warnings.toml").read_text(encoding="utf-8")
)

_OF_AGE = 16  # years from which one answers for any crime (article 17)
_WEAKER_DRUG = re.compile(
    "大麻|氯胺酮|[Kk]粉|摇头丸|鸦片|罂粟壳|咖啡因|安钠咖|美沙酮|杜冷丁|哌替啶|曲马多|三唑仑|可待因"
)  # Supreme People's Court, 法释〔2016〕8号, article 1
_STRONG_DRUG = re.compile("海洛因|甲基苯丙胺|冰毒|麻[古果]|可卡因")
_NO_HARM = re.compile("(?:[不未]构成|未达到?|不属于?|不到)轻伤")
_PUNISHED_HARM = re.compile("轻伤|重伤|死|亡|去世|残")
# Half a character, which JSON can express and no tokenizer can read.
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class Caution(BaseModel):
    """Something a reader should know before relying on the verdict."""

    code: str
    message: str


def refuse_unusable(fact: str, max_chars: int, on_unusable: OnUnusable = "warn") -> None:
    """Raise UnusableFactError where no verdict can be given.

    That is on a text that is empty, too long, torn, not Chinese or of Taiwan's law, and where
    `on_unusable` says so on whatever is no ordinary prosecution, with its kind as the reason.
    """
    if len(fact) > max_chars:
        raise UnusableFactError(
            "fact_too_long", f"the fact has {len(fact)} characters: send {max_chars} or fewer"
        )
    if _SURROGATE.search(fact):
        raise UnusableFactError(
            "not_unicode", "the fact holds half of a surrogate pair: send whole characters"
        )
    if not normalise_fact(fact):
        raise UnusableFactError("empty_fact", "the fact is empty: send the facts of one case")
    kind = kind_of(fact) if on_unusable == "refuse" else other_law(fact)
    if kind == "not_chinese":
        raise UnusableFactError(
            kind, "the fact holds hardly any Chinese: send the facts in Chinese"
        )
    if kind == "taiwan":
        raise UnusableFactError(
            kind,
            "the fact seems to be of Taiwan's law, of which no verdict can be given: send the "
            "facts of a case of mainland China in simplified characters",
        )
    if kind is not None and kind != ORDINARY:
        raise UnusableFactError(
            kind,
            f"the text seems to be of the kind {kind} and no prosecution at first instance: send "
            'the facts of one, or on_unusable "warn"',
        )


def fact_warnings(fact: str, kind: Kind) -> list[Caution]:
    """The warnings that the text of a fact calls for; `kind` is what it seems to be."""
    codes = []
    if has_several_defendants(fact):
        codes.append("multi_defendant")
    if len(normalise_fact(fact)) < SHORT_FACT_CHARS:
        codes.append("too_short")
    if chinese_share(fact) < MIXED_CHINESE_SHARE:
        codes.append("not_chinese")
    if kind != ORDINARY:
        codes.append(kind)
    if "<" in fact or ">" in fact:
        codes.append("markup_neutralised")
    if kind == ORDINARY and (read_age(fact) or _OF_AGE) < _OF_AGE:
        codes.append("under_16")
    foreign = foreign_money(fact)
    told = [warning("foreign_currency", "、".join(foreign))] if foreign else []
    return [warning(code) for code in dict.fromkeys(codes)] + told


def _other_drugs(fact: str) -> list[str]:
    """Drugs that a fact weighs whose amounts count less than heroin's and methamphetamine's."""
    names = list(dict.fromkeys(_WEAKER_DRUG.findall(fact)))
    weighed = names and not _STRONG_DRUG.search(fact)
    return names if weighed and any(f.unit in ("克", "公斤") for f in read_figures(fact)) else []


def verdict_warnings(
    verdict: Verdict, law: date | None = None, day: date | None = None, fact: str = ""
) -> list[Caution]:
    """The warnings that a verdict calls for by its model's law, or that of the deed's day."""
    codes = []
    if verdict.charges == ("故意伤害",) and "轻微伤" in fact:
        codes += [] if _PUNISHED_HARM.search(_NO_HARM.sub("", fact)) else ["slight_injury"]
    if not all(is_charge(charge) for charge in verdict.charges):
        codes.append("unknown_charge")
    elif day and not all(is_charge(charge, day) for charge in verdict.charges):
        codes.append("charge_not_in_force")
    elif statutory_range(verdict, day or law) is False:
        codes.append("term_outside_statute")
    if "unknown_charge" not in codes and share_carried(verdict) < 1:
        codes.append("charge_without_article")
    if day and any(other_tiers(charge, day, law) for charge in verdict.charges):
        codes.append("other_tiers")
    if verdict.term.kind in CAPITAL_KINDS:
        codes.append("life_or_death")
    drugs = _other_drugs(fact) if any("毒品" in charge for charge in verdict.charges) else []
    told = [warning("other_drug", "、".join(drugs))] if drugs else []
    return [warning(code, f"{day}") for code in codes] + told


def statutory_range(verdict: Verdict, on: date | None = None) -> bool | None:
    """Whether the charge's statute, as of a day, allows the term.

    None for several charges: their terms are combined (article 69), and no single charge's tiers
    apply to the sum.
    """
    if len(verdict.charges) > 1:
        return None
    return term_in_range(verdict.charges[0], verdict.term, on)


def warning(code: str, named: str = "") -> Caution:
    """The warning of a code of `MESSAGES`; `named` is what it is about, where that is told."""
    return Caution(code=code, message=MESSAGES[code].format(named))
