"""Security headers of every reply, and the other sites whose pages may call this server (CORS)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Header = tuple[bytes, bytes]

STATIC_PREFIX = "/static-offline-docs/"
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-]+(:\d{1,5})?|https?://\[[0-9A-Fa-f:]+\](:\d{1,5})?")
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# Added unless the route sets it itself.
_UNLESS_SET = {"Content-Security-Policy": "frame-ancestors 'none'"}


class SafeHeaders:
    """ASGI middleware that adds the headers every reply should have.

    Browsers and proxies may store the files of the documentation and nothing else, for replies
    are about people's cases.
    """

    def __init__(self, app: ASGIApp, hsts_s: int = 0) -> None:
        """`hsts_s`: seconds browsers shall insist on HTTPS; 0 leaves that to the proxy."""
        if hsts_s < 0:
            raise ValueError(f"HSTS of {hsts_s} seconds: use 0 or more")
        self.app = app
        always = dict(_ALWAYS)
        if hsts_s:
            always["Strict-Transport-Security"] = f"max-age={hsts_s}"
        self._static = _encode(always)
        self._always = _encode(always | {"Cache-Control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        always = self._static if scope["path"].startswith(STATIC_PREFIX) else self._always

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": _with(message.get("headers", ()), always)}
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _encode(headers: Mapping[str, str]) -> dict[bytes, bytes]:
    return {name.lower().encode(): value.encode() for name, value in headers.items()}


_RESERVED = _encode(_UNLESS_SET)


def _with(given: Iterable[Header], always: Mapping[bytes, bytes]) -> list[Header]:
    """A reply's headers, with those of `always` replacing its own of the same names."""
    kept = [header for header in given if header[0] not in always]
    names = {name for name, _ in kept}
    unset = [header for header in _RESERVED.items() if header[0] not in names]
    return [*kept, *always.items(), *unset]


def allow_origins(app: Starlette, origins: Sequence[str]) -> None:
    """Let pages of the origins listed call this server; with none, no page of another site may.

    Raises ValueError on anything but `scheme://host[:port]`; wildcards are not taken.
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
