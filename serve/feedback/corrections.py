"""Corrections of an answer: given in the shape of a reply, checked, and completed to a verdict."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curt.law.numerals import article_order, parse_article
from curt.law.statutes import CAIL_ARTICLES, CHARGES, allowing_tiers, canonical_charge
from curt.law.verdict import CAPITAL_KINDS, TERM_NAMES, Term, TermKind, Verdict
from serve.api.schemas import Defendant
from serve.errors import RequestError

MAX_PROBATION_TERM_MONTHS = 36  # article 72


class BadCorrectionError(RequestError):
    """A correction that is incomplete, or that no court could have pronounced."""

    status = 422


class GivenCharge(BaseModel):
    """A charge by its name; the other fields of a reply are ignored."""

    model_config = ConfigDict(frozen=True, strict=True)
    name: str = Field(min_length=1, max_length=100)


class GivenArticle(BaseModel):
    """An article by its id."""

    model_config = ConfigDict(frozen=True, strict=True)
    id: str = Field(min_length=1, max_length=30)


class GivenTerm(BaseModel):
    """A principal penalty; the texts of a reply are ignored."""

    model_config = ConfigDict(frozen=True, strict=True)
    kind: TermKind
    months: int = 0
    probation_months: int = 0


class Correction(BaseModel):
    """A defendant of a reply as it should have been; parts left out or null stay as answered."""

    model_config = ConfigDict(frozen=True, strict=True)
    charges: list[GivenCharge] | None = Field(None, min_length=1, max_length=10)
    articles: list[GivenArticle] | None = Field(None, min_length=1, max_length=20)
    term: GivenTerm | None = None
    fine_yuan: int | None = Field(None, ge=0, le=10**12)

    @model_validator(mode="before")
    @classmethod
    def _only_parts_of_a_reply(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.keys() <= Defendant.model_fields.keys():
            raise ValueError(f"an unknown part: use only {', '.join(cls.model_fields)}")
        return data


def complete(correction: Correction, answered: Verdict | None) -> Verdict:
    """The whole verdict that a correction means, parts it lacks taken from what was answered.

    Raises BadCorrectionError naming the part that is missing, unknown or impossible; a value is
    repeated only where it is a number or a kind of our own.
    """
    for part in ("charges", "articles", "term"):
        if answered is None and getattr(correction, part) is None:
            raise BadCorrectionError(
                "incomplete_correction",
                f"nothing was answered to fill in for {part}: give all parts",
            )
    parts: dict[str, Any] = {}
    if correction.charges:
        parts["charges"] = _charges(correction.charges)
    if correction.articles:
        parts["articles"] = _articles(correction.articles)
    if correction.term:
        parts["term"] = _term(correction.term)
    if correction.fine_yuan is not None:
        parts["fine_yuan"] = correction.fine_yuan
    verdict = replace(answered, **parts) if answered else Verdict(**parts)
    _refuse_impossible(verdict)
    return verdict


def _charges(given: list[GivenCharge]) -> tuple[str, ...]:
    names = []
    for position, charge in enumerate(given):
        try:
            name = canonical_charge(charge.name)
        except ValueError:
            name = ""
        if name not in CHARGES:
            raise BadCorrectionError(
                "unknown_charge",
                f"correction.charges.{position} is no known charge: use a name such as 盗窃",
            )
        names.append(name)
    return tuple(dict.fromkeys(names))


def _articles(given: list[GivenArticle]) -> tuple[str, ...]:
    articles = set()
    for position, article in enumerate(given):
        try:
            identifier = parse_article(article.id)
        except ValueError:
            identifier = ""
        if identifier not in known_articles():
            raise BadCorrectionError(
                "unknown_article",
                f"correction.articles.{position} carries no charge: use an id such as 264 or "
                "133之一, and leave out the general part (articles 1 to 101)",
            )
        articles.add(identifier)
    return tuple(sorted(articles, key=article_order))


@lru_cache(maxsize=1)
def known_articles() -> frozenset[str]:
    """Ids of every article that carries a charge."""
    named = {article for charge in CHARGES.values() for article in charge.articles}
    return frozenset(named | {str(number) for number in CAIL_ARTICLES})


def _term(given: GivenTerm) -> Term:
    try:
        return Term(given.kind, given.months, given.probation_months)
    except ValueError as error:
        raise BadCorrectionError("impossible_term", f"correction.term: {error}") from None


def _refuse_impossible(verdict: Verdict) -> None:
    """Refuse what the statute rules out whatever the circumstances.

    Counted terms outside a charge's tiers pass: courts mitigate (article 63) and add up what was
    imposed before (articles 69 to 71).
    """
    term = verdict.term
    if term.probation_months and (
        term.kind not in ("fixed", "detention")
        or (term.kind == "fixed" and term.months > MAX_PROBATION_TERM_MONTHS)
    ):
        raise BadCorrectionError(
            "impossible_term",
            f"correction.term: probation goes with 拘役 or with 有期徒刑 of up to "
            f"{MAX_PROBATION_TERM_MONTHS} months (article 72)",
        )
    if term.kind in CAPITAL_KINDS and not any(
        not CHARGES[charge].tiers or any(allowing_tiers(charge, term))
        for charge in verdict.charges
        if charge in CHARGES
    ):
        raise BadCorrectionError(
            "impossible_term",
            f"correction.term: no tier of the charge allows {TERM_NAMES[term.kind]}",
        )
