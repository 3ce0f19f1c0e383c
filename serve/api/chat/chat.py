"""`POST /v1/chat/completions` and `GET /v1/models`, for clients that speak OpenAI's protocol.

    client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="...")
    client.chat.completions.create(
        model="curt", messages=[{"role": "user", "content": fact}], extra_body={"deadline_ms": 400}
    )

The answer's `content` is the verdict, in the answer grammar of `curt.dialogue` or as JSON;
`reasoning_content` is the reasoning; `curt` holds the other fields of a reply of /predict: request
id, whether it is degraded and why, warnings, timings, notice. `serve.api.chat.request` documents
each parameter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from curt.dialogue import render_answer
from serve.answering.answering import Answering, make_job
from serve.api.chat.request import (
    ApiError,
    ChatRequest,
    fact_of,
    ignored_parameters,
    most_tokens,
    schema_of,
    thinking_bound,
)
from serve.api.chat.verdict_schema import SchemaError, project
from serve.api.events import Event, JobEvents, to_json
from serve.api.reply import Replies
from serve.api.schemas import ALL_TASKS, PredictReply, PredictRequest
from serve.errors import (
    NO_RETRY,
    ClientGoneError,
    DeadlineTooShortError,
    RequestError,
    UnusableFactError,
)
from serve.pool.job import Piece
from serve.served import Identity, Served
from serve.settings import Settings

CHAT_PATH, MODELS_PATH = "/v1/chat/completions", "/v1/models"
ALIAS = "curt"  # a name for the served model, whichever it is
IGNORED_HEADER = "X-Curt-Ignored"
OWNER = "curt"
NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
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


class OpenAIRoute(APIRoute):
    """A route whose errors have OpenAI's shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, which answers every error but a disconnect itself."""
        handle = super().get_route_handler()

        async def handle_in_openai_shape(request: Request) -> Response:
            try:
                return await handle(request)
            except ClientGoneError:
                raise
            except (ApiError, RequestError, RequestValidationError, HTTPException) as error:
                fault = to_api_error(error)
            request.state.log["error"] = fault.code
            return JSONResponse(fault.body(), fault.status, fault.headers)

        return handle_in_openai_shape


