"""The judge behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from curt.endpoint import ChatEndpoint, EndpointUnavailableError
from curt.endpoint import Question as ChatQuestion
from train.judge.prompts import PROMPTS_VERSION, build_judge_messages, parse_grade, render_grade
from train.judge.protocol import Grade, JudgeQuestion, JudgeUnavailableError, Task
from train.judge.settings import EndpointJudgeSettings


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


def _read_grade(task: Task, reply: str) -> str | None:
    """The text of the grade in a reply; None where there is none."""
    grade = parse_grade(reply, task)
    return None if grade is None else render_grade(grade)
