"""`POST /predict/stream`: the reasoning as it comes, then the verdict, as server-sent events.

    event: reasoning    {"text": "窃取8000元，", "attempt": 1}     any number of times
    event: verdict      what /predict replies                      once, the last event
    event: error        {"error": {...}, "request_id": "..."}      once, instead of a verdict

A request that is refused before it starts gets a plain error reply, as from /predict; one whose
worker died starts its reasoning again with the next `attempt`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from serve.answering.answering import make_job
from serve.api.errors import error_responses
from serve.api.schemas import PredictReply, PredictRequest
from serve.errors import OverloadedError, RequestError, error_body
from serve.pool.job import Job, ServedStream
from serve.served import Served
from serve.settings import Settings

logger = logging.getLogger(__name__)

STREAM_PATH = "/predict/stream"
CLOSED = "client_closed"
# What stands between must pass on each event at once, and keep none.
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events: reasoning, then verdict (as /predict replies) or error",
        "content": {"text/event-stream": {}},
    },
    **error_responses(400, 401, 403, 408, 413, 422, 429, 503),
}

ReplyTo = Callable[[Request, PredictRequest, Served], PredictReply]


OpenStream = Callable[[Request, Job, str | None], ServedStream]
"""Serves a job of a request and user, telling its reasoning; raises a RequestError it refuses."""


def make_router(open_stream: OpenStream, settings: Settings, reply_to: ReplyTo) -> APIRouter:
    """The route.

    `reply_to(request, body, served)` builds and records the reply, as for /predict.
    """
    router = APIRouter()

    @router.post(STREAM_PATH, responses=RESPONSES, response_class=Response)
    async def predict_stream(body: PredictRequest, request: Request) -> Response:
        """The same as /predict, with the reasoning as it comes."""
        job = make_job(body.fact, request.state.started_s, body.deadline_ms, settings)
        stream = open_stream(request, job, body.user)
        return EventStream(
            stream,
            tell_reasoning=body.include_reasoning,
            reply=lambda served: reply_to(request, body, served),
            request_id=request.state.request_id,
            log=request.state.log,
        )

    return router


class EventStream(Response):
    """Sends a stream's events until it ends or the client hangs up, which stops the worker."""

    media_type = "text/event-stream"

    def __init__(
        self,
        stream: ServedStream,
        *,
        tell_reasoning: bool,
        reply: Callable[[Served], PredictReply],
        request_id: str,
        log: dict[str, Any],
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._stream = stream
        self._tell_reasoning = tell_reasoning
        self._reply = reply
        self._request_id = request_id
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI response."""
        sending = asyncio.create_task(self._send_events(send))
        leaving = asyncio.create_task(_wait_for_disconnect(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                self._log["error"] = CLOSED
        finally:
            self._stream.close()
            sending.cancel()
            leaving.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send_events(self, send: Send) -> None:
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def write(data: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        await write(b": begun\n\n")  # so that the headers go out now
        try:
            async for event in self._stream:
                if isinstance(event, Served):
                    await write(format_event("verdict", self._reply(event).model_dump_json()))
                elif self._tell_reasoning:
                    fields = {"text": event.text, "attempt": event.attempt}
                    await write(format_event("reasoning", dump(fields)))
        except RequestError as fault:
            await write(format_event("error", self._describe(fault)))
        except Exception as error:  # the status line is out: the client must still be told
            # Type only: the message of an error may quote the fact it failed on.
            extra = {"request_id": self._request_id, "error": type(error).__name__}
            logger.error("unexpected failure", extra=extra)
            unexpected = RequestError("internal", "internal error")
            await write(format_event("error", self._describe(unexpected)))
        await write(b"", more=False)

    def _describe(self, fault: RequestError) -> str:
        self._log["error"] = fault.reason
        message = "internal error" if fault.status == 500 else fault.message
        body = error_body(fault.reason, message, self._request_id)
        if isinstance(fault, OverloadedError):
            body["retry_after_s"] = fault.retry_after_s
        return dump(body)


def format_event(name: str, data: str) -> bytes:
    """One server-sent event; `data` is JSON on one line."""
    return f"event: {name}\ndata: {data}\n\n".encode()


def dump(fields: dict[str, Any]) -> str:
    """JSON on one line, as clients of /predict read it."""
    return json.dumps(fields, ensure_ascii=False)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
