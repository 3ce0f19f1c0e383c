"""`POST /feedback`: what people say of an answer, kept for training.

A line of `feedback.jsonl` a word of feedback, on the disk before the reply goes out:

    {"schema": 1, "at_s": 1760000000.0, "request_id": "...", "verdict": "wrong",
     "correction": {"charges": [...], "articles": [...], "term": {...}, "fine_yuan": 0} or null,
     "comment": "..." or null, "user": "..." or null, "answer": {what `Answered` holds}}

`correction` is the whole verdict that should have been given. No facts stand here (see
`serve.feedback.facts`). The last line of an answer counts, the earlier ones are its history, so
saying the same twice in a row adds no line, but going back to what was said before does.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
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
from serve.feedback.append_log import AppendLog, log_files, read_lines
from serve.feedback.corrections import BadCorrectionError, Correction, complete
from serve.feedback.facts import FactFile

logger = logging.getLogger(__name__)

FEEDBACK_PATH = "/feedback"
FEEDBACK = "feedback.jsonl"
SCHEMA = 1
MAX_COMMENT_CHARS = 500
MAX_LINES_AN_ANSWER = 20  # a client that changes its mind more often is a broken one
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


class TooManyChangesError(OverloadedError):
    """One answer was judged over and over."""

    status = 429


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


class FeedbackLog:
    """The lines of all feedback in `folder`, which belongs to one server.

    Of each answer heard of lately (`max_known`) it knows what was said last, and how often.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = 64 * 2**20,
        max_known: int = 10_000,
        since_s: float = 0.0,
    ) -> None:
        """`since_s`: Unix time before which files need not be read.

        Raises ValueError when another server holds the folder.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._hold = _hold_folder(folder)
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[str, int]] = OrderedDict()
        self._max_known = max_known
        self._log = AppendLog(folder / FEEDBACK, max_bytes)
        for path in log_files(folder / FEEDBACK):
            if path.stat().st_mtime >= since_s:
                for row in read_feedback(path):
                    self._note(row["answer"]["answer_id"], _digest(row))

    def record(self, row: dict[str, Any]) -> bool:
        """Keep a row; False when it says what the last one of its answer said.

        Raises OSError when it can't be written, TooManyChangesError after a score of changes.
        """
        answer_id, digest = row["answer"]["answer_id"], _digest(row)
        with self._lock:  # the disk is slow, but two words on one answer must not cross
            last, count = self._known.get(answer_id, ("", 0))
            if digest == last:
                return False
            if count >= MAX_LINES_AN_ANSWER:
                raise TooManyChangesError(
                    "too_many_changes",
                    f"this answer was judged {count} times: what was said last stays",
                    86_400,
                )
            self._log.append(json.dumps(row, ensure_ascii=False).encode())
            self._note(answer_id, digest)
        return True

    def close(self) -> None:
        """Let go of the files and the folder."""
        self._log.close()
        os.close(self._hold)

    def _note(self, answer_id: str, digest: str) -> None:
        self._known[answer_id] = (digest, self._known.get(answer_id, ("", 0))[1] + 1)
        self._known.move_to_end(answer_id)
        if len(self._known) > self._max_known:
            self._known.popitem(last=False)


def read_feedback(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of one file in order; lines that are none are left out and counted in the log."""
    unreadable = 0
    for line in read_lines(path):
        try:
            row = json.loads(line)
            known = row["schema"] == SCHEMA and isinstance(row["answer"]["answer_id"], str)
        except (ValueError, KeyError, TypeError):
            known = False
        if known:
            yield row
        else:
            unreadable += 1
    if unreadable:
        logger.warning("%s: %d lines can't be read", path.name, unreadable)


def latest_feedback(folder: Path) -> dict[str, dict[str, Any]]:
    """What counts: the last row of each answer, by answer id, in the order of first mention."""
    rows = {}
    for path in log_files(folder / FEEDBACK):
        for row in read_feedback(path):
            rows[row["answer"]["answer_id"]] = row
    return rows


def open_feedback(
    folder: Path,
    *,
    max_answers: int = 10_000,
    answer_ttl_s: float = 7 * 86_400.0,
    keep_facts: bool = False,
    fact_retention_s: float = 30 * 86_400.0,
    max_fact_bytes: int = 256 * 2**20,
) -> tuple[AnswerStore, FeedbackLog]:
    """What the routes need, over one folder; close both in the end.

    Facts are kept only with `keep_facts`; those an earlier run kept are deleted in time either
    way. Raises ValueError when another server holds the folder, OSError when it can't be written.
    """
    since_s = time.time() - answer_ttl_s
    log = FeedbackLog(folder, max_known=max_answers, since_s=since_s)
    facts = FactFile(folder, retention_s=fact_retention_s, max_bytes=max_fact_bytes)
    answers = AnswerStore(
        folder, max_answers=max_answers, ttl_s=answer_ttl_s, facts=facts, keep_facts=keep_facts
    )
    return answers, log


def make_router(
    answers: AnswerStore,
    log: FeedbackLog,
    registry: CollectorRegistry,
    on_feedback: Callable[[Judgement], None] = lambda _: None,
    clock: Callable[[], float] = time.time,
) -> APIRouter:
    """The route; `on_feedback` hears of every word that was kept."""
    router = APIRouter()
    received = Counter(
        "curt_feedback", "Words of feedback that were kept", ["verdict"], registry=registry
    )
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
            on_feedback(body.verdict)
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
        "answer": answered.to_json(),
    }


def _digest(row: dict[str, Any]) -> str:
    said = [row.get(name) for name in ("verdict", "correction", "comment", "user")]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]


def _hold_folder(folder: Path) -> int:
    descriptor = os.open(folder / ".lock", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ValueError(
            f"{folder} is in use by another server: give each a folder of its own"
        ) from None
    return descriptor
