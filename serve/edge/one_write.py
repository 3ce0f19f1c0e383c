"""Replies that leave in one piece.

uvicorn writes a reply's head and its body apart. Each write is a system call, a segment on the
wire and a client that is woken up, the first time for nothing it can use.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

END_OF_HEAD = b"\r\n\r\n"


class OneWriteTransport:
    """A transport that holds a reply's head until the body is written, in the same turn.

    A head that nothing follows in the same turn of the event loop goes out at its end, so that a
    stream begins when it did before. Everything but `write` and the ways to close is the
    transport's own.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held = b""
        self._loop = asyncio.get_running_loop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write, or hold what ends like a head for as long as this turn lasts."""
        if self._held:
            data, self._held = self._held + data, b""
        elif data.endswith(END_OF_HEAD) and data.startswith(b"HTTP/"):
            self._held = data
            self._loop.call_soon(self._release)
            return
        self._transport.write(data)

    def close(self) -> None:
        """Close once everything is written."""
        self._release()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._held = b""
        self._transport.abort()

    def _release(self) -> None:
        if self._held:
            data, self._held = self._held, b""
            if not self._transport.is_closing():
                self._transport.write(data)


class OneWriteProtocol(HttpToolsProtocol):
    """uvicorn's own protocol over such a transport."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(OneWriteTransport(transport))  # type: ignore[arg-type]
