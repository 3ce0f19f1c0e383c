"""Charges and articles against the reference, and whether everything is right."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Literal

from curt.dialogue import Completion, ParseFailure
from curt.law.verdict import Verdict
from curt.scores.metrics import cail_term_score, is_exact, set_f1

FULL, PARTIAL, WRONG, UNDECIDED = 2.0, 1.0, -2.0, 0.0
LEVELS = {"full": FULL, "partial": PARTIAL, "undecided": UNDECIDED, "wrong": WRONG}


def charge_reward(completion: Completion, reference: Verdict) -> float:
    """F1 between the sets of charges, in [0, 1]."""
    if isinstance(completion.verdict, ParseFailure):
        return 0.0
    return set_f1(set(completion.verdict.charges), set(reference.charges))


def article_reward(completion: Completion, reference: Verdict) -> float:
    """F1 between the sets of articles, in [0, 1]."""
    if isinstance(completion.verdict, ParseFailure):
        return 0.0
    return set_f1(set(completion.verdict.articles), set(reference.articles))


def charge_levels_reward(completion: Completion, reference: Verdict) -> float:
    """Charges in three levels: 2 all and no other, 1 some of them, -2 none or unreadable.

    The scale of pure RL with a judge on CAIL2018's tasks, decided by rule.

    >>> from curt.dialogue import parse_completion
    >>> from curt.law.verdict import Term
    >>> reference = Verdict(("盗窃", "诈骗"), ("264", "266"), Term("fixed", 8))
    >>> answer = parse_completion("</think>罪名：盗窃\\n法条：264\\n刑期：有期徒刑8个月")
    >>> charge_levels_reward(answer, reference)
    1.0
    """
    if isinstance(completion.verdict, ParseFailure):
        return WRONG
    return LEVELS[compare_labels(set(completion.verdict.charges), set(reference.charges))]


def article_levels_reward(completion: Completion, reference: Verdict) -> float:
    """Articles on the scale of `charge_levels_reward`."""
    if isinstance(completion.verdict, ParseFailure):
        return WRONG
    return LEVELS[compare_labels(set(completion.verdict.articles), set(reference.articles))]


def exact_reward(completion: Completion, reference: Verdict) -> float:
    """1 when charges, articles and principal penalty are all those of the reference."""
    return float(is_exact(completion.verdict, reference))


def graded_reward(completion: Completion, reference: Verdict) -> float:
    """CAIL2018's score of the term where charges and articles are right, else 0.

    Courts differ by as much as its first step allows. Where terms can be computed it ties what is
    nearly right with what is.
    """
    verdict = completion.verdict
    if isinstance(verdict, ParseFailure):
        return 0.0
    named = is_exact(replace(verdict, term=reference.term), reference)
    return cail_term_score(verdict.term, reference.term) if named else 0.0


def compare_labels(
    predicted: AbstractSet[str], truth: AbstractSet[str]
) -> Literal["full", "partial", "wrong"]:
    """Full when the sets are equal, partial when they share something, else wrong."""
    if predicted == truth:
        return "full"
    return "partial" if predicted & truth else "wrong"
