"""Ask a server for several times what it can do, and see what its clients get.

    python -m benchmarks.overload --url http://127.0.0.1:8000 --seconds 120

First the capacity: open-loop Poisson arrivals at rising rates, until the good answers (full
verdicts of the model within the deadline) a second fall behind the arrivals and rise no more; the
most there were is the capacity. Then arrivals at a multiple of it. Clients are timed from their
scheduled instant, on raw sockets, and the report says how late this program itself was: the loop's
timers alone are up to a millisecond; where it is many, the figures are its own, not the server's.
"""

from __future__ import annotations

import asyncio
import json
import logging
import platform
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import urlsplit

from curt.config import Config, load_config
from curt.files import write_json
from curt.logs import configure_logging
from loadtest._arrivals import arrival_times_s, load_facts, number_fact

logger = logging.getLogger(__name__)

PATIENCE_S = 5.0  # beyond the deadline; a request without an answer by then is lost
LATE_MS = 10.0  # an admitted answer may be this much later than its deadline
REFUSAL_MS = 50.0
BETTER = 1.05  # times the most so far; less is noise
KEPT_UP = 0.9  # of the arrivals answered well; below it the rate is beyond the capacity


class OverloadConfig(Config):
    """What to load and how much."""

    url: str = "http://127.0.0.1:8000"
    """The server; only plain HTTP."""
    multiple: float = 5.0
    """Arrivals, as a multiple of the capacity."""
    seconds: float = 120.0
    """How long to overload."""
    capacity: float | None = None
    """Good answers a second the server can give; measured first when left out."""
    ramp_start: float = 4.0
    """First rate of the measurement of the capacity."""
    ramp_factor: float = 1.5
    """Each rate to the one before."""
    ramp_seconds: float = 6.0
    """How long each rate lasts."""
    settle_seconds: float = 3.0
    """Between two rates, so that one's queue is not the other's."""
    deadline_ms: int = 400
    """Of every request."""
    chars: int = 300
    """Length facts are cut to."""
    seed: int = 1
    """Of the arrivals."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """Where the facts come from."""
    report: Path = Path("benchmarks/overload.json")
    """File of results."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What one client got. `status` is 0 when nothing came.

    `lag_ms` is how late this program sent the request; `latency_ms` counts from the scheduled
    instant, `service_ms` from the instant it was sent.
    """

    status: int
    good: bool
    degraded: bool
    lag_ms: float
    latency_ms: float
    service_ms: float
    thinking_tokens: int = 0


class Client:
    """Requests over kept-alive connections, as many as are needed at once."""

    def __init__(self, host: str, port: int, patience_s: float) -> None:
        self._host, self._port, self._patience_s = host, port, patience_s
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.opened = 0

    async def ask(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the reply to one request; status 0 when none came."""
        head = (
            "POST /predict HTTP/1.1\r\nHost: curt\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        reader = writer = None
        try:
            async with asyncio.timeout(self._patience_s):
                reader, writer = self._idle.pop() if self._idle else await self._open()
                writer.write(head.encode() + body)
                status, reply, reusable = await _read_reply(reader)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
            if writer:
                writer.transport.abort()
            return 0, b""
        if reusable:
            self._idle.append((reader, writer))
        else:
            writer.close()
        return status, reply

    def close(self) -> None:
        """Close every idle connection."""
        while self._idle:
            self._idle.pop()[1].transport.abort()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.opened += 1
        return await asyncio.open_connection(self._host, self._port)


async def _read_reply(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(b" ", 2)[1])
    length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
    body = await reader.readexactly(length)
    return status, body, b"connection: close" not in head


def main() -> None:
    """Measure and write the results; exits with a message on bad input."""
    config = load_config(OverloadConfig)
    configure_logging()
    try:
        results = asyncio.run(measure(config))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    write_json(config.report, results)
    logger.info("%s: passed %s", config.report, results["passed"])


async def measure(config: OverloadConfig) -> dict[str, Any]:
    """Find the capacity, overload, and judge."""
    facts = [fact[: config.chars] for fact in load_facts(config.cases)]
    ramp: list[dict[str, Any]] = []
    capacity = config.capacity
    if capacity is None:
        ramp = await find_capacity(config, facts)
        capacity = max(row["goodput_per_s"] for row in ramp)
    if capacity <= 0:
        raise ValueError(f"a capacity of {capacity} a second at {config.url}: is it ready?")
    rate = capacity * config.multiple
    logger.info("capacity %.1f/s; now %.1f/s for %.0f s", capacity, rate, config.seconds)
    replies = await load(config, facts, rate, config.seconds)
    row = summarise(replies, rate, config.seconds, config.deadline_ms)
    share = row["goodput_per_s"] / capacity
    return {
        "url_host_is_local": urlsplit(config.url).hostname in ("127.0.0.1", "localhost"),
        "machine": {"python": platform.python_version(), "processor": platform.machine()},
        "deadline_ms": config.deadline_ms,
        "capacity_per_s": capacity,
        "capacity_given": config.capacity is not None,
        "ramp": ramp,
        "multiple": config.multiple,
        "overload": row,
        "goodput_of_capacity": share,
        "passed": {
            "goodput_at_least_90_percent_of_capacity": share >= 0.9,
            f"every_refusal_under_{REFUSAL_MS:.0f}_ms": row["refusal_ms"].get("max", 0)
            < REFUSAL_MS,
            f"no_answer_later_than_deadline_and_{LATE_MS:.0f}_ms": row["later_than_allowed"] == 0,
            "nothing_lost": row["statuses"].get("0", 0) == 0,
        },
    }


async def find_capacity(config: OverloadConfig, facts: Sequence[str]) -> list[dict[str, Any]]:
    """Summaries at rising rates, up to two beyond what the server keeps up with and no better.

    Raises ValueError when it does not even keep up with the first: then nothing was measured.
    """
    rows: list[dict[str, Any]] = []
    rate, most, worse = config.ramp_start, 0.0, 0
    while worse < 2:
        replies = await load(config, facts, rate, config.ramp_seconds)
        row = summarise(replies, rate, config.ramp_seconds, config.deadline_ms)
        rows.append(row)
        logger.info("%.1f/s: %.1f good answers a second", rate, row["goodput_per_s"])
        behind = row["goodput_per_s"] < KEPT_UP * row["arrived"] / config.ramp_seconds
        if behind and not rows[1:]:
            raise ValueError(
                f"{row['goodput_per_s']:.1f} good answers a second at {rate:.1f}/s: the server "
                "falls behind at the first rate; is it ready, is the machine busy with other work? "
                "Else give a lower --ramp_start"
            )
        better = row["goodput_per_s"] > BETTER * most
        worse = worse + 1 if behind and not better else 0
        most = max(most, row["goodput_per_s"])
        rate *= config.ramp_factor
        await asyncio.sleep(config.settle_seconds)
    return rows


async def load(
    config: OverloadConfig, facts: Sequence[str], rate: float, seconds: float
) -> list[Reply]:
    """Send Poisson arrivals for so long, whatever the server does, and wait for every reply."""
    host, port = _address(config.url)
    client = Client(host, port, config.deadline_ms / 1e3 + PATIENCE_S)
    run = time.time_ns() // 1_000_000
    replies: list[Reply] = []
    bodies = [
        _body(number_fact(fact, run, -1), config.deadline_ms).split(b"-1", 1) for fact in facts
    ]

    async def one(index: int, due_s: float) -> None:
        before, after = bodies[index % len(bodies)]
        body = before + str(index).encode() + after
        sent_s = time.monotonic()
        status, text = await client.ask(body)
        now_s = time.monotonic()
        replies.append(_judge(status, text, due_s, sent_s, now_s, config.deadline_ms))

    tasks: set[asyncio.Task[None]] = set()
    start_s = time.monotonic() + 0.1
    for index, offset_s in enumerate(arrival_times_s(rate, config.seed)):
        if offset_s >= seconds:
            break
        due_s = start_s + offset_s
        if (wait_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)
        task = asyncio.create_task(one(index, due_s))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks)
    client.close()
    return replies


