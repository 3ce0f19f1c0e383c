"""`POST /feedback`: what people say of an answer, kept for training.

Each piece of feedback is a line of `feedback.jsonl`, on the disk before the reply goes out:

    {"schema": 1, "at_s": 1760000000.0, "request_id": "...", "verdict": "wrong",
     "correction": {"charges": [...], "articles": [...], "term": {...}, "fine_yuan": 0} or null,
     "comment": "..." or null, "user": "..." or null, "answer": {what `Answered` holds}}

`correction` is the whole verdict that should have been given. It holds no facts (see
`serve.feedback.facts`). The last line of an answer counts, the earlier ones are its history: saying
the same twice in a row adds no line, but going back to what was said before does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Counter
from pydantic import BaseModel, ConfigDict, Field, model_validator

from curt.corpus.redaction import redact
from serve.api.errors import error_responses
from serve.api.schemas import RequestBody
from serve.errors import OverloadedError, RequestError
from serve.feedback.answers import Answered, AnswerStore
from serve.feedback.corrections import BadCorrectionError, Correction, complete
from serve.feedback.log import SCHEMA, FeedbackLog

logger = logging.getLogger(__name__)

FEEDBACK_PATH = "/feedback"
MAX_COMMENT_CHARS = 500
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The same was said before; nothing was added"},
    **error_responses(
        400,
        own={
            404: "No answer of that id is known, or no more",
            422: "A field is wrong, or the correction impossible",
            429: "Too many changes of mind about one answer",
            503: "It can't be written now; see Retry-After",
        },
    ),
}

Judgement = Literal["correct", "wrong"]


class UnknownAnswerError(RequestError):
    """Feedback on an answer that this server does not know, or no more."""

    status = 404


class FeedbackRequest(RequestBody):
    """What a person says of one answer."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "request_id": "0f6c1d9e6b1f4a2f8f0b7f0f5d7c2a11",
                    "verdict": "wrong",
                    "correction": {"term": {"kind": "fixed", "months": 10}},
                }
            ]
        },
    )

    request_id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """The id in the reply (`request_id`, or the header X-Request-ID)."""

    verdict: Judgement
    """Whether the answer was correct or wrong."""

    correction: Correction | None = None
    """The defendant as it should have been, in the reply's own shape; only what was wrong."""

    comment: str | None = Field(None, max_length=MAX_COMMENT_CHARS)
    """A short remark; numbers and names that identify people are masked before it is kept."""

    user: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """An opaque id of who says so."""

    @model_validator(mode="after")
    def _a_correction_is_of_something_wrong(self) -> FeedbackRequest:
        if self.verdict == "correct" and self.correction is not None:
            raise ValueError("what is correct needs no correction: say wrong, or leave it out")
        return self


class FeedbackReply(BaseModel):
    """What became of it."""

    request_id: str
    status: Literal["recorded", "unchanged"]


def make_router(
    answers: AnswerStore,
    log: FeedbackLog,
    registry: CollectorRegistry,
    clock: Callable[[], float] = time.time,
) -> APIRouter:
    """The route."""
    router = APIRouter()
    received = Counter("curt_feedback", "Feedback that was kept", ["verdict"], registry=registry)
    for judgement in ("correct", "wrong"):
        received.labels(judgement)

    # Not async: the disk is waited for in a thread.
    @router.post(FEEDBACK_PATH, status_code=201, responses=RESPONSES)
    def feedback(body: FeedbackRequest, request: Request, response: Response) -> FeedbackReply:
        """Say whether an answer was right, and what it should have been."""
        owner = owner_of(request)
        answered = answers.find(owner, body.request_id)
        if answered is None:
            raise UnknownAnswerError(
                "unknown_request", "no answer of that id is known here, or no longer"
            )
        row = make_row(body, answered, at_s=round(clock(), 3))
        try:
            is_new = log.record(row)
        except OSError as error:
            logger.error("feedback can't be written: %s", error.strerror)
            raise OverloadedError(
                "feedback_unwritable", "feedback can't be written now: send it again", 30.0
            ) from None
        request.state.log.update(feedback=body.verdict, corrected=body.correction is not None)
        if is_new:
            received.labels(body.verdict).inc()
        else:
            response.status_code = 200
        return FeedbackReply(
            request_id=body.request_id, status="recorded" if is_new else "unchanged"
        )

    return router


def owner_of(request: Request) -> str | None:
    """The id of the API key a request came with; None where keys are off."""
    record = getattr(request.state, "api_key", None)
    return None if record is None else str(record.id)


def make_row(body: FeedbackRequest, answered: Answered, *, at_s: float) -> dict[str, Any]:
    """The row to keep. Raises BadCorrectionError when the correction can't be meant."""
    correction = None
    if body.correction is not None:
        correction = complete(body.correction, answered.verdict)
        if correction == answered.verdict:
            raise BadCorrectionError(
                "no_change", "the correction says what was answered: leave it out, or say correct"
            )
    if body.verdict == "correct" and answered.verdict is None:
        raise BadCorrectionError("no_verdict", "no verdict was given that could be correct")
    return {
        "schema": SCHEMA,
        "at_s": at_s,
        "request_id": body.request_id,
        "verdict": body.verdict,
        "correction": None if correction is None else correction.to_json(),
        "comment": None if body.comment is None else redact(body.comment)[0],
        "user": body.user,
        "answer": asdict(answered),
    }
