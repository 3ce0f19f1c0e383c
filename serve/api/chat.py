"""`POST /v1/chat/completions` and `GET /v1/models`, for clients that speak OpenAI's protocol.

    client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="...")
    client.chat.completions.create(
        model="curt", messages=[{"role": "user", "content": fact}], extra_body={"deadline_ms": 400}
    )

The answer's `content` is the verdict in the answer grammar of `curt.dialogue` or as JSON,
`reasoning_content` the reasoning, and `curt` what /predict tells beside the verdict: request id,
whether it is degraded and why, warnings, timings, notice. `serve.api.chat_shapes` says what each
parameter does.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from curt.dialogue import render_answer
from serve.answering.answering import make_job
from serve.api.chat_shapes import (
    ApiError,
    ChatRequest,
    fact_of,
    ignored_parameters,
    schema_of,
    thinking_bound,
)
from serve.api.schemas import ALL_TASKS, PredictReply, PredictRequest
from serve.api.verdict_schema import SchemaError, project
from serve.errors import ClientGoneError, OverloadedError, RequestError
from serve.pool.job import Job, Piece
from serve.served import Identity, Served
from serve.settings import Settings

logger = logging.getLogger(__name__)

CHAT_PATH, MODELS_PATH = "/v1/chat/completions", "/v1/models"
ALIAS = "curt"  # whatever model is served
IGNORED_HEADER = "X-Curt-Ignored"
OWNER = "curt"
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A chat completion, or its chunks as events where `stream` is true",
        "content": {"application/json": {}, "text/event-stream": {}},
    },
    400: {"description": "A parameter is wrong or not supported, or the fact unusable"},
    404: {"description": "No such model here"},
    413: {"description": "The body is too large"},
    503: {"description": "Can't be met now; see Retry-After"},
}
_OPENAI_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

Answer = Callable[[Request, Job], Awaitable[Served]]
ReplyTo = Callable[[Request, PredictRequest, Served], PredictReply]


class Told(Protocol):
    """A job under way: pieces of its reasoning, last the answer."""

    def __aiter__(self) -> AsyncIterator[Piece | Served]:
        """The pieces and the answer; iteration raises the job's RequestError."""
        ...

    def close(self) -> None:
        """Give up what is not done yet."""
        ...


OpenStream = Callable[[Request, Job], Told]
"""Serves a job of a request, telling its reasoning; raises a RequestError where it refuses it."""


class OpenAIRoute(APIRoute):
    """A route whose errors have OpenAI's shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, which answers every fault of ours itself."""
        handle = super().get_route_handler()

        async def handle_in_their_words(request: Request) -> Response:
            try:
                return await handle(request)
            except ClientGoneError:
                raise
            except (ApiError, RequestError, RequestValidationError, HTTPException) as error:
                fault = to_api_error(error)
            request.state.log["error"] = fault.code
            headers = {}
            if fault.retry_after_s is not None:
                headers["Retry-After"] = str(fault.retry_after_s)
            return JSONResponse(fault.body(), fault.status, headers)

        return handle_in_their_words


def make_router(
    open_stream: OpenStream,
    settings: Settings,
    identity: Identity,
    *,
    answer: Answer,
    reply_to: ReplyTo,
) -> APIRouter:
    """The routes.

    `answer(request, job)` serves a job whole, gives up when its client leaves;
    `reply_to(request, body, served)` builds and records the reply, as for /predict.
    """
    router = APIRouter(route_class=OpenAIRoute)
    created = _unix_time(identity.manifest.created)
    names = (identity.model.name, ALIAS)

    @router.post(CHAT_PATH, responses=RESPONSES, response_class=Response)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """The verdict on the facts in the last user message, for OpenAI clients."""
        if body.model not in names:
            raise _no_model(names)
        ignored = ignored_parameters(body)
        fact, schema = fact_of(body), schema_of(body)
        bound = thinking_bound(body, identity.manifest.max_thinking_tokens)
        job = make_job(
            fact,
            request.state.started_s,
            body.deadline_ms,
            settings,
            max_thinking_tokens=bound,
        )
        asked = PredictRequest(fact=fact, deadline_ms=body.deadline_ms, tasks=list(ALL_TASKS))

        def reply(served: Served) -> PredictReply:
            return reply_to(request, asked, served)

        chat = Chat(request.state.request_id, identity, schema, int(time.time()))
        headers = {IGNORED_HEADER: ", ".join(ignored)} if ignored else {}
        if not body.stream:
            served = await answer(request, job)
            return JSONResponse(chat.whole(served, reply(served)), headers=headers)
        told = open_stream(request, job)
        usage = bool(body.stream_options and body.stream_options.include_usage)
        chunks = _chunks(told, chat, reply, request.state.log, include_usage=usage)
        return ChunkStream(chunks, told, headers)

    @router.get(MODELS_PATH)
    async def list_models() -> dict[str, Any]:
        """The model that is served, under its name and as `curt`."""
        return {"object": "list", "data": [_model(name, created) for name in names]}

    @router.get(MODELS_PATH + "/{name}", responses={404: RESPONSES[404]})
    async def show_model(name: str) -> dict[str, Any]:
        """One model by its name."""
        if name not in names:
            raise _no_model(names)
        return _model(name, created)

    return router


