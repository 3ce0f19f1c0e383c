"""HTTP on raw sockets under asyncio: requests of one kind to one server, and why one has no reply.

Nothing of a reply's body is parsed here, since the client shares the machine with the server that
it times.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

PATIENCE_S = 5.0
POLL_S = 0.2  # between two looks at whether a server is ready

Failure = Literal["", "not_connected", "not_sent", "cut_off", "silence", "unreadable"]
"""Why there is no reply: no connection; the server closed it before anything was sent, or after;
nothing came in time; what came is no HTTP."""


@dataclass(frozen=True, slots=True)
class Got:
    """A reply, or why there is none; `status` is then 0."""

    status: int = 0
    body: bytes = b""
    failure: Failure = ""


class HttpClient:
    """Requests of one kind to one server, over as many connections as are needed."""

    def __init__(
        self,
        url: str,
        patience_s: float = PATIENCE_S,
        what: str = "POST /predict",
        *,
        keep_alive: bool = True,
        api_key: str | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        """`trust` is for https. Raises ValueError for an address that is no HTTP server's."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"host {url!r}: use one such as http://127.0.0.1:8000")
        self._trust = (trust or True) if parts.scheme == "https" else None
        self._host, self._port = parts.hostname, parts.port or (443 if self._trust else 80)
        method, path = what.split()
        lines = [
            f"{method} {parts.path.rstrip('/')}{path} HTTP/1.1",
            f"Host: {parts.netloc.rpartition('@')[2]}",
            "Content-Type: application/json",
        ]
        if not keep_alive:
            lines.append("Connection: close")
        if api_key:
            lines.append(f"Authorization: Bearer {api_key}")
        self._head = "\r\n".join(lines)
        self._patience_s = patience_s
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.opened = 0
        self.under_way = 0

    async def exchange(self, body: bytes = b"", *, request_id: str = "") -> Got:
        """The reply to one request, or why there is none."""
        head = f"{self._head}\r\nContent-Length: {len(body)}\r\n"
        head += f"X-Request-ID: {request_id}\r\n" if request_id else ""
        reader = writer = None
        failure: Failure = "not_connected"
        self.under_way += 1
        try:
            async with asyncio.timeout(self._patience_s):
                reader, writer = self._take_idle() or await self._open()
                if reader.at_eof():
                    failure = "not_sent"
                    raise ConnectionResetError
                failure = "cut_off"
                writer.write(f"{head}\r\n".encode() + body)
                status, reply, reusable = await _read_reply(reader)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            if writer:
                writer.transport.abort()
            if isinstance(error, TimeoutError):
                failure = "silence"
            elif isinstance(error, ValueError):
                failure = "unreadable"
            return Got(failure=failure)
        except asyncio.CancelledError:
            if writer:
                writer.transport.abort()
            raise
        finally:
            self.under_way -= 1
        if reusable:
            self._idle.append((reader, writer))
        else:
            writer.close()
        return Got(status, reply)

    def close(self) -> None:
        """Close every idle connection."""
        while self._idle:
            _, writer = self._idle.pop()  # held: dropped before it is aborted, a writer warns
            writer.transport.abort()

    def _take_idle(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A kept connection that the server has not closed meanwhile."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.transport.abort()
        return None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.opened += 1
        return await asyncio.open_connection(self._host, self._port, ssl=self._trust)


async def _read_reply(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Status, body and whether the connection may be used again."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = re.match(rb"http/1\.([01]) (\d{3}) ", head)
    length = re.search(rb"\r\ncontent-length: *(\d+)\r\n", head)
    closes = b"connection: close" in head
    if status and length:
        body = await reader.readexactly(int(length[1]))
    elif status and b"\r\ntransfer-encoding: chunked\r\n" in head:  # a stream of events
        chunks = []
        while size := int(await reader.readuntil(b"\r\n"), 16):
            chunks.append((await reader.readexactly(size + 2))[:-2])
        await reader.readexactly(2)
        body = b"".join(chunks)
    elif status and closes:
        body = await reader.read()
    else:
        raise ValueError("no HTTP reply")
    return int(status[2]), body, status[1] == b"1" and not closes


async def wait_until_ready(client: HttpClient, limit_s: float) -> bool:
    """Ask until the reply is 200; False when it has not been within `limit_s`."""
    end_s = time.monotonic() + limit_s
    while (await client.exchange()).status != 200:
        if time.monotonic() >= end_s:
            return False
        await asyncio.sleep(POLL_S)
    return True