def make_router(
    answering: Answering, replies: Replies, settings: Settings, identity: Identity
) -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=OpenAIRoute)
    created = _unix_time(identity.manifest.created)
    names = (identity.model.name, ALIAS)

    @router.post(CHAT_PATH, responses=RESPONSES, response_class=Response)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """The verdict on the facts in the user's messages, for OpenAI clients."""
        if body.model not in names:
            raise _no_model(names)
        ignored = ignored_parameters(body)
        fact, schema = fact_of(body), schema_of(body)
        usage = bool(body.stream_options and body.stream_options.include_usage)
        completion = ChatCompletion(
            request.state.request_id,
            identity,
            schema,
            int(time.time()),
            most_tokens=most_tokens(body),
            include_usage=usage,
        )
        headers = {IGNORED_HEADER: ", ".join(ignored)} if ignored else {}
        bound = thinking_bound(body, identity.manifest.max_thinking_tokens)
        try:
            job = make_job(
                fact,
                request.state.started_s,
                body.deadline_ms,
                settings,
                max_thinking_tokens=bound,
            )
        except UnusableFactError as fault:
            if fault.reason not in ("not_chinese", "taiwan"):
                raise
            # Frameworks ask in English whether a model is there: a refusal is an answer.
            request.state.log.update(error=fault.reason, error_status=fault.status)
            return completion.refusal(fault.message, bool(body.stream), headers)
        asked = PredictRequest(fact=fact, deadline_ms=body.deadline_ms, tasks=list(ALL_TASKS))

        def settle(served: Served) -> tuple[Served, PredictReply]:
            settled = answering.settle(request, fact, served)
            return settled, replies.reply_to(request, asked, settled)

        if not body.stream:
            whole = completion.whole(*settle(await answering.serve(request, job)))
            return JSONResponse(whole, headers=headers)
        chunks = Chunks(completion, settle)
        return JobEvents(
            await answering.stream(request, job),
            request,
            first=chunks.first(),
            tell=chunks.tell,
            fail=lambda fault: _event(to_api_error(fault).body()),
            headers=headers,
        )

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
class ChatCompletion:
    """One chat completion in OpenAI's shape. `schema` is None for text, {} for any JSON.

    `most_tokens` is the most that reasoning and answer may have together.
    """

    request_id: str
    identity: Identity
    schema: dict[str, Any] | None
    created: int
    most_tokens: int | None = None
    include_usage: bool = False

    def whole(self, served: Served, reply: PredictReply) -> dict[str, Any]:
        """The completion as one object."""
        message = {**self.message(served), "reasoning_content": reply.reasoning or None}
        whole = self._whole(message, self.finish_reason(served), usage_of(served))
        return whole | {"curt": other_fields(reply)}

    def refusal(self, text: str, stream: bool, headers: Mapping[str, str]) -> Response:
        """The answer to what is no case: why there is no verdict."""
        if not stream:
            message = {"content": None, "refusal": text}
            return JSONResponse(self._whole(message, "stop", NO_USAGE), headers=dict(headers))
        chunks = [self.chunk({"role": "assistant", "refusal": text}), self.chunk({}, "stop")]
        if self.include_usage:
            chunks.append(self.usage_chunk(NO_USAGE))
        events = "".join(f"data: {line}\n\n" for line in (*map(to_json, chunks), "[DONE]"))
        return Response(events, headers=dict(headers), media_type="text/event-stream")

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        """Some more of a streamed completion."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        # Where it is asked for, all but the last say that they hold none.
        usage = {"usage": None} if self.include_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **usage}

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The last chunk, where usage is asked for."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def finish_reason(self, served: Served) -> str:
        """ "length" where tokens or time ran out, else "stop".

        A classifier's verdict takes no tokens, and stands in for what the time ran out on.
        """
        generation = served.generation
        if served.fallback is not None:
            return "stop"
        tokens = generation.thinking_tokens + generation.answer_tokens
        is_cut = generation.finish != "stop" or served.unserved is not None
        too_long = self.most_tokens is not None and tokens > self.most_tokens
        return "length" if too_long or (is_cut and served.verdict is None) else "stop"

    def message(self, served: Served) -> dict[str, str | None]:
        """The verdict as `content`, or a `refusal` that says why there is none.

        An answer that was cut off is left out: 罚金：2000 may be the beginning of 20000元.
        """
        verdict = served.verdict
        if self.finish_reason(served) == "length":
            return {"content": "", "refusal": None}
        if verdict is None:
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
        return {"content": to_json(value), "refusal": None}

    def _whole(self, message: dict[str, Any], finish: str, usage: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", **message}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.identity.model.name,
            "system_fingerprint": f"fp_{self.identity.model.manifest}",
        }


@dataclass
class Chunks:
    """The chunks of one streamed completion."""

    completion: ChatCompletion
    settle: Callable[[Served], tuple[Served, PredictReply]]
    attempt: int = 1
    has_reasoned: bool = False

    def first(self) -> Event:
        """The chunk that goes out at once."""
        return _event(self.completion.chunk({"role": "assistant", "content": ""}))

    def tell(self, item: Piece | Served) -> Iterator[Event]:
        """The chunks of some more reasoning, or those of the answer, which end the stream."""
        chunk = self.completion.chunk
        if isinstance(item, Piece):
            # What was sent of an attempt that died can't be taken back; a new line parts them.
            starts_again = item.attempt != self.attempt and self.has_reasoned
            self.attempt, self.has_reasoned = item.attempt, True
            text = f"\n{item.text}" if starts_again else item.text
            yield _event(chunk({"reasoning_content": text}))
            return
        served, reply = self.settle(item)
        if reply.reasoning and not self.has_reasoned:  # an answer that was there at once
            yield _event(chunk({"reasoning_content": reply.reasoning}))
        message = {name: text for name, text in self.completion.message(served).items() if text}
        if message:
            yield _event(chunk(message))
        finish = self.completion.finish_reason(served)
        yield _event(chunk({}, finish) | {"curt": other_fields(reply)})
        if self.completion.include_usage:
            yield _event(self.completion.usage_chunk(usage_of(served)))
        yield {"data": "[DONE]"}


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


def other_fields(reply: PredictReply) -> dict[str, Any]:
    """The fields of a reply of /predict but the verdict and the reasoning."""
    fields: dict[str, Any] = reply.model_dump(mode="json", exclude={"defendants", "reasoning"})
    return fields


def to_api_error(error: Exception) -> ApiError:
    """An error of this server in OpenAI's shape, without a word of the input."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        status = 400 if error.status == 422 else error.status
        param = "deadline_ms" if isinstance(error, DeadlineTooShortError) else None
        if isinstance(error, UnusableFactError):
            param = "messages"
        return ApiError(
            status, error.reason, error.public_message, param=param, headers=error.headers
        )
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
    return ApiError(500, "internal", "internal error", headers=NO_RETRY)


def _event(fields: dict[str, Any]) -> Event:
    return {"data": to_json(fields)}


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": OWNER}


def _no_model(names: tuple[str, ...]) -> ApiError:
    known = " or ".join(dict.fromkeys(names))
    return ApiError(404, "model_not_found", f"no such model here: ask for {known}", param="model")


def _unix_time(stamp: str) -> int:
    """A manifest's time of creation; 0 where it names none."""
    return int(datetime.fromisoformat(stamp).timestamp()) if stamp else 0
