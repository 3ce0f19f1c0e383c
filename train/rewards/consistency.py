"""Whether reasoning agrees with itself and with the answer: the share of checks it passes."""

from __future__ import annotations

from curt.dialogue import Completion, ParseFailure
from curt.law.verdict import Verdict
from curt.scores.reasoning import check_reasoning


def consistency_reward(completion: Completion, reference: Verdict) -> float:
    """Share of the checks a completion passes, in [0, 1]; 1 when there is nothing to check.

    0 when the answer can't be read. Empty reasoning contradicts nothing and scores 1: weigh this
    beside rewards for being right.

    >>> from curt.dialogue import parse_completion
    >>> answer = "</think>罪名：盗窃\\n法条：264\\n刑期：有期徒刑9个月"
    >>> consistency_reward(parse_completion("5+17=22；22×40%=9" + answer), None)
    1.0
    >>> consistency_reward(parse_completion("5+17=23；22×40%=9" + answer), None)
    0.5
    """
    verdict = completion.verdict
    if isinstance(verdict, ParseFailure):
        return 0.0
    checks = list(check_reasoning(completion.thinking, verdict))
    return sum(checks) / len(checks) if checks else 1.0
