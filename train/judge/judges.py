"""Both judges and their settings: by rule, and by a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from curt.config import FrozenModel
from curt.dialogue import ParseFailure
from curt.endpoint import ChatEndpoint, EndpointSettings, EndpointUnavailableError
from curt.endpoint import Question as ChatQuestion
from curt.law.verdict import Verdict
from curt.scores.metrics import cail_term_score
from train.judge.prompts import PROMPTS_VERSION, build_judge_messages, parse_grade, render_grade
from train.judge.protocol import Grade, Judge, JudgeQuestion, JudgeUnavailableError, Level, Task
from train.rewards import compare_labels, months_apart

CLOSE_TERM = 0.6
"""CAIL2018 term score from which a ruling with the right charges is partly right."""


class RuleJudgeSettings(FrozenModel):
    """Grades by comparing the parsed verdicts."""

    type: Literal["rule"] = "rule"


class EndpointJudgeSettings(EndpointSettings):
    """Grades by asking a language model behind an OpenAI-compatible endpoint."""

    type: Literal["endpoint"] = "endpoint"
    api_key_env: str = "CURT_JUDGE_API_KEY"
    timeout_s: float = Field(30.0, gt=0)
    max_tokens: int = Field(64, ge=8)


JudgeSettings = Annotated[RuleJudgeSettings | EndpointJudgeSettings, Field(discriminator="type")]


def make_judge(settings: RuleJudgeSettings | EndpointJudgeSettings) -> Judge:
    """The judge that the settings describe. Nothing is asked yet."""
    if isinstance(settings, RuleJudgeSettings):
        return RuleJudge()
    return EndpointJudge(settings)


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


class EndpointJudge:
    """Asks a model for grades, many at once; grades are all that is kept of its replies.

    Raises ValueError when the key can't be sent.
    """

    def __init__(self, settings: EndpointJudgeSettings) -> None:
        self._endpoint = ChatEndpoint(settings, PROMPTS_VERSION)

    @property
    def counts(self) -> Counter[str]:
        """How many questions were asked, answered from the cache, or failed, by reason."""
        return self._endpoint.counts

    def grade(self, questions: Sequence[JudgeQuestion]) -> list[Grade | None]:
        """One grade a question. Raises JudgeUnavailableError when too many of the newest fail."""
        asked = [
            ChatQuestion(build_judge_messages(question), partial(_read_grade, question.task))
            for question in questions
        ]
        try:
            replies = self._endpoint.ask(asked)
        except EndpointUnavailableError as error:
            raise JudgeUnavailableError(f"the judge {error}") from error
        return [
            None if reply is None else parse_grade(reply, question.task)
            for reply, question in zip(replies, questions, strict=True)
        ]


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


def _read_grade(task: Task, reply: str) -> str | None:
    """The text of the grade in a reply; None where there is none."""
    grade = parse_grade(reply, task)
    return None if grade is None else render_grade(grade)
