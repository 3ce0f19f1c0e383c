"""The principal penalty against the reference, on three scales."""

from __future__ import annotations

from curt.dialogue import Completion, ParseFailure
from curt.law.verdict import Term, Verdict
from curt.scores.metrics import cail_term_score, judge_term_score

LIFE_MONTHS, REPRIEVE_MONTHS, DEATH_MONTHS = 300, 330, 360
"""Where a difference in months is needed: life above every fixed term, death above life."""
ERROR_SCALE_MONTHS = 240
UNREADABLE = -2.0


def term_reward(completion: Completion, reference: Verdict) -> float:
    """CAIL2018's log-distance score (1, .8, .6, .4, .2 or 0), 0 when unreadable."""
    if isinstance(completion.verdict, ParseFailure):
        return 0.0
    return cail_term_score(completion.verdict.term, reference.term)


def term_ratio_reward(completion: Completion, reference: Verdict) -> float:
    """JuDGE's ratio (arXiv 2503.14258), in [0, 1]: 1 - |p - t| / max(p, t), 0 when unreadable."""
    if isinstance(completion.verdict, ParseFailure):
        return 0.0
    return judge_term_score(completion.verdict.term, reference.term)


def term_linear_reward(completion: Completion, reference: Verdict) -> float:
    """-|p - t| / 240 in months, in [-1.5, 0]; -2 when unreadable.

    The scale of pure RL on CAIL2018's prison-term task. 36 months for 60 give -0.1.
    """
    if isinstance(completion.verdict, ParseFailure):
        return UNREADABLE
    return -months_apart(completion.verdict.term, reference.term) / ERROR_SCALE_MONTHS


def months_apart(term: Term, other: Term) -> int:
    """Difference of two principal penalties in months; an exemption is 0 months."""
    return abs(_months(term) - _months(other))


def _months(term: Term) -> int:
    graver = {"life": LIFE_MONTHS, "reprieve": REPRIEVE_MONTHS, "death": DEATH_MONTHS}
    return graver.get(term.kind, term.months)
