"""Each answer that goes out is recorded: for feedback, where it is taken, and for drift."""

from __future__ import annotations

import time
from dataclasses import dataclass

from fastapi import Request

from serve.api.schemas import PredictReply, PredictRequest
from serve.drift.drift import Drift
from serve.drift.tally import read_mix
from serve.feedback.answers import AnswerStore
from serve.feedback.facts import FactFile
from serve.feedback.feedback import owner_of
from serve.feedback.log import FeedbackLog
from serve.served import Served
from serve.settings import Settings


@dataclass(frozen=True, slots=True)
class AnswerRecorder:
    """Drift figures, and recent answers with the feedback on them where that is configured."""

    drift: Drift
    answers: AnswerStore | None = None
    log: FeedbackLog | None = None

    @classmethod
    def open(cls, settings: Settings) -> AnswerRecorder:
        """As the settings say. Facts are kept only with `keep_facts`; older ones expire either way.

        Raises ValueError when a file named there can't be used or another server holds the
        feedback folder, OSError when that can't be written.
        """
        mix = read_mix(settings.drift_reference) if settings.drift_reference else None
        folder = settings.feedback
        drift = Drift(folder / "drift.json" if folder else None, mix)
        if folder is None:
            return cls(drift)
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
        return cls(drift, answers, log)

    def observe(
        self, request: Request, body: PredictRequest, served: Served, reply: PredictReply
    ) -> None:
        """Record one answer."""
        if self.answers is not None:
            self.answers.remember(
                reply.request_id,
                served,
                fact=body.fact,
                identity=request.state.way.identity,
                owner=owner_of(request),
                variant=request.state.way.name,
            )
        self.drift.observe(served, fact_chars=len(body.fact), total_ms=reply.timings_ms.total)

    def close(self) -> None:
        """Write what is left and let others have the folder."""
        for part in (self.answers, self.log):
            if part is not None:
                part.close()
