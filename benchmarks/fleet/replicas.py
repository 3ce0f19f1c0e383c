"""Two or more real servers of this checkout, asked in turn, and what each reply took."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from benchmarks.client import (
    PATIENCE_S,
    Client,
    Exchange,
    Got,
    arrivals_for,
    new_run,
    send_on_time,
    write_body,
)
from benchmarks.fleet.service import Sample, Service, fit_service, share_beside
from benchmarks.run import serve
from curt.artifact import load_manifest
from curt.dialogue import normalise_fact
from loadtest._arrivals import number_fact

MODELS_OWN = (None, "unreadable_answer", "answer_too_long")  # no want of time
MOSTLY = 0.9  # of the requests


class InTurn:
    """Requests to several servers, one after the other: a balancer that takes no time."""

    def __init__(self, urls: Sequence[str], patience_s: float) -> None:
        self._servers = [Client(url, patience_s) for url in urls]
        self._turn = count()

    async def exchange(self, body: bytes) -> Got:
        """The reply of the next server, or why there is none."""
        return await self._servers[next(self._turn) % len(self._servers)].exchange(body)

    def close(self) -> None:
        """Close every idle connection."""
        for server in self._servers:
            server.close()


@dataclass(frozen=True, slots=True)
class Asked:
    """A measured request, the fact's length, and the reply's parsed JSON (empty for none)."""

    exchange: Exchange
    chars: int
    reply: dict[str, Any]

    @classmethod
    def of(cls, exchange: Exchange, chars: int) -> Asked:
        """A request whose reply is parsed once."""
        return cls(exchange, chars, exchange.answer)

    @property
    def answered(self) -> bool:
        """Whether the model wrote its answer to the end, readable or not."""
        return bool(self.reply) and self.reply["degraded_reason"] in MODELS_OWN

    @property
    def full(self) -> bool:
        """Whether it is a full verdict of the model."""
        return bool(self.reply) and not self.reply["degraded"]

    @property
    def at_worker_s(self) -> tuple[float, float]:
        """When it was with a worker, as near as a client can tell."""
        times = self.reply["timings_ms"]
        outside_s = max(0.0, (self.exchange.service_ms - times["total"]) / 1e3)
        front_s = (times["total"] - times["queue"] - times["prefill"] - times["decode"]) / 1e3
        end_s = self.exchange.done_s - outside_s / 2 - max(0.0, front_s)
        return end_s - (times["prefill"] + times["decode"]) / 1e3, end_s


@contextlib.contextmanager
def running(model: Path, replicas: int, **settings: object) -> Iterator[list[str]]:
    """Serve a model folder several times, on ports that are free, until the block ends.

    Yields the addresses. Raises StartError.
    """
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(serve(model, **settings)).url for _ in range(replicas)]


async def ask(
    urls: Sequence[str],
    facts: Sequence[str],
    *,
    rate_per_s: float,
    seconds: float,
    seed: int,
    deadlines_ms: tuple[int, int],
) -> list[Asked]:
    """Poisson arrivals for so long, no fact like another, deadlines between two bounds."""
    source = random.Random(seed)
    run_number = new_run()
    low, high = deadlines_ms
    chars: list[int] = []

    def make_body(index: int) -> bytes:
        fact = number_fact(source.choice(facts), run_number, index)
        chars.append(len(fact))
        # Most with the longer deadline: that is how the model thinks when it has the time.
        deadline_ms = high if source.random() < 0.5 else source.randint(low, high)
        return write_body(fact, deadline_ms)

    client = InTurn(urls, high / 1e3 + PATIENCE_S)
    exchanges = await send_on_time(client, arrivals_for(rate_per_s, seed, seconds), make_body)
    return [Asked.of(each, length) for each, length in zip(exchanges, chars, strict=True)]


def fit_replies(model: Path, facts: Sequence[str], asked: Sequence[Asked]) -> Service:
    """Service times from replies of servers of a model folder."""
    manifest = load_manifest(model)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    texts = [normalise_fact(fact) for fact in facts[:200]]
    tokens = sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
    return fit_service(
        read_samples(asked),
        tokens_per_char=tokens / sum(map(len, texts)),
        max_fact_tokens=manifest.max_fact_tokens,
        max_thinking_tokens=manifest.max_thinking_tokens,
    )


def read_samples(asked: Sequence[Asked]) -> list[Sample]:
    """What answers of the model took, with how much was under way beside each.

    Only whole answers: one that a deadline cut does not tell how long it would have been.
    """
    answered = [each for each in asked if each.answered]
    spans = sorted(each.at_worker_s for each in answered)
    shares = [
        share_beside(own, [span for span in spans if span != own])
        for own in (each.at_worker_s for each in answered)
    ]
    alone_ms = [
        each.reply["timings_ms"]["queue"]
        for each, share in zip(answered, shares, strict=True)
        if not share
    ]
    # A server with nothing else to do takes so long, at most mostly, to hand a request over.
    handing_ms = float(np.quantile(alone_ms, MOSTLY)) if alone_ms else 0.0
    samples = []
    for each, beside in zip(answered, shares, strict=True):
        times, thinking = each.reply["timings_ms"], each.reply["thinking"]
        waited_ms = max(0.0, times["queue"] - handing_ms)
        front_ms = times["total"] - waited_ms - times["prefill"] - times["decode"]
        samples.append(
            Sample(
                chars=each.chars,
                stated_budget=thinking["stated_budget"],
                thinking_tokens=thinking["tokens"],
                cut=thinking["cut"],
                readable=each.full,
                prefill_ms=times["prefill"],
                decode_ms=times["decode"],
                front_ms=max(0.0, front_ms),
                outside_ms=max(0.0, each.exchange.latency_ms - times["total"]),
                beside=beside,
            )
        )
    return samples
