"""`POST /predict/stream`: the reasoning as it comes, then the verdict, as server-sent events.

    event: reasoning    {"text": "窃取8000元，", "attempt": 1}     any number of times
    event: verdict      what /predict replies                      once, the last event
    event: error        {"error": {...}, "request_id": "..."}      once, instead of a verdict

A request that is refused before it starts gets a plain error reply, as from /predict; one whose
worker died starts its reasoning again with the next `attempt`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve.answering.answering import Answering, make_job
from serve.api.errors import error_responses
from serve.api.events import Event, JobEvents, to_json
from serve.api.reply import Replies
from serve.api.schemas import StreamRequest
from serve.errors import OverloadedError, RequestError, error_body
from serve.pool.job import Piece
from serve.served import Served
from serve.settings import Settings

STREAM_PATH = "/predict/stream"
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events: reasoning, then verdict (as /predict replies) or error",
        "content": {"text/event-stream": {}},
    },
    **error_responses(400, 401, 403, 408, 413, 422, 429, 503),
}


def make_router(answering: Answering, replies: Replies, settings: Settings) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post(STREAM_PATH, responses=RESPONSES, response_class=Response)
    async def predict_stream(body: StreamRequest, request: Request) -> Response:
        """The same as /predict, with the reasoning as it comes."""
        job = make_job(
            body.fact,
            request.state.started_s,
            body.deadline_ms,
            settings,
            on_unusable=body.on_unusable,
        )

        def tell(item: Piece | Served) -> Iterator[Event]:
            if isinstance(item, Served):
                reply = replies.reply_to(request, body, item)
                yield {"event": "verdict", "data": reply.model_dump_json()}
            elif body.include_reasoning:
                fields = {"text": item.text, "attempt": item.attempt}
                yield {"event": "reasoning", "data": to_json(fields)}

        def fail(fault: RequestError) -> Event:
            fields = error_body(fault.reason, fault.public_message, request.state.request_id)
            if isinstance(fault, OverloadedError):
                fields["retry_after_s"] = fault.retry_after_s
            return {"event": "error", "data": to_json(fields)}

        stream = await answering.stream(request, job)
        return JobEvents(stream, request, first={"comment": "begun"}, tell=tell, fail=fail)

    return router
