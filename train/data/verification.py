"""Decide by named checks whether a completion is fit to train on.

| check | holds when |
|---|---|
| readable | the thinking is closed and the answer follows the grammar |
| charge, article | they are those of the reference (F1 of the sets) |
| term | the penalty is near enough that of the reference |
| statutes | cited articles exist and carry the charges |
| tier | the term lies in a statutory tier of a charge |
| arithmetic | every sum and product of the reasoning is right and uses the values before it |
| conclusion | the reasoning ends in the charge and the penalty of the answer |
| steps | the reasoning has enough of them |
| repetition | the reasoning does not go round in circles |

A check is None where there is nothing to check. The two that ask what the law allows, `statutes`
and `tier`, are None as well where the reference fails them itself: courts sentence below a tier
(Criminal Law, article 63), and 3% of CAIL2018's labels lack the article of a charge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import Field

from curt.config import FrozenModel
from curt.dialogue import Completion, ParseFailure
from curt.law.legality import cited_articles, has_basis, is_in_tier
from curt.law.verdict import Verdict
from curt.scores.metrics import cail_term_score, judge_term_score, set_f1
from curt.scores.reasoning import (
    LEAST_STEPS,
    MOST_REPETITION,
    check_arithmetic,
    check_conclusions,
    count_steps,
    repetition_ratio,
)
from train.judge import Grade, Task

CheckName = Literal[
    "readable", "charge", "article", "term", "statutes", "tier", "arithmetic", "conclusion",
    "steps", "repetition",
]  # fmt: skip

CHECKS: tuple[CheckName, ...] = get_args(CheckName)
REASONING_CHECKS: tuple[CheckName, ...] = ("arithmetic", "conclusion", "steps", "repetition")
REASONS: Mapping[str, str] = {
    "readable": "no readable verdict",
    "charge": "other charges",
    "article": "other articles",
    "term": "a term too far off",
    "statutes": "articles that do not exist or carry the charges",
    "tier": "a term outside the statutory tiers",
    "arithmetic": "wrong arithmetic",
    "conclusion": "reasoning and answer disagree",
    "steps": "too few steps",
    "repetition": "repetitive reasoning",
}
"""Why a completion is rejected: that of the first check it fails, in this order."""
JUDGE_PREFIX = "judge_"
JUDGE_DISAGREES, JUDGE_FAILED = "the judge disagrees", "the judge gave no grade"


class VerificationSettings(FrozenModel):
    """What a completion must hold to be accepted."""

    checks: tuple[CheckName, ...] = CHECKS
    """Checks that a completion must not fail; the others are made and kept all the same."""
    min_charge_f1: float = Field(1.0, ge=0, le=1)
    """Least F1 of the charges against the reference's."""
    min_article_f1: float = Field(1.0, ge=0, le=1)
    """Least F1 of the articles against the reference's."""
    term_scale: Literal["cail", "ratio"] = "cail"
    """CAIL2018's stepped score, or the ratio of months; death and life must be met on both."""
    min_term_score: float = Field(1.0, ge=0, le=1)
    """Least term score: 1 on the cail scale is a log distance of 0.2, 30 months for 36."""
    min_steps: int = Field(LEAST_STEPS, ge=0)
    """Fewest steps of reasoning."""
    max_repetition: float = Field(MOST_REPETITION, ge=0, le=1)
    """Largest share of 8-grams (characters) of the reasoning that came before."""
    judge_tasks: tuple[Task, ...] = ("ruling",)
    """What a judge, where there is one, is asked about."""
    judge_level: Literal["partial", "full"] = "full"
    """Least level of a judge's grade."""
    judge_months: int = Field(0, ge=0)
    """Largest error of a term that a judge may find, in months."""


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of every check, and whether they accept; `reason` is empty when they do."""

    accepted: bool
    checks: Mapping[str, bool | None]
    reason: str = ""


def verify(
    completion: Completion, reference: Verdict, settings: VerificationSettings
) -> Verification:
    """Check a completion against the reference verdict, the law and itself."""
    verdict, thinking = completion.verdict, completion.thinking
    checks: dict[str, bool | None] = dict.fromkeys(CHECKS)
    checks["readable"] = not isinstance(verdict, ParseFailure)
    checks["steps"] = count_steps(thinking) >= settings.min_steps
    checks["repetition"] = repetition_ratio(thinking) <= settings.max_repetition
    checks["arithmetic"] = _all(check_arithmetic(thinking))
    if isinstance(verdict, ParseFailure):
        checks |= dict.fromkeys(("charge", "article", "term"), False)
    else:
        checks["charge"] = _f1(verdict.charges, reference.charges) >= settings.min_charge_f1
        checks["article"] = _f1(verdict.articles, reference.articles) >= settings.min_article_f1
        checks["term"] = score_term(verdict, reference, settings) >= settings.min_term_score
        checks["statutes"] = _check_statutes(thinking, verdict, reference)
        checks["tier"] = is_in_tier(verdict) if is_in_tier(reference) else None
        checks["conclusion"] = _all(check_conclusions(thinking, verdict))
    return conclude(checks, settings.checks)


def conclude(checks: Mapping[str, bool | None], required: Iterable[str] = CHECKS) -> Verification:
    """Accept what is readable and fails none of the required checks; keep all checks."""
    wanted = {"readable", *required}
    failed = next((name for name in CHECKS if name in wanted and checks[name] is False), None)
    return Verification(failed is None, checks, REASONS[failed] if failed else "")


def add_grades(
    verification: Verification,
    grades: Mapping[Task, Grade | None],
    settings: VerificationSettings,
) -> Verification:
    """Add a judge's grades of an accepted completion as checks `judge_charge` and so on.

    A completion that the judge gave no grade for, or is undecided about, is no longer accepted.
    """
    judged = {task: _passes(grade, settings) for task, grade in grades.items()}
    checks = {**verification.checks, **{f"{JUDGE_PREFIX}{t}": held for t, held in judged.items()}}
    if all(judged.values()):
        return Verification(True, checks)
    reason = JUDGE_DISAGREES if False in judged.values() else JUDGE_FAILED
    return Verification(False, checks, reason)


def score_term(verdict: Verdict, reference: Verdict, settings: VerificationSettings) -> float:
    """Term score on the configured scale, in [0, 1]."""
    score = cail_term_score if settings.term_scale == "cail" else judge_term_score
    return score(verdict.term, reference.term)


def _passes(grade: Grade | None, settings: VerificationSettings) -> bool | None:
    if grade is None or grade.level == "undecided":
        return None
    if grade.error_months is not None:
        return grade.error_months <= settings.judge_months
    return grade.level in ("full", settings.judge_level)


def _check_statutes(thinking: str, verdict: Verdict, reference: Verdict) -> bool | None:
    cited = [article is not None for article in cited_articles(thinking)]
    if has_basis(reference):
        cited.append(has_basis(verdict))
    return _all(cited)


def _f1(labels: Iterable[str], truth: Iterable[str]) -> float:
    return set_f1(set(labels), set(truth))


def _all(outcomes: Iterable[bool]) -> bool | None:
    """Whether all hold; None without any."""
    known = list(outcomes)
    return all(known) if known else None
