"""What the HTTP front costs beside the engine, and where that time goes.

    python -m benchmarks.load.front --model artifacts/demo/ort-w8a8

Each case is asked in turn, one request at a time on an otherwise idle machine, of a server without
confidence and of one with it, both with one worker; which is first changes from case to case.

The overhead of a request is its client's latency less the prefill and decode that the reply
reports. By part, in milliseconds:

- wire: client and socket, both ways, and uvicorn before and after the application;
- parse_and_queue: middleware, reading the body, its checks, admission, until a worker has it;
- pipe: to the worker and back, with the two thread hops and wake-ups;
- reply: building, recording, serialising and sending it, confidence included.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmarks.client import ask, endless, quantiles, write_body
from benchmarks.run import EXPECTED, RunningServer, ServedConfig, describe_machine, write_results
from curt.config import run
from loadtest._arrivals import load_facts
from loadtest._http import PATIENCE_S, HttpClient

logger = logging.getLogger(__name__)

TARGET_P50_MS, TARGET_P99_MS = 3.0, 10.0
WAIT_FOR_LOG_S = 1.0  # after the last reply its line must come
PARTS = ("wire", "parse_and_queue", "pipe", "reply")


class FrontConfig(ServedConfig):
    """What to ask, and how often; without a classifier the server with confidence is left out."""

    deadline_ms: int = 5_000
    """Of every request; long, so that nothing is shortened."""
    requests: int = Field(1000, ge=1)
    """Of each server."""
    warm_up: int = Field(30, ge=1)
    """Of each server before those that count."""
    pause_ms: float = Field(5.0, ge=0)
    """Before each request."""
    report: Path = Path("benchmarks/results/front_overhead.json")
    """File of results."""


def work(config: FrontConfig) -> None:
    """Measure and write."""
    results = measure(config)
    write_results(config.report, results)
    logger.info("%s: %s", config.report, results["passed"])


def measure(config: FrontConfig) -> dict[str, Any]:
    """Every figure. Raises RuntimeError when a server does not start or does not answer."""
    fallbacks = {"plain": None} | ({"confidence": config.fallback} if config.fallback else {})
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(config.serve(workers=1, spares=0, fallback=fallback))
            for name, fallback in fallbacks.items()
        }
        machine = describe_machine()
        rows = asyncio.run(_take_turns(config, servers))
        time.sleep(WAIT_FOR_LOG_S)
        for name, server in servers.items():
            logged = {line["request_id"]: line["ms"] for line in server.read_log() if "ms" in line}
            for row in rows[name]:
                row["log_ms"] = logged[row["request_id"]]
    http = {name: summarise(rows[name]) for name in servers}
    return {
        "machine": machine,
        "model": config.model.name,
        "requests": config.requests,
        "http": http,
        "passed": {
            name: {
                f"p50_at_most_{TARGET_P50_MS:g}_ms": row["overhead_ms"]["p50"] <= TARGET_P50_MS,
                f"p99_at_most_{TARGET_P99_MS:g}_ms": row["overhead_ms"]["p99"] <= TARGET_P99_MS,
            }
            for name, row in http.items()
        },
    }


def split(row: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of each part of one request: its `client_ms`, the server's `log_ms` from the
    first to the last byte it handled, and the reply's own `timings_ms`; with their sum, `overhead`.
    """
    timings = row["timings_ms"]
    work_ms = timings["prefill"] + timings["decode"]
    return {
        "wire": row["client_ms"] - row["log_ms"],
        "parse_and_queue": timings["queue"],
        "pipe": timings["total"] - timings["queue"] - work_ms,
        "reply": row["log_ms"] - timings["total"],
        "overhead": row["client_ms"] - work_ms,
    }


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Quantiles of the overhead of one server's requests, and of its parts."""
    parts = [split(row) for row in rows]
    return {
        "client_ms": quantiles([row["client_ms"] for row in rows]),
        "overhead_ms": quantiles([part["overhead"] for part in parts]),
        "parts_ms": {name: quantiles([part[name] for part in parts]) for name in PARTS},
    }


async def _take_turns(
    config: FrontConfig, servers: Mapping[str, RunningServer]
) -> dict[str, list[dict[str, Any]]]:
    """Rows of each server, case by case in the same order; those of the warm-up are left out."""
    patience_s = config.deadline_ms / 1e3 + PATIENCE_S
    clients = {name: HttpClient(server.url, patience_s) for name, server in servers.items()}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in clients}
    facts = endless(load_facts(config.cases))
    for turn, fact in enumerate(islice(facts, config.warm_up + config.requests)):
        for name in list(clients) if turn % 2 else list(clients)[::-1]:
            await asyncio.sleep(config.pause_ms / 1e3)
            exchange = await ask(clients[name], write_body(fact, config.deadline_ms))
            answer = exchange.require_answer()
            if turn >= config.warm_up:
                told = {key: answer[key] for key in ("request_id", "timings_ms")}
                rows[name].append(told | {"client_ms": exchange.service_ms})
    for client in clients.values():
        client.close()
    return rows


if __name__ == "__main__":
    run(FrontConfig, work, expected=EXPECTED)
