"""The one place that turns a failed request into a status code and an error reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve.api.schemas import ErrorReply
from serve.errors import RequestError, error_body

_DESCRIPTIONS: Mapping[int, str] = {
    400: "The body is not JSON in UTF-8",
    401: "No valid API key",
    403: "The key is not of the role that is needed",
    408: "The body took too long to arrive",
    413: "The body is too large",
    422: "A field is wrong, the fact unusable, or the deadline shorter than any answer",
    429: "Too many requests; see Retry-After",
    503: "Can't be met now; see Retry-After",
}

_HTTP_REASONS = {
    400: "invalid_json",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
}
_HTTP_MESSAGES = {
    "invalid_json": "the body is not valid JSON in UTF-8",
    "not_found": "no such address; see /docs",
    "method_not_allowed": "this address does not take that method; see /docs",
    "too_slow": "the body took too long to arrive",
    "too_large": "the body is larger than this server takes",
}


def install_handlers(app: FastAPI) -> None:
    """Map faults, validation errors and the framework's own errors to replies."""

    @app.exception_handler(RequestError)
    async def on_fault(request: Request, fault: RequestError) -> JSONResponse:
        return _reply(request, fault.status, fault.reason, fault.public_message, fault.headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = error.errors()
        if any(problem["type"] == "json_invalid" for problem in problems):
            return _reply(request, 400, "invalid_json", _HTTP_MESSAGES["invalid_json"])
        return _reply(request, 422, "invalid_request", describe_problems(problems))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        reason = _HTTP_REASONS.get(error.status_code, "http_error")
        message = _HTTP_MESSAGES.get(reason, f"status {error.status_code}")
        return _reply(request, error.status_code, reason, message, error.headers)


def error_responses(
    *statuses: int, own: Mapping[int, str] | None = None
) -> dict[int | str, dict[str, Any]]:
    """What a route declares of its errors for /docs; `own` describes those special to it."""
    described = {status: _DESCRIPTIONS[status] for status in statuses} | dict(own or {})
    return {
        status: {"model": ErrorReply, "description": text} for status, text in described.items()
    }


def describe_problems(problems: Sequence[Mapping[str, Any]]) -> str:
    """Say what is wrong where, without a word of the input: facts are personal data."""
    lines = []
    for problem in problems[:5]:
        place = ".".join(map(str, problem["loc"][1:]))
        message = str(problem["msg"]).removeprefix("Value error, ")
        lines.append(f"{place}: {message}" if place else message)
    return "; ".join(lines)


def _reply(
    request: Request,
    status: int,
    reason: str,
    message: str,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    request.state.log["error"] = reason
    body = error_body(
        reason, message, request.state.request_id, path=request.url.path, status=status
    )
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))
