"""CAIL2018 files (one JSON object a line) as cases, read as a stream.

The labels say less than a judgment does; this is what is done about it:

- `imprisonment` is a number of months without a kind. Imprisonment (有期徒刑) is six months at
  least (Criminal Law, article 45), so fewer months are read as 拘役, and so are up to twelve
  where none of the charges carries imprisonment (危险驾驶). Everything else is 有期徒刑. A 管制
  cannot be told apart and is read the same way.
- 0 months without life or death is read as exempt. Some of these were sentences of a fine alone,
  which keep their `fine_yuan`.
- Articles are bare numbers; `locate_article` gives 133 back its 之一 where the charge says so.
- Probation is not labelled, so it is 0.

Facts are kept as they are. One that repeats a recommended sentence carries the trait
`RECOMMENDATION`, since it hands over part of the answer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curt.corpus.extract import extract_reasoning
from curt.dialogue import normalise_fact
from curt.numerals import article_order, parse_article
from curt.schema import MAX_MONTHS, Case, Term, Verdict
from curt.statutes import CHARGES, MIN_FIXED_MONTHS, canonical_charge, is_charge, locate_article

logger = logging.getLogger(__name__)

SOURCE = "cail2018"
RECOMMENDATION = "recommended sentence in the facts"
REASONING = "terse"  # the verbosity under which extracted evidence is filed

_RECOMMENDATION = re.compile(r"建议[^。；]{0,30}(?:判处|量刑|适用缓刑)|量刑建议")


@dataclass(slots=True)
class ReadReport:
    """How many cases a file gave, and how many lines were skipped for which reason."""

    cases: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


class LineError(ValueError):
    """A line that holds no usable case; the message is the reason and never quotes the fact."""


def read_cail(
    path: Path, *, strict: bool = False, report: ReadReport | None = None
) -> Iterator[Case]:
    """Yield the cases of a CAIL2018 file in order.

    Unusable lines are skipped and counted in `report`; with `strict` the first one raises
    ValueError naming file, line number and reason. Raises FileNotFoundError without the file.
    """
    report = ReadReport() if report is None else report
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                case = read_line(line)
            except LineError as error:
                message = f"{path}, line {number}: {error}"
                if strict:
                    raise ValueError(f"{message}: mend the line or read without strict") from None
                logger.debug("skipped %s", message)
                report.skipped[str(error)] += 1
            else:
                report.cases += 1
                yield case
    logger.info("%s: %d cases, skipped %s", path, report.cases, dict(report.skipped))


def read_line(line: bytes | str) -> Case:
    """One line of a CAIL2018 file as a case. Raises LineError with the reason it is unusable."""
    try:
        row = json.loads(line)
    except ValueError:
        raise LineError("not JSON in UTF-8") from None
    if not isinstance(row, dict) or not isinstance(row.get("meta"), dict):
        raise LineError("not an object with fact and meta")
    fact = row.get("fact")
    if not isinstance(fact, str) or not normalise_fact(fact):
        raise LineError("no fact")
    meta = row["meta"]
    if isinstance(meta.get("criminals"), list) and len(meta["criminals"]) > 1:
        raise LineError("more than one defendant")
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


def _read_charges(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(c, str) for c in value):
        raise LineError("no charge")
    names = [c for c in value if c.strip("[]【】 ")]
    if not names or not all(map(is_charge, names)):
        raise LineError("unknown charge")
    return tuple(dict.fromkeys(map(canonical_charge, names)))


def _read_articles(value: Any, charges: tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise LineError("no article")
    articles = set()
    for item in value:
        try:
            article = parse_article(str(item))
        except ValueError:
            raise LineError("unreadable article") from None
        articles.add(locate_article(int(article), charges) if article.isdigit() else article)
    return tuple(sorted(articles, key=article_order))


def _read_term(value: Any, charges: tuple[str, ...]) -> Term:
    if not isinstance(value, Mapping):
        raise LineError("no term")
    if value.get("death_penalty") is True:
        return Term("death")
    if value.get("life_imprisonment") is True:
        return Term("life")
    months = _read_whole(value.get("imprisonment"), "term")
    if months > MAX_MONTHS["fixed"]:
        raise LineError("term over the legal maximum")
    if months == 0:
        return Term("exempt")
    imprisons = any(
        tier.max_months for charge in charges for tier in CHARGES[charge].tiers
    ) or not any(CHARGES[charge].tiers for charge in charges)
    if months < MIN_FIXED_MONTHS or (not imprisons and months <= MAX_MONTHS["detention"]):
        return Term("detention", months)
    return Term("fixed", months)


def _read_whole(value: Any, name: str) -> int:
    """A whole number of 0 or more; other releases write it as text or as 3.0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise LineError(f"unreadable {name}") from None
    if isinstance(value, bool) or not number.is_integer() or number < 0:
        raise LineError(f"unreadable {name}")
    return int(number)
