"""The one client of all benchmarks: requests on raw sockets, and what became of each.

A client that waits for one reply before it sends the next hides every stall of the server. So
`send_on_time` sends each request at its scheduled instant, whatever the server does, and times it
from there; `lag_ms` says how late this program itself was. `send_in_turn` waits for each reply: it
tells what one request costs, and keeps a server busy. Nothing is parsed while the clock runs, since
the client shares the machine with the server it times.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from statistics import fmean
from typing import Any, Literal
from urllib.parse import urlsplit

from curt.dialogue import ParseFailure
from curt.law.verdict import Term, Verdict
from loadtest._arrivals import arrival_times_s, number_fact
from loadtest._slo import nearest_rank

PATIENCE_S = 5.0  # beyond the deadline; a request without an answer by then is lost
LEAD_S = 0.1  # before the first arrival
LOOK_S = 0.05  # between two looks at whether a run is lost

MODELS_OWN = (None, "unreadable_answer", "answer_too_long")  # reasons that are no lack of time

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

    `index` numbers the requests of a run from 0; the request was due at `due_s`.
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

    def require_answer(self) -> dict[str, Any]:
        """The answer. Raises RuntimeError where a request in no hurry got none."""
        if self.got.status != 200:
            raise RuntimeError(
                f"status {self.got.status} {self.got.failure} to a request in no hurry: is the "
                "machine busy or stuck?"
            )
        return self.answer

    @property
    def by_model(self) -> bool:
        """Whether the model wrote its answer to the end, readable or not."""
        return self.answer.get("degraded_reason", "no answer") in MODELS_OWN


class Client:
    """Requests of one kind to one server, over as many kept-alive connections as are needed."""

    def __init__(
        self, url: str, patience_s: float = PATIENCE_S, what: str = "POST /predict"
    ) -> None:
        """Raises ValueError for anything but plain HTTP."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url} is no plain HTTP address: use http://host:port")
        self._host, self._port = parts.hostname, parts.port or 80
        self._patience_s, self._what = patience_s, what
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.opened = 0
        self.under_way = 0

    async def exchange(self, body: bytes) -> Got:
        """The reply to one request, or why there is none."""
        head = f"{self._what} HTTP/1.1\r\nHost: curt\r\nContent-Type: application/json\r\n"
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
    client: Client | Balancer,
    offsets_s: Iterable[float],
    make_body: Callable[[int], bytes],
    is_lost: Callable[[Sequence[Exchange]], bool] | None = None,
) -> list[Exchange]:
    """Send a request at each offset from now, in order, and wait for every reply.

    `make_body` gives the body of the n-th arrival. The exchanges come in the order of arrival. The
    run stops early, giving up what is under way, once `is_lost` says that no reply matters.
    """
    exchanges: list[Exchange] = []
    tasks: set[asyncio.Task[None]] = set()

    async def one(index: int, due_s: float, body: bytes) -> None:
        sent_s = time.monotonic()
        got = await client.exchange(body)
        exchanges.append(Exchange(index, due_s, sent_s, time.monotonic(), got))

    start_s = time.monotonic() + LEAD_S
    for index, offset_s in enumerate(offsets_s):
        due_s, body = start_s + offset_s, make_body(index)
        if (wait_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        if is_lost and is_lost(exchanges):
            break
        task = asyncio.create_task(one(index, due_s, body))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    while tasks and not (is_lost and is_lost(exchanges)):
        await asyncio.wait(set(tasks), timeout=LOOK_S if is_lost else None)
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    client.close()
    await asyncio.sleep(0)  # transports end in the loop's next turn
    return sorted(exchanges, key=lambda exchange: exchange.index)


class Balancer:
    """A client of several servers that asks the one with the fewest requests under way."""

    def __init__(self, urls: Sequence[str], patience_s: float) -> None:
        self._servers = [Client(url, patience_s) for url in urls]

    async def exchange(self, body: bytes) -> Got:
        """The reply of the chosen server, or why there is none."""
        server = min(self._servers, key=lambda each: each.under_way)
        self._servers.remove(server)
        self._servers.append(server)  # equally loaded servers take turns
        return await server.exchange(body)

    def close(self) -> None:
        """Close every idle connection."""
        for server in self._servers:
            server.close()


async def load(
    urls: Sequence[str],
    facts: Sequence[str],
    rate: float,
    seconds: float,
    deadline_ms: int,
    seed: int,
) -> list[Exchange]:
    """Send Poisson arrivals for so long, no fact twice, and wait for every reply."""
    run_number = new_run()
    # Written once: at five times the capacity even this would be felt.
    bodies = [
        write_body(number_fact(fact, run_number, -1), deadline_ms).split(b"-1", 1) for fact in facts
    ]

    def make_body(index: int) -> bytes:
        before, after = bodies[index % len(bodies)]
        return before + str(index).encode() + after

    client = Balancer(urls, deadline_ms / 1e3 + PATIENCE_S)
    return await send_on_time(client, arrivals_for(rate, seed, seconds), make_body)


async def ask(client: Client, body: bytes, index: int = 0) -> Exchange:
    """One request, sent now."""
    sent_s = time.monotonic()
    got = await client.exchange(body)
    return Exchange(index, sent_s, sent_s, time.monotonic(), got)


async def send_in_turn(client: Client, bodies: Iterable[bytes], at_once: int = 1) -> list[Exchange]:
    """Send every body, so many at once, each as soon as an earlier reply is there."""
    exchanges: list[Exchange] = []
    waiting = iter(enumerate(bodies))

    async def work() -> None:
        for index, body in waiting:
            exchanges.append(await ask(client, body, index))

    await asyncio.gather(*(work() for _ in range(at_once)))
    client.close()
    await asyncio.sleep(0)  # transports end in the loop's next turn
    return sorted(exchanges, key=lambda exchange: exchange.index)


def arrivals_for(rate: float, seed: int, seconds: float) -> Iterator[float]:
    """Poisson arrivals for so long, as seconds from the start."""
    return takewhile(lambda offset_s: offset_s < seconds, arrival_times_s(rate, seed))


def write_body(fact: str, deadline_ms: int) -> bytes:
    """The body of a request."""
    return json.dumps({"fact": fact, "deadline_ms": deadline_ms}, ensure_ascii=False).encode()


def read_verdict(reply: Mapping[str, Any]) -> Verdict | ParseFailure:
    """The verdict that a reply of `POST /predict` shows, or that it shows none."""
    if not reply.get("defendants"):
        return ParseFailure("no verdict")
    told = reply["defendants"][0]
    term = told["term"]
    return Verdict(
        charges=tuple(charge["name"] for charge in told["charges"]),
        articles=tuple(article["id"] for article in told["articles"]),
        term=Term(term["kind"], term["months"], term["probation_months"]),
        fine_yuan=told["fine_yuan"] or 0,
    )


def new_run() -> int:
    """A number that no earlier run had, for `number_fact`."""
    return time.time_ns() // 1_000_000


def endless(facts: Sequence[str]) -> Iterator[str]:
    """The facts again and again, each time under a number of its own: no cache can answer."""
    run = new_run()
    return (number_fact(facts[index % len(facts)], run, index) for index in count())


def fill_up(fact: str, chars: int) -> str:
    """A fact of exactly so many characters: a longer one is cut, a shorter one told again.

    What is told again loses its beginning, so that the fact stands there whole at the end.
    """
    if len(fact) >= chars:
        return fact[:chars]
    return (fact * (chars // len(fact) + 1))[-chars:]


def thinking_of(exchanges: Sequence[Exchange]) -> dict[str, Any]:
    """Tokens that the model's answers took, were allowed, and how many were cut short."""
    told = [e.answer["thinking"] for e in exchanges if e.answer.get("source") == "model"]
    return {
        "thinking_used": quantiles([row["tokens"] for row in told]),
        "thinking_allowed": quantiles([row["allowed"] for row in told]),
        "thinking_cut_share": fmean(row["cut"] for row in told) if told else None,
    }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99, p99.9 and the greatest, each a value that occurred; empty for none."""
    if not values:
        return {}
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p999": 0.999, "max": 1.0}
    return {name: round(nearest_rank(values, share), 3) for name, share in shares.items()}
