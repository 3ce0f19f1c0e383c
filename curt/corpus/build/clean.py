"""Which read cases are fit to train on: named rules, each with its count in the corpus summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from curt.corpus.case import Case
from curt.corpus.kinds import ORDINARY, chinese_share, kind_of
from curt.corpus.read.judgments import APPEAL
from curt.law.numerals import article_number
from curt.scores.reasoning import LEAST_STEPS, MOST_REPETITION, count_steps, repetition_ratio

LEAST_CHARACTERS = 30
LEAST_HAN_SHARE = 0.5


def is_too_short(case: Case) -> bool:
    """Fewer than 30 characters of facts: nothing to judge by."""
    return len(case.fact.strip()) < LEAST_CHARACTERS


def is_another_kind(case: Case) -> bool:
    """No facts of a prosecution at first instance, as the server sees it (`curt.corpus.kinds`)."""
    return APPEAL in case.traits or kind_of(case.fact) != ORDINARY


def is_another_language(case: Case) -> bool:
    """Less than half of the letters are Chinese."""
    return chinese_share(case.fact) < LEAST_HAN_SHARE


def reasons_in_few_steps(case: Case) -> bool:
    """Some reasoning has under three steps; a case without reasoning passes."""
    return any(count_steps(text) < LEAST_STEPS for text in case.reasonings.values())


def repeats_itself(case: Case) -> bool:
    """Some reasoning repeats more than 70% of its 8-grams."""
    return any(repetition_ratio(text) > MOST_REPETITION for text in case.reasonings.values())


def has_no_term(case: Case) -> bool:
    """No principal penalty: exempt, or a fine alone (CAIL2018 does not tell them apart)."""
    return case.verdict.term.kind == "exempt"


RULES: Mapping[str, Callable[[Case], bool]] = {
    "too short": is_too_short,
    "language": is_another_language,
    "kind": is_another_kind,
    "few steps": reasons_in_few_steps,
    "repetition": repeats_itself,
    "no term": has_no_term,
}
"""Rules by name; a case for which one holds is dropped."""

# First and last article of the special part's chapters.
_CHAPTERS = (
    (102, 113, "national security"),
    (114, 139, "public security"),
    (140, 231, "economic order"),
    (232, 262, "person and rights"),
    (263, 276, "property"),
    (277, 367, "social order"),
    (368, 381, "national defence"),
    (382, 396, "corruption and bribery"),
    (397, 419, "dereliction of duty"),
    (420, 451, "military duty"),
)


def domains_of(case: Case) -> tuple[str, ...]:
    """Chapters of the Criminal Law's special part that a case's articles stand in, in order."""
    numbers = {article_number(article) for article in case.verdict.articles}
    return tuple(name for low, high, name in _CHAPTERS if any(low <= n <= high for n in numbers))
