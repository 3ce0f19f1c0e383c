"""Limits of one connection and of all of them, which uvicorn has no settings for.

A connection that asks nothing, sends its request byte by byte or does not read its reply costs
memory and a file descriptor for as long as it likes. What it may take is bounded here, in the
server itself, because not every deployment has a proxy before it.
"""

from __future__ import annotations

import asyncio
import json
import resource
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serve.errors import error_body

SPARE_FILES = 128  # descriptors kept for workers, pipes, Redis, a remote engine and the log


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one connection may take, and how many there may be.

    `head_s` is the time for the whole head of a request, from the connection or from its first
    byte; `write_s` the time to read on, for a client that let its reply pile up.
    """

    max_connections: int
    max_header_bytes: int
    max_headers: int
    head_s: float
    write_s: float = 30.0


def raise_file_limit(connections: int) -> int:
    """Allow this process as many open files as the connections need, or as it may have.

    Returns how many connections fit then.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        connections = min(connections, max(1, soft - SPARE_FILES))
    return connections


def limited_protocol(limits: ConnectionLimits) -> type[LimitedProtocol]:
    """uvicorn's protocol within these limits, for one server."""

    class Limited(LimitedProtocol):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.limits, self.idle = limits, idle

    idle: dict[LimitedProtocol, None] = {}
    return Limited


class LimitedProtocol(HttpToolsProtocol):
    """A connection that is closed where it goes beyond its limits."""

    limits: ConnectionLimits
    is_draining = False
    """Set on the class of a server that ends: replies ask their clients to connect anew."""
    idle: dict[LimitedProtocol, None]
    """The server's connections without a request under way, those that are so longest first."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._in_head = True
        self._received = self._header_bytes = 0  # of the head that arrives: raw, and parsed
        self._is_too_large = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection; of too many, the one that has been idle longest goes."""
        super().connection_made(transport)
        self.idle[self] = None
        self._head_timer = self._close_after(self.limits.head_s)
        if len(self.connections) > self.limits.max_connections:
            next(iter(self.idle)).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.idle.pop(self, None)
        self._stop_head_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, as long as the head of a request keeps its limits."""
        self._received += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head and self._received > self.limits.max_header_bytes:  # it does not end
            self._is_too_large = True
            self.send_400_response("")
        elif self in self.idle and self._head_timer is None:  # uvicorn's own timer ended just now
            self._head_timer = self._close_after(self.limits.head_s)

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._in_head, self._header_bytes = True, 0

    def on_url(self, url: bytes) -> None:
        """Count the address as part of the head."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        super().on_header(name, value)
        self._count(len(name) + len(value) + 4)  # with colon, space and the end of the line

    def on_headers_complete(self) -> None:
        """End the head; the request begins."""
        self._in_head, self._received = False, 0
        self._stop_head_timer()
        self.idle.pop(self, None)
        super().on_headers_complete()
        if self.is_draining:
            self.cycle.keep_alive = False  # by which uvicorn says `Connection: close`

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        if not self.pipeline and not self.transport.is_closing():
            self.idle[self] = None
            self._received = 0
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Wait for a client that does not read, though not for ever."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self._close_after(self.limits.write_s)

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        self._stop_write_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, or one whose head is too large, and close."""
        status, reason, message = 400, "invalid_request", "this is no HTTP request"
        if self._is_too_large:
            status, reason = 431, "head_too_large"
            message = "the head of the request is larger than this server takes"
        body = json.dumps(error_body(reason, message, "")).encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head % len(body) + body)
        self.transport.close()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        limits = self.limits
        if self._header_bytes > limits.max_header_bytes or len(self.headers) > limits.max_headers:
            self._is_too_large = True
            raise ValueError("too large")  # which the parser turns into a refusal

    def _close_after(self, wait_s: float) -> asyncio.TimerHandle:
        return self.loop.call_later(wait_s, self.transport.abort)

    def _stop_head_timer(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer:
            self._write_timer.cancel()
            self._write_timer = None
