"""The judge that needs no model: it compares what the server's own parser reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from curt.dialogue import ParseFailure
from curt.law.verdict import Verdict
from curt.scores.metrics import cail_term_score
from train.judge.protocol import Grade, JudgeQuestion, Level
from train.rewards import compare_labels, months_apart

CLOSE_TERM = 0.6
"""CAIL2018 term score from which a ruling with the right charges is partly right."""


class RuleJudge:
    """Grades by rule; it never fails.

    - charge, article: full when the sets are equal, partial when they share something, else wrong.
    - term: the difference in months; life counts 300, death 360, an exemption 0.
    - ruling: full when charges, articles, penalty, probation and fine are all equal; partial when
      the charges are and the term is near (CAIL2018 score of at least 0.6); else wrong.

    What can't be read is wrong.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def grade(self, questions: Sequence[JudgeQuestion]) -> list[Grade | None]:
        """One grade a question."""
        self.counts["asked"] += len(questions)
        return [_grade(question) for question in questions]


def _grade(question: JudgeQuestion) -> Grade:
    guess, reference = question.completion.verdict, question.reference
    if isinstance(guess, ParseFailure):
        return Grade("wrong")
    match question.task:
        case "charge":
            return Grade(compare_labels(set(guess.charges), set(reference.charges)))
        case "article":
            return Grade(compare_labels(set(guess.articles), set(reference.articles)))
        case "term":
            return Grade(error_months=months_apart(guess.term, reference.term))
        case "ruling":
            return Grade(_compare_rulings(guess, reference))


def _compare_rulings(guess: Verdict, reference: Verdict) -> Level:
    same_charges = set(guess.charges) == set(reference.charges)
    same_articles = set(guess.articles) == set(reference.articles)
    same_penalty = (guess.term, guess.fine_yuan) == (reference.term, reference.fine_yuan)
    if same_charges and same_articles and same_penalty:
        return "full"
    near = cail_term_score(guess.term, reference.term) >= CLOSE_TERM
    return "partial" if same_charges and near else "wrong"