def summarise(
    replies: Sequence[Reply], rate: float, seconds: float, deadline_ms: float
) -> dict[str, Any]:
    """Figures of one rate. A miss is whatever is no full verdict within the deadline."""
    answers = [reply for reply in replies if reply.status == 200]
    refusals = [reply for reply in replies if reply.status == 503]
    good = sum(reply.good for reply in replies)
    return {
        "rate_per_s": rate,
        "seconds": seconds,
        "arrived": len(replies),
        "statuses": dict(Counter(str(reply.status) for reply in replies)),
        "goodput_per_s": good / seconds,
        "misses": len(replies) - good,
        "miss_share": (len(replies) - good) / len(replies) if replies else 0.0,
        "mean_thinking_tokens": fmean(r.thinking_tokens for r in answers) if answers else None,
        "degraded": sum(reply.degraded for reply in answers),
        "later_than_deadline": sum(reply.service_ms > deadline_ms for reply in answers),
        "later_than_allowed": sum(reply.service_ms > deadline_ms + LATE_MS for reply in answers),
        "answer_ms": quantiles([reply.latency_ms for reply in answers]),
        "answer_from_sending_ms": quantiles([reply.service_ms for reply in answers]),
        "refusal_ms": quantiles([reply.service_ms for reply in refusals]),
        "refusals_of_50_ms_or_more": sum(reply.service_ms >= REFUSAL_MS for reply in refusals),
        "client_lag_ms": quantiles([reply.lag_ms for reply in replies]),
    }


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


def _judge(
    status: int, text: bytes, due_s: float, sent_s: float, now_s: float, deadline_ms: float
) -> Reply:
    answer = json.loads(text) if status == 200 else {}
    degraded = bool(answer.get("degraded"))
    latency_ms = (now_s - due_s) * 1e3
    good = status == 200 and not degraded and latency_ms <= deadline_ms
    return Reply(
        status,
        good,
        degraded,
        lag_ms=(sent_s - due_s) * 1e3,
        latency_ms=latency_ms,
        service_ms=(now_s - sent_s) * 1e3,
        thinking_tokens=answer["thinking"]["tokens"] if answer else 0,
    )


def _body(fact: str, deadline_ms: int) -> bytes:
    return json.dumps({"fact": fact, "deadline_ms": deadline_ms}, ensure_ascii=False).encode()


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{url} is no plain HTTP address: use http://host:port")
    return parts.hostname, parts.port or 80


if __name__ == "__main__":
    main()
