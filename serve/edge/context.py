"""Around every request: its id, its start time, its log line, and a plain 500 when code fails."""

from __future__ import annotations

import logging
import os
import re
import time
import traceback
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import NO_RETRY, error_body
from serve.metrics import Metrics

access = logging.getLogger("serve.access")
logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
PREDICT_PATH, BATCH_PATH, BATCHES_PATH = "/predict", "/predict/batch", "/batches"
COUNTED_PATHS = frozenset({PREDICT_PATH, BATCH_PATH, "/predict/stream", "/v1/chat/completions"})
QUIET_ROUTES = frozenset(
    {"/livez", "/readyz", "/health", "/ping", "/metrics"}
)  # polled every few seconds


class RequestContext:
    """ASGI middleware that sets `state.request_id`, `state.started_s` and `state.log`.

    Routes add their counts to the dict `state.log`, which becomes part of the access log line, and
    set `state.counts_cases` where they have counted several cases themselves. The line names the
    route's pattern, never the path as sent, which may hold a client's text.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started_s = time.monotonic()
        request_id = request_id_of(scope)
        fields: dict[str, Any] = {}
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, started_s=started_s, log=fields)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            log_failure(request_id, error)
            if status == 0:
                body = error_body("internal", "internal error", request_id, path=scope["path"])
                reply = JSONResponse(body, status_code=500, headers=NO_RETRY)
                await reply(scope, receive, send_with_id)
        seconds = time.monotonic() - started_s
        route = getattr(scope.get("route"), "path", "-")
        if scope["path"] in COUNTED_PATHS:
            self.metrics.record_end(status, fields.get("error"), seconds)
            if not state.get("counts_cases"):
                self.metrics.record_case(status, fields)
        line = {
            "request_id": request_id,
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(seconds * 1e3, 2),
            **fields,
        }
        level = logging.DEBUG if route in QUIET_ROUTES else logging.INFO
        write_access(level, "%s %s %d", (scope["method"], route, status), line)


def log_failure(request_id: str, error: Exception) -> None:
    """Log an unexpected error by type and stack: its message may quote the fact it failed on."""
    stack = [f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
    extra = {"request_id": request_id, "error": type(error).__name__, "stack": stack}
    logger.error("unexpected failure", extra=extra)


def write_access(
    level: int, message: str, arguments: tuple[object, ...], fields: dict[str, Any]
) -> None:
    """Write an access line as `access.log` would, but without looking up the calling function.

    No line names it, and the look-up costs more than all the rest.
    """
    if access.isEnabledFor(level):
        name, place = access.name, __file__
        access.handle(
            access.makeRecord(name, level, place, 0, message, arguments, None, None, fields)
        )


def request_id_of(scope: Scope) -> str:
    """The id that the client gave its request, or a new one where that is missing or malformed."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()


async def refuse(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: int,
    reason: str,
    message: str,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answer a request with an ErrorReply from a middleware, which no exception handler covers."""
    state = scope.setdefault("state", {})
    state.setdefault("log", {})["error"] = reason
    request_id = state.get("request_id", "")
    body = error_body(reason, message, request_id, path=scope["path"], status=status)
    await JSONResponse(body, status_code=status, headers=headers)(scope, receive, send)