@dataclass(frozen=True, slots=True)
class Chat:
    """One completion in the making. `schema` is None for text, {} for any JSON."""

    request_id: str
    identity: Identity
    schema: dict[str, Any] | None
    created: int

    def whole(self, served: Served, reply: PredictReply) -> dict[str, Any]:
        """The completion as one object."""
        message = {
            "role": "assistant",
            **self.said(served),
            "reasoning_content": reply.reasoning or None,
        }
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": finish_reason(served),
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": usage_of(served),
            "curt": aside(reply),
        }

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        """Some more of a streamed completion."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, served: Served) -> dict[str, Any]:
        """The last chunk, where usage is asked for."""
        return {
            **self._head("chat.completion.chunk"),
            "choices": [],
            "usage": usage_of(served),
        }

    def said(self, served: Served) -> dict[str, str | None]:
        """The verdict as `content`, or a `refusal` that says why there is none.

        An answer that was cut is not told: 罚金：2000 may be the beginning of 20000元.
        """
        verdict = served.verdict
        if verdict is None:
            if finish_reason(served) == "length":
                return {"content": "", "refusal": None}
            return {"content": None, "refusal": "the model gave no readable verdict"}
        if self.schema is None:
            return {"content": render_answer(verdict), "refusal": None}
        value = verdict.to_json()
        if served.fallback is not None:  # the classifier knows nothing of fines
            value["fine_yuan"] = None
        try:
            value = project(value, self.schema)
        except SchemaError as error:
            return {"content": None, "refusal": str(error)}
        return {"content": json.dumps(value, ensure_ascii=False), "refusal": None}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.identity.model.name,
            "system_fingerprint": f"fp_{self.identity.model.manifest}",
        }


def finish_reason(served: Served) -> str:
    """ "length" where tokens or time ran out and no verdict stands in, else "stop"."""
    is_cut = served.generation.finish != "stop" or served.unserved is not None
    return "length" if is_cut and served.verdict is None else "stop"


def usage_of(served: Served) -> dict[str, Any]:
    """Tokens as OpenAI counts them: reasoning is part of the completion."""
    generation = served.generation
    completion = generation.thinking_tokens + generation.answer_tokens
    return {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": generation.prompt_tokens + completion,
        "completion_tokens_details": {"reasoning_tokens": generation.thinking_tokens},
    }


def aside(reply: PredictReply) -> dict[str, Any]:
    """What /predict tells beside the verdict and the reasoning."""
    told: dict[str, Any] = reply.model_dump(mode="json", exclude={"defendants", "reasoning"})
    return told


def to_api_error(error: Exception) -> ApiError:
    """Any fault of ours in OpenAI's words, without a word of the input."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OverloadedError):
        return ApiError(
            error.status, error.reason, error.message, retry_after_s=error.retry_after_s
        )
    if isinstance(error, RequestError):
        if error.status >= 500:
            return ApiError(error.status, error.reason, "internal error")
        status = 400 if error.status == 422 else error.status
        return ApiError(status, error.reason, error.message, param="messages")
    if isinstance(error, RequestValidationError):
        problem = error.errors()[0]
        if problem["type"] == "json_invalid":
            return ApiError(400, "invalid_json", "the body is not valid JSON in UTF-8")
        place = ".".join(str(part) for part in problem["loc"][1:])
        param = place.partition(".")[0] or None
        return ApiError(400, "invalid_value", f"{place}: {problem['msg']}", param=param)
    if isinstance(error, HTTPException):
        code = {400: "invalid_json", 413: "too_large"}.get(error.status_code, "http_error")
        return ApiError(error.status_code, code, code.replace("_", " "))
    return ApiError(500, "internal", "internal error")


class ChunkStream(StreamingResponse):
    """Events until the end, or until the client hangs up, which stops the worker."""

    def __init__(self, chunks: AsyncIterator[bytes], told: Told, headers: dict[str, str]) -> None:
        super().__init__(chunks, media_type="text/event-stream", headers=_OPENAI_HEADERS | headers)
        self._told = told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._told.close()


async def _chunks(
    told: Told,
    chat: Chat,
    reply_to: Callable[[Served], PredictReply],
    log: dict[str, Any],
    *,
    include_usage: bool,
) -> AsyncIterator[bytes]:
    yield _event(chat.chunk({"role": "assistant", "content": ""}))
    attempt, reasoning = 1, ""
    try:
        async for item in told:
            if isinstance(item, Piece):
                # What was told of an attempt that died can't be taken back; a new line parts them.
                text = item.text if item.attempt == attempt or not reasoning else f"\n{item.text}"
                attempt, reasoning = item.attempt, reasoning + text
                yield _event(chat.chunk({"reasoning_content": text}))
                continue
            reply = reply_to(item)
            if reply.reasoning and not reasoning:  # an answer that was there at once
                yield _event(chat.chunk({"reasoning_content": reply.reasoning}))
            said = {name: text for name, text in chat.said(item).items() if text}
            if said:
                yield _event(chat.chunk(said))
            yield _event(chat.chunk({}, finish_reason(item)) | {"curt": aside(reply)})
            if include_usage:
                yield _event(chat.usage_chunk(item))
    except RequestError as fault:
        log["error"] = fault.reason
        yield _event(to_api_error(fault).body())
    except Exception as error:  # the status line is out: the client must still be told
        # Type only: the message of an error may quote the fact it failed on.
        logger.error("unexpected failure", extra={"error": type(error).__name__})
        log["error"] = "internal"
        yield _event(to_api_error(error).body())
    else:
        yield b"data: [DONE]\n\n"


def _event(fields: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(fields, ensure_ascii=False)}\n\n".encode()


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": OWNER}


def _no_model(names: tuple[str, ...]) -> ApiError:
    known = " or ".join(dict.fromkeys(names))
    return ApiError(404, "model_not_found", f"no such model here: ask for {known}", param="model")


def _unix_time(stamp: str) -> int:
    """A manifest's time of creation; 0 where it names none."""
    return int(datetime.fromisoformat(stamp).timestamp()) if stamp else 0
