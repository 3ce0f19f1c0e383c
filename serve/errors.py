"""Every way a request can fail, and the body of an error reply."""

from __future__ import annotations

import math
from typing import Any

NO_RETRY = {"X-Should-Retry": "false"}
"""Of a failure that asking again would only repeat; OpenAI's clients read it."""


class RequestError(Exception):
    """A request that gets an error reply. `reason` is the machine-readable code."""

    status = 500

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    @property
    def public_message(self) -> str:
        """What a client is told: of a failure inside the server, nothing."""
        return "internal error" if self.status == 500 else self.message

    @property
    def headers(self) -> dict[str, str]:
        """What tells a client whether, and when, to ask again."""
        return dict(NO_RETRY) if self.status == 500 else {}


class UnusableFactError(RequestError):
    """A fact no verdict can be given on: empty, not Chinese, too long."""

    status = 422


class OverloadedError(RequestError):
    """The deadline can't be met now."""

    status = 503

    def __init__(self, reason: str, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(reason, message)
        self.retry_after_s = max(1, math.ceil(retry_after_s))

    @property
    def headers(self) -> dict[str, str]:
        """The time after which it may be asked again."""
        return {"Retry-After": str(self.retry_after_s)}


class DeadlineTooShortError(RequestError):
    """A deadline that this machine can't meet however idle it is: waiting does not help."""

    status = 422


class TooManyCasesError(RequestError):
    """More cases than may be asked in one request."""

    status = 422


class ClientGoneError(RequestError):
    """The client hung up; only the log sees the status."""

    status = 499


class EngineFailedError(RequestError):
    """The engine failed on a request; details are in the log, not in the reply."""


OPENAI_PREFIX = "/v1/"
_OPENAI_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def openai_type(status: int) -> str:
    """The `type` that OpenAI's protocol has for a status."""
    return _OPENAI_TYPES.get(status, "server_error" if status >= 499 else "invalid_request_error")


def error_body(
    reason: str, message: str, request_id: str, *, path: str = "", status: int = 500
) -> dict[str, Any]:
    """The body of every error reply; on a path of OpenAI's protocol with the fields it has there.

    Those of its routes name a parameter themselves (`serve.api.chat`).
    """
    error: dict[str, Any] = {"code": reason, "message": message}
    if path.startswith(OPENAI_PREFIX):
        error |= {"type": openai_type(status), "param": None}
    return {"error": error, "request_id": request_id}
