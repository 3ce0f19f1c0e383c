"""What a server remembers of its answers: for feedback, where it is taken, and for drift."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from serve.api.schemas import PredictReply, PredictRequest
from serve.drift.drift import Drift
from serve.drift.tally import read_mix
from serve.feedback.answers import AnswerStore
from serve.feedback.feedback import FeedbackLog, open_feedback, owner_of
from serve.served import Served
from serve.settings import Settings


@dataclass(frozen=True, slots=True)
class Memory:
    """Recent answers, the feedback on them, and rolling figures; the first two only on request."""

    drift: Drift
    answers: AnswerStore | None = None
    log: FeedbackLog | None = None

    @classmethod
    def open(cls, settings: Settings) -> Memory:
        """As the settings say. Raises ValueError when a file named there can't be used."""
        mix = read_mix(settings.drift_reference) if settings.drift_reference else None
        folder = settings.feedback
        drift = Drift(folder / "drift.json" if folder else None, mix)
        if folder is None:
            return cls(drift)
        answers, log = open_feedback(
            folder,
            keep_facts=settings.keep_facts,
            fact_retention_s=settings.fact_retention_s,
            answer_ttl_s=settings.answer_ttl_s,
            max_answers=settings.max_answers,
        )
        return cls(drift, answers, log)

    def observe(
        self, request: Request, body: PredictRequest, served: Served, reply: PredictReply
    ) -> None:
        """Remember one answer."""
        if self.answers is not None:
            self.answers.remember(
                reply.request_id,
                served,
                fact=body.fact,
                identity=request.state.way.identity,
                owner=owner_of(request),
                variant=request.state.way.variant,
            )
        self.drift.observe(served, fact_chars=len(body.fact), total_ms=reply.timings_ms.total)

    def close(self) -> None:
        """Write what is left and let others have the folder."""
        for part in (self.answers, self.log):
            if part is not None:
                part.close()
