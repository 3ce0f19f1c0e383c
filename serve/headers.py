"""What browsers are told about every reply, and which other sites' pages may ask."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STATIC_PREFIX = "/static-offline-docs/"
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-]+(:\d{1,5})?|https?://\[[0-9A-Fa-f:]+\](:\d{1,5})?")
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# Where a route sets one of these itself, the route is right.
_UNLESS_SET = {"Content-Security-Policy": "frame-ancestors 'none'"}


class SafeHeaders:
    """ASGI middleware that adds the headers every reply should have.

    Nothing is to be stored by browsers or proxies but the files of the documentation: replies
    speak of people's cases.
    """

    def __init__(self, app: ASGIApp, hsts_s: int = 0) -> None:
        """`hsts_s`: seconds browsers shall insist on HTTPS; 0 leaves that to the proxy."""
        if hsts_s < 0:
            raise ValueError(f"HSTS of {hsts_s} seconds: use 0 or more")
        self.app = app
        self._always = dict(_ALWAYS)
        if hsts_s:
            self._always["Strict-Transport-Security"] = f"max-age={hsts_s}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        static = scope["path"].startswith(STATIC_PREFIX)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message.get("headers", ())))
                for name, value in self._always.items():
                    headers[name] = value
                for name, value in _UNLESS_SET.items():
                    headers.setdefault(name, value)
                if not static:
                    headers["Cache-Control"] = "no-store"
                message = {**message, "headers": headers.raw}
            await send(message)

        await self.app(scope, receive, send_with_headers)


def allow_origins(app: Starlette, origins: Sequence[str]) -> None:
    """Let pages of the origins listed call this server; with none, no page of another site may.

    Raises ValueError on anything but `scheme://host[:port]`: a list says who is meant.
    """
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"CORS origin {origin!r}: name each as https://host or https://host:port"
            )
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-ID"],
            expose_headers=["Retry-After", "X-Request-ID"],
            max_age=600,
        )
