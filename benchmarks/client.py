"""Requests of all benchmarks, when each is sent, and what became of it.

A client that waits for one reply before it sends the next hides every stall of the server. So
`send_on_time` sends each request at its scheduled instant, whatever the server does, and times it
from there; `lag_ms` says how late this program itself was. `send_in_turn` waits for each reply: it
tells what one request costs, and keeps a server busy. Nothing is parsed while the clock runs, since
the client shares the machine with the server it times.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean
from typing import Any

from curt.dialogue import ParseFailure
from curt.law.verdict import Term, Verdict
from curt.scores.metrics import score_verdicts
from loadtest._arrivals import arrival_times_s, number_fact, run_open_loop
from loadtest._http import PATIENCE_S, Got, HttpClient
from loadtest._slo import nearest_rank


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
    def full(self) -> bool:
        """Whether a full verdict of the model came."""
        return self.got.status == 200 and not self.answer["degraded"]


async def send_on_time(
    client: HttpClient,
    offsets_s: Iterable[float],
    make_body: Callable[[int], bytes],
    is_lost: Callable[[Sequence[Exchange]], bool] = lambda _: False,
) -> list[Exchange]:
    """Send a request at each offset from now, in order, and wait for every reply.

    `make_body` gives the body of the n-th arrival. The exchanges come in the order of arrival. The
    run stops early once `is_lost` says that no further one matters.
    """
    exchanges: list[Exchange] = []

    async def one(index: int, due_s: float) -> None:
        body = make_body(index)
        sent_s = time.monotonic()
        got = await client.exchange(body)
        exchanges.append(Exchange(index, due_s, sent_s, time.monotonic(), got))

    await run_open_loop(offsets_s, one, lambda: is_lost(exchanges))
    client.close()
    await asyncio.sleep(0)  # transports end in the loop's next turn
    return sorted(exchanges, key=lambda exchange: exchange.index)


async def load(
    url: str,
    facts: Sequence[str],
    rate: float,
    seconds: float,
    deadline_ms: int,
    seed: int,
    api_key: str | None = None,
) -> list[Exchange]:
    """Send Poisson arrivals for so long, no fact twice, and wait for every reply.

    The n-th arrival asks the n-th fact, over and over, each time under another number.
    """
    run = new_run()

    def make_body(index: int) -> bytes:
        return write_body(number_fact(facts[index % len(facts)], run, index), deadline_ms)

    client = HttpClient(url, deadline_ms / 1e3 + PATIENCE_S, api_key=api_key)
    return await send_on_time(client, arrivals_for(rate, seed, seconds), make_body)


async def ask(client: HttpClient, body: bytes, index: int = 0) -> Exchange:
    """One request, sent now."""
    sent_s = time.monotonic()
    got = await client.exchange(body)
    return Exchange(index, sent_s, sent_s, time.monotonic(), got)


async def send_in_turn(
    client: HttpClient, bodies: Iterable[bytes], at_once: int = 1
) -> list[Exchange]:
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


def exact_share(exchanges: Sequence[Exchange], verdicts: Sequence[Verdict]) -> float | None:
    """Share of all requests that got the right charge, article and term; None for no requests.

    One without a verdict is wrong; the classifier's counts as what it says. `verdicts` are those of
    the facts that were asked, over and over.
    """
    if not exchanges:
        return None
    told = [read_verdict(each.answer) for each in exchanges]
    return score_verdicts(told, [verdicts[each.index % len(verdicts)] for each in exchanges])[
        "exact"
    ]


def new_run() -> int:
    """A number that no earlier run had, for `number_fact`."""
    return time.time_ns() // 1_000_000


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
