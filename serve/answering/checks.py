"""Facts to refuse and warnings to give: pure rules over a fact's text and a verdict."""

from __future__ import annotations

import re
from datetime import date
from typing import Literal

from pydantic import BaseModel

from curt.corpus.defendants import has_several_defendants
from curt.corpus.kinds import ORDINARY, Kind, chinese_share, kind_of, other_law
from curt.dialogue import normalise_fact
from curt.law.figures import foreign_money
from curt.law.statutes import is_charge, other_tiers, term_in_range
from curt.law.verdict import CAPITAL_KINDS, Verdict
from serve.answering.confidence import LOW_CONFIDENCE_MESSAGE, UNFAMILIAR_MESSAGE
from serve.errors import UnusableFactError

OnUnusable = Literal["warn", "refuse"]
MIXED_CHINESE_SHARE = 0.6  # of the letters; below it the reader is warned
SHORT_FACT_CHARS = 20

MESSAGES = {
    "multi_defendant": "事实中似有多名被告人，此处只给出一名被告人的结果。",
    "too_short": "事实过短，结果可靠性低。",
    "not_chinese": "事实中非中文内容较多，模型只学过中文裁判事实。",
    "not_criminal": "文中似无犯罪事实。",
    "appeal": "文中似为二审或上诉案件，模型只学过一审公诉案件。",
    "retrial": "文中似为再审案件，模型只学过一审公诉案件。",
    "commutation": "文中似为减刑或假释案件，并非定罪量刑。",
    "private_prosecution": "文中似为自诉案件，模型只学过公诉案件。",
    "civil": "文中似为民事诉讼，并非刑事指控。",
    "incidental_civil": "文中似只有附带民事诉讼请求，未叙述犯罪事实。",
    "administrative": "文中似为行政处罚或行政案件，并非刑事指控。",
    "taiwan": "文中似适用台湾地区法律，模型只学过大陆案件。",
    "child": "行为人似未达刑事责任年龄（一般为十四周岁，极少数重罪为十二周岁）。",
    "press": "文中似为新闻报道，并非法院认定的事实。",
    "question": "文中似为法律咨询，请填写案件事实。",
    "jurisdiction": "文中似为管辖决定，并非定罪量刑。",
    "withdrawn": "文中似有撤回起诉，未必有判决。",
    "compulsory_treatment": "文中似为强制医疗程序，并非定罪量刑。",
    "state_compensation": "文中似为国家赔偿案件，并非刑事指控。",
    "foreign_currency": "文中有以{}计的金额，未按任何汇率折算，也未计入数额。",
    "figure_out_of_range": "{}超出训练案件中数额的范围，结果可靠性低。",
    "markup_neutralised": "事实中的尖括号已替换为全角字符，按普通文字处理。",
    "fact_clipped": "事实超过模型可读长度，较次要的句子已略去。",
    "short_thinking": "推理用量少于模型通常所需，结果的准确率会降低。",
    "term_outside_statute": "刑期不在该罪名任何法定量刑幅度之内，请核对有无减轻情节。",
    "charge_not_in_force": "行为日（{}）的刑法中没有该罪名。",
    "other_tiers": "该罪名在行为日（{}）的法定刑与模型所学的不同，请按从旧兼从轻核对。",
    "life_or_death": "结果涉及无期徒刑或死刑，务必由人复核。",
    "unknown_charge": "罪名不在已知罪名表中。",
    "low_confidence": LOW_CONFIDENCE_MESSAGE,
    "unfamiliar_text": UNFAMILIAR_MESSAGE,
    "fallback": "模型未能给出完整可读的结果，以下为分类器的估计。",
}

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
    foreign = foreign_money(fact)
    told = [warning("foreign_currency", "、".join(foreign))] if foreign else []
    return [warning(code) for code in dict.fromkeys(codes)] + told


def verdict_warnings(
    verdict: Verdict, law: date | None = None, day: date | None = None
) -> list[Caution]:
    """The warnings that a verdict calls for by its model's law, or that of the deed's day."""
    codes = []
    if not all(is_charge(charge) for charge in verdict.charges):
        codes.append("unknown_charge")
    elif day and not all(is_charge(charge, day) for charge in verdict.charges):
        codes.append("charge_not_in_force")
    elif statutory_range(verdict, day or law) is False:
        codes.append("term_outside_statute")
    if day and any(other_tiers(charge, day, law) for charge in verdict.charges):
        codes.append("other_tiers")
    if verdict.term.kind in CAPITAL_KINDS:
        codes.append("life_or_death")
    return [warning(code, f"{day}") for code in codes]


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
