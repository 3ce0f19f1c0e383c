"""Whether a verdict is possible in law, regardless of the facts and without a reference.

A verdict is judged by the law of its day: `on` is the day of the offence or, where that is unknown,
of the judgment. Without it the law is today's, and charges that are gone still count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from statistics import fmean

from curt.law.numerals import LAST_ARTICLE, NUMBER, article_number, parse_article
from curt.law.statutes import article_carries, article_charges, is_charge, term_in_range
from curt.law.verdict import Verdict

# 第二百六十四条, 第133条之一
_CITED = re.compile(rf"第{NUMBER}条(?:之{NUMBER})?")
_LAW = re.compile(r"《([^》]{1,40})》")
_CRIMINAL_LAW = re.compile(r"(?:中华人民共和国)?刑法")


def share_carried(verdict: Verdict, on: date | None = None) -> float:
    """Share of charges that exist and are carried by a cited article."""
    return fmean(
        is_charge(charge, on) and any(article_carries(a, charge) for a in verdict.articles)
        for charge in verdict.charges
    )


def share_defining(verdict: Verdict) -> float:
    """Share of cited articles that carry some charge; 0 where none is cited."""
    return fmean(bool(article_charges(a)) for a in verdict.articles) if verdict.articles else 0.0


def is_in_tier(verdict: Verdict, on: date | None = None) -> bool:
    """Whether the term lies in a statutory tier of a charge.

    Where several offences are sentenced together (article 69) the sum belongs to no tier and
    passes. A court may go below a tier where the law mitigates (article 63).
    """
    known = [charge for charge in verdict.charges if is_charge(charge, on)]
    return len(known) > 1 or any(term_in_range(charge, verdict.term, on) for charge in known)


def has_basis(verdict: Verdict, on: date | None = None) -> bool:
    """Whether its articles exist and carry its charges, all of them, and no other charge.

    An article that carries no charge (one of the general part, a definition) stands beside any.
    """
    return share_carried(verdict, on) == 1 and all(
        article_exists(a)
        and (not article_charges(a) or any(article_carries(a, c) for c in verdict.charges))
        for a in verdict.articles
    )


def article_exists(article: str) -> bool:
    """Whether the Criminal Law has an article: "264", "133之一"; "264之五" is none.

    All numbers from 1 to 452 do. A branch (之一) does where it carries a charge; of the general
    part, whose articles carry none, the law has one branch, 17之一.
    """
    number = article_number(article)
    if "之" in article:
        return bool(article_charges(article)) or article == "17之一"
    return 1 <= number <= LAST_ARTICLE


def cited_articles(text: str) -> Iterator[str | None]:
    """Article ids of the Criminal Law that a text cites, None for a number it does not have.

    Articles of other laws, recognised by the title in 《》 before them, are skipped.
    """
    for match in _CITED.finditer(text):
        titles = _LAW.findall(text[: match.start()].rpartition("。")[2])
        if titles and not _CRIMINAL_LAW.fullmatch(titles[-1]):
            continue
        try:
            article = parse_article(match[0].replace("条", "", 1))
        except ValueError:
            yield None
        else:
            yield article if article_exists(article) else None
