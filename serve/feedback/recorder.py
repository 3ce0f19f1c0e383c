"""Each answer that goes out is recorded, where feedback on it is taken."""

from __future__ import annotations

import time
from dataclasses import dataclass

from fastapi import Request

from serve.api.schemas import PredictReply, PredictRequest
from serve.feedback.answers import AnswerStore
from serve.feedback.facts import FactFile
from serve.feedback.feedback import owner_of
from serve.feedback.log import FeedbackLog
from serve.served import Served
from serve.settings import Settings


@dataclass(frozen=True, slots=True)
class AnswerRecorder:
    """Recent answers and the feedback on them."""

    answers: AnswerStore
    log: FeedbackLog

    @classmethod
    def open(cls, settings: Settings) -> AnswerRecorder | None:
        """As the settings say; None where no feedback is taken.

        Facts are kept only with `keep_facts`; older ones expire either way.

        Raises ValueError when another server holds the folder, OSError when it can't be written.
        """
        folder = settings.feedback
        if folder is None:
            return None
        log = FeedbackLog(
            folder, max_known=settings.max_answers, since_s=time.time() - settings.answer_ttl_s
        )
        answers = AnswerStore(
            folder,
            max_answers=settings.max_answers,
            ttl_s=settings.answer_ttl_s,
            facts=FactFile(folder, settings.fact_retention_s),
            keep_facts=settings.keep_facts,
        )
        return cls(answers, log)

    def observe(
        self, request: Request, body: PredictRequest, served: Served, reply: PredictReply
    ) -> None:
        """Record one answer."""
        self.answers.remember(
            reply.request_id,
            served,
            fact=body.fact,
            identity=request.state.way.identity,
            owner=owner_of(request),
            variant=request.state.way.name,
        )

    def close(self) -> None:
        """Write what is left and let others have the folder."""
        self.answers.close()
        self.log.close()
