"""Requests sent when they are due, whatever the server does, and what became of each.

A client that waits for one reply before it sends the next hides every stall of the server. Here
each request leaves at its scheduled instant, on raw sockets, and is timed from it; `lag_ms` says
how late this program itself was.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal
from urllib.parse import urlsplit

from loadtest._arrivals import arrival_times_s

PATIENCE_S = 5.0  # beyond the deadline; a request without an answer by then is lost
LEAD_S = 0.1  # before the first arrival

Failure = Literal["", "not_connected", "not_sent", "cut_off", "silence", "unreadable"]
"""Why there is no reply: no connection; the server closed it before anything was sent, or after;
nothing came in time; what came is no HTTP."""


@dataclass(frozen=True, slots=True)
class Got:
    """A reply, or why there is none; `status` is then 0."""

    status: int = 0
    body: bytes = b""
    failure: Failure = ""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its reply, with `time.monotonic()` instants.

    `index` numbers the arrivals of a run from 0; the request was due at `due_s`.
    """

    index: int
    due_s: float
    sent_s: float
    done_s: float
    got: Got

    @property
    def lag_ms(self) -> float:
        """How late this program sent the request."""
        return (self.sent_s - self.due_s) * 1e3

    @property
    def latency_ms(self) -> float:
        """From the scheduled instant to the reply."""
        return (self.done_s - self.due_s) * 1e3

    @property
    def service_ms(self) -> float:
        """From sending to the reply."""
        return (self.done_s - self.sent_s) * 1e3

    @property
    def answer(self) -> dict[str, Any]:
        """The reply's JSON where it is an answer, else empty."""
        return json.loads(self.got.body) if self.got.status == 200 else {}


class Client:
    """Requests over kept-alive connections, as many as are needed at once."""

    def __init__(self, host: str, port: int, patience_s: float) -> None:
        self._host, self._port, self._patience_s = host, port, patience_s
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.opened = 0
        self.under_way = 0

    async def ask(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the reply to one request; status 0 when none came."""
        got = await self.exchange(body)
        return got.status, got.body

    async def exchange(
        self, body: bytes, *, what: str = "POST /predict", request_id: str = ""
    ) -> Got:
        """The reply to one request, or why there is none."""
        head = f"{what} HTTP/1.1\r\nHost: curt\r\nContent-Type: application/json\r\n"
        head += f"X-Request-ID: {request_id}\r\n" if request_id else ""
        head += f"Content-Length: {len(body)}\r\n\r\n"
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
                writer.write(head.encode() + body)
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
        return await asyncio.open_connection(self._host, self._port)


async def _read_reply(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Status, body (a chunked one as it came) and whether the connection may be used again."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = re.match(rb"http/1\.([01]) (\d{3}) ", head)
    length = re.search(rb"\r\ncontent-length: *(\d+)\r\n", head)
    if status and length:
        body = await reader.readexactly(int(length[1]))
    elif status and b"\r\ntransfer-encoding: chunked\r\n" in head:  # a stream of events
        body = await reader.readuntil(b"\r\n0\r\n\r\n")
    else:
        raise ValueError("no HTTP reply of a stated length")
    return int(status[2]), body, status[1] == b"1" and b"connection: close" not in head


async def send_on_time(
    client: Client, offsets_s: Iterable[float], make_body: Callable[[int], bytes]
) -> list[Exchange]:
    """Send a request at each offset from now, in order, and wait for every reply.

    `make_body` gives the body of the n-th arrival. The exchanges come in the order of arrival.
    """
    exchanges: list[Exchange] = []

    async def one(index: int, due_s: float) -> None:
        body = make_body(index)
        sent_s = time.monotonic()
        got = await client.exchange(body)
        exchanges.append(Exchange(index, due_s, sent_s, time.monotonic(), got))

    tasks: list[asyncio.Task[None]] = []
    start_s = time.monotonic() + LEAD_S
    for index, offset_s in enumerate(offsets_s):
        due_s = start_s + offset_s
        if (wait_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        tasks.append(asyncio.create_task(one(index, due_s)))
    await asyncio.gather(*tasks)
    client.close()
    return sorted(exchanges, key=lambda exchange: exchange.index)


def arrivals_for(rate: float, seed: int, seconds: float) -> Iterable[float]:
    """Poisson arrivals for so long, as seconds from the start."""
    return takewhile(lambda offset_s: offset_s < seconds, arrival_times_s(rate, seed))


def write_body(fact: str, deadline_ms: int) -> bytes:
    """The body of a request."""
    return json.dumps({"fact": fact, "deadline_ms": deadline_ms}, ensure_ascii=False).encode()


def fill_up(fact: str, chars: int) -> str:
    """A fact of exactly so many characters: a longer one is cut, a shorter one told again.

    What is told again loses its beginning, so that the fact stands there whole at the end.
    """
    if len(fact) >= chars:
        return fact[:chars]
    return (fact * (chars // len(fact) + 1))[-chars:]


def read_address(url: str) -> tuple[str, int]:
    """Host and port. Raises ValueError for anything but plain HTTP."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{url} is no plain HTTP address: use http://host:port")
    return parts.hostname, parts.port or 80


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99, p99.9 and the greatest, each a value that occurred; empty for none."""
    ordered = sorted(values)
    if not ordered:
        return {}
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p999": 0.999, "max": 1.0}
    last = len(ordered) - 1
    return {
        name: round(ordered[min(last, int(share * len(ordered)))], 3)
        for name, share in shares.items()
    }
