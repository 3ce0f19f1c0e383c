"""A client that waits for each reply: for what one request costs, and to keep a server busy.

How a server stands arrivals is another question, and `open_loop` asks it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.client import Client, read_address, write_body
from loadtest._arrivals import number_fact


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply as its client saw it; `reply` is empty unless the status is 200."""

    status: int
    reply: dict[str, Any]
    ms: float


class Asker:
    """Asks one server, one request after another or so many at once, over kept connections."""

    def __init__(self, url: str, patience_s: float = 90.0) -> None:
        self._client = Client(*read_address(url), patience_s)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._close())
        self._runner.close()

    def ask(self, fact: str, deadline_ms: int) -> Answer:
        """One request, and how long it took."""
        return self._runner.run(self._ask(fact, deadline_ms))

    def keep_asking(
        self, seconds: float, facts: Iterator[str], deadline_ms: int, at_once: int
    ) -> tuple[list[Answer], float]:
        """Keep so many requests under way for so long: the answers, and the seconds it took."""
        return self._runner.run(self._keep_asking(seconds, facts, deadline_ms, at_once))

    async def _ask(self, fact: str, deadline_ms: int) -> Answer:
        body = write_body(fact, deadline_ms)
        started_s = time.perf_counter()
        status, text = await self._client.ask(body)
        ms = (time.perf_counter() - started_s) * 1e3
        return Answer(status, json.loads(text) if status == 200 else {}, ms)

    async def _keep_asking(
        self, seconds: float, facts: Iterator[str], deadline_ms: int, at_once: int
    ) -> tuple[list[Answer], float]:
        answers: list[Answer] = []
        started_s = time.perf_counter()

        async def work() -> None:
            while time.perf_counter() - started_s < seconds:
                answers.append(await self._ask(next(facts), deadline_ms))

        await asyncio.gather(*(work() for _ in range(at_once)))
        return answers, time.perf_counter() - started_s

    async def _close(self) -> None:
        self._client.close()
        await asyncio.sleep(0)  # transports end in the loop's next turn


def endless(facts: Sequence[str]) -> Iterator[str]:
    """The facts again and again, each time under a number of its own: no cache can answer."""
    run, index = time.time_ns() // 1_000_000, 0
    while True:
        yield number_fact(facts[index % len(facts)], run, index)
        index += 1
