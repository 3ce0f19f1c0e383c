"""Two or more real servers of this checkout, asked in turn, and what each reply took."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer

from benchmarks.client import PATIENCE_S, Client, Exchange, Got, send_on_time, write_body
from benchmarks.fleet.fleet import poisson
from benchmarks.fleet.service import Sample, Service, fit_service, share_beside
from benchmarks.run import HOST, serve
from curt.artifact import load_manifest
from curt.dialogue import normalise_fact
from loadtest._arrivals import load_facts, number_fact

MODELS_OWN = (None, "unreadable_answer", "answer_too_long")  # no want of time
SETTLE_S = 1.0
WARM_UP_PER_S, WARM_UP_S = 10.0, 3.0
MOSTLY = 0.9  # of the requests


class InTurn:
    """Requests to several servers, one after the other: a balancer that takes no time."""

    def __init__(self, ports: Sequence[int], patience_s: float) -> None:
        self._servers = [Client(f"http://{HOST}:{port}", patience_s) for port in ports]
        self._turn = count()

    async def exchange(self, body: bytes) -> Got:
        """The reply of the next server, or why there is none."""
        return await self._servers[next(self._turn) % len(self._servers)].exchange(body)

    def close(self) -> None:
        """Close every idle connection."""
        for server in self._servers:
            server.close()


class Asked(BaseModel):
    """A measured request: when it was due, how long the reply took, and the fact's length.

    `reply` holds the reply's status, budget and timings, and not a word of its case.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    due_s: float
    sent_s: float
    done_s: float
    chars: int
    status: int
    reply: dict[str, Any]

    @property
    def latency_ms(self) -> float:
        """From the scheduled instant to the reply."""
        return (self.done_s - self.due_s) * 1e3

    @property
    def answered(self) -> bool:
        """Whether the model wrote its answer to the end, readable or not."""
        return self.status == 200 and self.reply["degraded_reason"] in MODELS_OWN

    @property
    def full(self) -> bool:
        """Whether it is a full verdict of the model."""
        return self.status == 200 and not self.reply["degraded"]


@dataclass(frozen=True, slots=True)
class Replicas:
    """Running servers and the limits of their model."""

    ports: tuple[int, ...]
    tokens_per_char: float
    max_fact_tokens: int
    max_thinking_tokens: int

    @classmethod
    @contextlib.contextmanager
    def running(
        cls,
        model: Path,
        *,
        replicas: int,
        first_port: int,
        facts: Sequence[str],
        **settings: object,
    ) -> Iterator[Self]:
        """Serve a model folder several times until the block ends. Raises RuntimeError."""
        manifest = load_manifest(model)
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        tokenizer.no_truncation()
        texts = [normalise_fact(fact) for fact in facts[:200]]
        tokens = sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
        ports = tuple(range(first_port, first_port + replicas))
        with contextlib.ExitStack() as stack:
            for port in ports:
                stack.enter_context(serve(model, port=port, **settings))
            yield cls(
                ports,
                tokens / sum(map(len, texts)),
                manifest.max_fact_tokens,
                manifest.max_thinking_tokens,
            )

    def fit(self, asked: Sequence[Asked]) -> Service:
        """Service times from replies of these servers."""
        return fit_service(
            read_samples(asked),
            tokens_per_char=self.tokens_per_char,
            max_fact_tokens=self.max_fact_tokens,
            max_thinking_tokens=self.max_thinking_tokens,
        )


def ask(
    replicas: Replicas,
    facts: Sequence[str],
    *,
    rate_per_s: float,
    seconds: float,
    seed: int,
    deadlines_ms: tuple[int, int],
) -> list[Asked]:
    """Poisson arrivals for so long, no fact like another, deadlines between two bounds."""
    source = random.Random(seed)
    run = time.time_ns() // 1_000_000
    low, high = deadlines_ms
    chars: dict[int, int] = {}

    def make_body(index: int) -> bytes:
        fact = number_fact(source.choice(facts), run, index)
        chars[index] = len(fact)
        # Most with the longer deadline: that is how the model thinks when it has the time.
        deadline_ms = high if source.random() < 0.5 else source.randint(low, high)
        return write_body(fact, deadline_ms)

    client = InTurn(replicas.ports, high / 1e3 + PATIENCE_S)
    offsets_s = list(poisson(rate_per_s, seconds, seed))
    exchanges = asyncio.run(send_on_time(client, offsets_s, make_body))
    return [_note(exchange, chars[exchange.index]) for exchange in exchanges]


def warm_up(replicas: Replicas, facts: Sequence[str]) -> None:
    """Let the servers learn how quick they are."""
    ask(
        replicas,
        facts,
        rate_per_s=WARM_UP_PER_S,
        seconds=WARM_UP_S,
        seed=0,
        deadlines_ms=(400, 400),
    )
    time.sleep(SETTLE_S)


def read_facts(path: Path, chars: int) -> list[str]:
    """Facts of a corpus, cut to a length. Raises ValueError naming the remedy."""
    return [fact[:chars] for fact in load_facts(path)]


def read_samples(asked: Sequence[Asked]) -> list[Sample]:
    """What answers of the model took, with how much was under way beside each.

    Only whole answers: one that a deadline cut does not tell how long it would have been.
    """
    answered = [each for each in asked if each.answered]
    spans = sorted(map(_span, answered))
    shares = [
        share_beside(_span(each), [s for s in spans if s != _span(each)]) for each in answered
    ]
    handing_ms = _handing_ms(answered, shares)
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
                outside_ms=max(0.0, each.latency_ms - times["total"]),
                beside=beside,
            )
        )
    return samples


def _handing_ms(asked: Sequence[Asked], beside: Sequence[float]) -> float:
    """How long a request is in the queue of a server with nothing else to do, at most mostly."""
    alone = [
        each.reply["timings_ms"]["queue"] for each, b in zip(asked, beside, strict=True) if not b
    ]
    return float(np.quantile(alone, MOSTLY)) if alone else 0.0


def _span(each: Asked) -> tuple[float, float]:
    """When it was with a worker, as near as a client can tell."""
    times = each.reply["timings_ms"]
    outside_s = max(0.0, (each.done_s - each.sent_s) - times["total"] / 1e3)
    front_s = (times["total"] - times["queue"] - times["prefill"] - times["decode"]) / 1e3
    end_s = each.done_s - outside_s / 2 - max(0.0, front_s)
    return end_s - (times["prefill"] + times["decode"]) / 1e3, end_s


def _note(exchange: Exchange, chars: int) -> Asked:
    told = json.loads(exchange.got.body) if exchange.got.status == 200 else {}
    kept = ("degraded", "degraded_reason", "source", "thinking", "timings_ms")
    return Asked(
        due_s=exchange.due_s,
        sent_s=exchange.sent_s,
        done_s=exchange.done_s,
        chars=chars,
        status=exchange.got.status,
        reply={name: told[name] for name in kept if name in told},
    )
