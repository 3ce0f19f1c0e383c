"""CAIL2018 records as cases.

The labels say less than a judgment does; this is what is done about it:

- `imprisonment` is a number of months without a kind. Imprisonment (有期徒刑) is six months at
  least (Criminal Law, article 45), so fewer months are read as 拘役, and so are up to twelve
  where none of the charges carries imprisonment (危险驾驶). Everything else is 有期徒刑. A 管制
  cannot be told apart and is read the same way.
- 0 months without life or death is read as exempt. Some of these were sentences of a fine alone,
  which keep their `fine_yuan`.
- Articles are bare numbers; `locate_article` gives 133 back its 之一 where the charge says so.
- Probation is not labelled, so it is 0.

Facts are kept as they are, without HTML and without a blank after every character. One that repeats
a recommended sentence carries the trait `RECOMMENDATION`, since it hands over part of the answer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from curt.corpus.case import Case
from curt.corpus.read.documents import plain_text
from curt.corpus.read.extract import extract_reasoning
from curt.corpus.read.records import RecordError
from curt.dialogue import normalise_fact
from curt.law.numerals import article_order, parse_article
from curt.law.statutes import CHARGES, MIN_FIXED_MONTHS, canonical_charge, is_charge, locate_article
from curt.law.verdict import MAX_MONTHS, Term, Verdict

SOURCE = "cail2018"
RECOMMENDATION = "recommended sentence in the facts"
REASONING = "terse"  # the verbosity under which extracted evidence is filed
MAX_ONE_CHARGE_MONTHS = 240
"""More is reached only where sums of 35 years are joined (article 69)."""

_RECOMMENDATION = re.compile(r"建议[^。；]{0,30}(?:判处|量刑|适用缓刑)|量刑建议")
_MASKED = re.compile(r"[×＊*某]|[Xx]{2}")
_FLAGS = {
    **dict.fromkeys(("true", "1", "1.0"), True),
    **dict.fromkeys(("false", "0", "0.0", "none", ""), False),
}
_TERM_KEYS = ("death_penalty", "life_imprisonment", "imprisonment")


def read_row(row: Any) -> Case:
    """A record as a case: the release's own nesting, or the flat columns of its Hugging Face copy.

    Raises RecordError with the reason it is unusable.
    """
    if isinstance(row, dict) and "meta" not in row and "accusation" in row:
        row = {"fact": row.get("fact"), "meta": _nest(row)}
    if not isinstance(row, dict) or not isinstance(row.get("meta"), dict):
        raise RecordError("not an object with fact and meta")
    fact = row.get("fact")
    if not isinstance(fact, str) or not normalise_fact(fact := plain_text(fact)):
        raise RecordError("no fact")
    meta = row["meta"]
    if isinstance(meta.get("criminals"), list) and len(meta["criminals"]) > 1:
        raise RecordError("several defendants")
    charges = _read_charges(meta.get("accusation"))
    verdict = Verdict(
        charges=charges,
        articles=_read_articles(meta.get("relevant_articles"), charges),
        term=_read_term(meta.get("term_of_imprisonment"), charges),
        fine_yuan=_read_whole(meta.get("punish_of_money", 0), "fine"),
    )
    evidence = extract_reasoning(fact)
    digest = hashlib.sha256(normalise_fact(fact).encode()).hexdigest()
    return Case(
        id=f"cail-{digest[:16]}",
        fact=fact,
        verdict=verdict,
        source=SOURCE,
        reasonings={REASONING: evidence} if evidence else {},
        traits=(RECOMMENDATION,) if _RECOMMENDATION.search(fact) else (),
    )


def _nest(row: Mapping[str, Any]) -> dict[str, Any]:
    meta = {key: value for key, value in row.items() if key not in ("fact", *_TERM_KEYS)}
    if "imprisonment" in row:
        meta["term_of_imprisonment"] = {key: row.get(key) for key in _TERM_KEYS}
    return meta


def _read_charges(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(c, str) for c in value):
        raise RecordError("no charge")
    names = [c for c in value if c.strip("[]【】 ")]
    if any(map(_MASKED.search, names)):
        raise RecordError("masked charge")
    if not names or not all(map(is_charge, names)):
        raise RecordError("unknown charge")
    return tuple(dict.fromkeys(map(canonical_charge, names)))


def _read_articles(value: Any, charges: tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise RecordError("no article")
    articles = set()
    for item in value:
        try:
            article = parse_article(str(item))
        except ValueError:
            raise RecordError("unreadable article") from None
        articles.add(locate_article(int(article), charges) if article.isdigit() else article)
    return tuple(sorted(articles, key=article_order))


def _read_term(value: Any, charges: tuple[str, ...]) -> Term:
    if not isinstance(value, Mapping):
        raise RecordError("no term")
    if _read_flag(value, "death_penalty"):
        return Term("death")
    if _read_flag(value, "life_imprisonment"):
        return Term("life")
    months = _read_whole(value.get("imprisonment"), "term")
    if months > (MAX_ONE_CHARGE_MONTHS if len(charges) == 1 else MAX_MONTHS["fixed"]):
        raise RecordError("term over the legal maximum")
    if months == 0:
        return Term("exempt")
    imprisons = any(
        tier.max_months for charge in charges for tier in CHARGES[charge].tiers
    ) or not any(CHARGES[charge].tiers for charge in charges)
    if months < MIN_FIXED_MONTHS or (not imprisons and months <= MAX_MONTHS["detention"]):
        return Term("detention", months)
    return Term("fixed", months)


def _read_flag(term: Mapping[str, Any], name: str) -> bool:
    """True, 1 and "true" in any case hold, as do their opposites; nothing at all is False."""
    value = term.get(name)
    known = _FLAGS.get(str(value).strip().lower())
    if known is None:
        raise RecordError(f"unreadable flag: {name} is {str(value)[:20]!r}")
    return known


def _read_whole(value: Any, name: str) -> int:
    """A whole number of 0 or more; other releases write it as text or as 3.0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise RecordError(f"unreadable {name}") from None
    if isinstance(value, bool) or not number.is_integer() or number < 0:
        raise RecordError(f"unreadable {name}")
    return int(number)
