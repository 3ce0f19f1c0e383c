"""What the HTTP front costs beside the bare engine, and where that time goes.

    python -m benchmarks.load.front --model artifacts/demo/ort-w8a8

Each case is asked in turn, one request at a time on an otherwise idle machine: of a server without
confidence, of one with it, of a worker process of our own over its pipe, and of an engine in this
process; all with one worker and the same thinking limits, the order changing from case to case.

The overhead of a request is its client's latency less the prefill and decode that the reply
reports. By part, in milliseconds:

- wire: client and socket, both ways, and uvicorn before and after the application;
- parse_and_queue: middleware, reading the body, its checks, admission, until a worker has it;
- pipe: to the worker and back, with the two thread hops and wake-ups;
- reply: building, recording, serialising and sending it, confidence included.

`alone` times single pieces in this process, warm; the server's, each after a pause, are slower.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import Field

from benchmarks.client import PATIENCE_S, Client, endless, quantiles, write_body
from benchmarks.run import (
    EXPECTED,
    RunningServer,
    ServedConfig,
    describe_machine,
    serve,
    write_results,
)
from curt.artifact import load_manifest
from curt.classifier.model import load_classifier
from curt.config import run
from curt.dialogue import parse_completion
from curt.engines.onnx.engine import OrtEngine
from curt.engines.protocol import Generation, Request
from curt.law.verdict import Verdict
from loadtest._arrivals import load_facts
from serve.answering.checks import refuse_unusable
from serve.answering.confidence import ConfidenceReader
from serve.api.reply import build_reply
from serve.api.schemas import ALL_TASKS, PredictRequest
from serve.pool.messages import Generated
from serve.pool.process import WorkerProcess
from serve.pool.worker import open_worker_engine
from serve.served import Identity, Served

logger = logging.getLogger(__name__)

TARGET_P50_MS, TARGET_P99_MS = 3.0, 10.0
MAX_FACT_CHARS = 20_000
WAIT_FOR_LOG_S = 1.0  # after the last reply its line must come
PARTS = ("wire", "parse_and_queue", "pipe", "reply")


class FrontConfig(ServedConfig):
    """What to ask, and how often; without a classifier the server with confidence is left out."""

    deadline_ms: int = 5_000
    """Of every request; long, so that nothing is shortened."""
    requests: int = Field(1000, ge=1)
    """Of each kind."""
    warm_up: int = Field(30, ge=1)
    """Of each kind before those that count."""
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
    settings: dict[str, object] = {"workers": 1, "spares": 0}
    with contextlib.ExitStack() as stack:
        plain = serve(config.model, port=config.port, **settings)
        servers = {"plain": stack.enter_context(plain)}
        if config.fallback:
            port = config.port + 1 if config.port else 0
            sure = serve(config.model, port=port, fallback=config.fallback, **settings)
            servers["confidence"] = stack.enter_context(sure)
        machine = describe_machine()
        rows = asyncio.run(_take_turns(config, servers))
        time.sleep(WAIT_FOR_LOG_S)
        for name, server in servers.items():
            _add_log_times(rows[name], server)
    http = {name: summarise(rows[name]) for name in servers}
    return {
        "machine": machine,
        "model": config.model.name,
        "requests": config.requests,
        "http": http,
        "bare": summarise_bare(rows),
        "alone_ms": time_pieces(config, [row["fact"] for row in rows["plain"]]),
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
    first to the last byte it handled, and the reply's own `timings`; with their sum, `overhead`.
    """
    timings = row["timings"]
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


def summarise_bare(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Worker and engine without the front, and how much longer the same case took over HTTP."""
    worker = [row["client_ms"] - row["work_ms"] for row in rows["worker"]]
    pairs = zip(rows["plain"], rows["worker"], rows["engine"], strict=True)
    beyond = [
        (http["client_ms"] - worker["client_ms"], http["client_ms"] - engine["client_ms"])
        for http, worker, engine in pairs
    ]
    return {
        "worker_ms": quantiles([row["client_ms"] for row in rows["worker"]]),
        "worker_pipe_ms": quantiles(worker),
        "engine_ms": quantiles([row["client_ms"] for row in rows["engine"]]),
        "http_less_worker_median_ms": round(median(a for a, _ in beyond), 3),
        "http_less_engine_median_ms": round(median(b for _, b in beyond), 3),
    }


async def _take_turns(
    config: FrontConfig, servers: Mapping[str, RunningServer]
) -> dict[str, list[dict[str, Any]]]:
    """Rows of each way, case by case in the same order; those of the warm-up are left out."""
    patience_s = config.deadline_ms / 1e3 + PATIENCE_S
    clients = {name: Client(s.url, patience_s) for name, s in servers.items()}
    engine = OrtEngine(config.model)
    worker = WorkerProcess(config.model, open_worker_engine)
    await worker.start()
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in (*clients, "worker", "engine")}
    facts = endless(load_facts(config.cases))
    try:
        for turn, fact in enumerate(islice(facts, config.warm_up + config.requests)):
            # A limit that every way keeps: the reply tells it, so a server goes first.
            first = await _ask_server(clients["plain"], fact, config)
            limits = first["limits"]
            ways = ["confidence"] * ("confidence" in clients) + ["worker", "engine"]
            taken = {"plain": first}
            for name in ways if turn % 2 else reversed(ways):
                if name == "worker":
                    taken[name] = await _ask_worker(worker, fact, limits, config)
                elif name == "engine":
                    taken[name] = await _ask_engine(engine, fact, limits, config)
                else:
                    taken[name] = await _ask_server(clients[name], fact, config)
            if turn >= config.warm_up:
                for name, row in taken.items():
                    rows[name].append(row)
    finally:
        for client in clients.values():
            client.close()
        await worker.close()
    return rows


async def _ask_server(client: Client, fact: str, config: FrontConfig) -> dict[str, Any]:
    await asyncio.sleep(config.pause_ms / 1e3)
    body, request_id = write_body(fact, config.deadline_ms), uuid.uuid4().hex
    started_s = time.perf_counter()
    got = await client.exchange(body, request_id=request_id)
    client_ms = (time.perf_counter() - started_s) * 1e3
    if got.status != 200:
        raise RuntimeError(f"the server answers {got.status or got.failure}: is the machine busy?")
    answer = json.loads(got.body)
    thinking = answer["thinking"]
    return {
        "fact": fact,
        "id": request_id,
        "client_ms": client_ms,
        "timings": answer["timings_ms"],
        "limits": (thinking["stated_budget"], thinking["allowed"]),
    }


async def _ask_worker(
    worker: WorkerProcess, fact: str, limits: tuple[int, int], config: FrontConfig
) -> dict[str, Any]:
    await asyncio.sleep(config.pause_ms / 1e3)
    until_s = time.monotonic() + config.deadline_ms / 1e3
    request = Request(fact, *limits, deadline_s=until_s, tell_text=False)
    started_s = time.perf_counter()
    reply = await worker.exchange(request, config.deadline_ms / 1e3)
    client_ms = (time.perf_counter() - started_s) * 1e3
    assert isinstance(reply, Generated), reply
    work_ms = reply.generation.prefill_ms + reply.generation.decode_ms
    return {"client_ms": client_ms, "work_ms": work_ms}


async def _ask_engine(
    engine: OrtEngine, fact: str, limits: tuple[int, int], config: FrontConfig
) -> dict[str, Any]:
    await asyncio.sleep(config.pause_ms / 1e3)
    started_s = time.perf_counter()
    engine.generate([Request(fact, *limits)])  # holds the loop, which has nothing else to do
    return {"client_ms": (time.perf_counter() - started_s) * 1e3}


def _add_log_times(rows: Sequence[dict[str, Any]], server: RunningServer) -> None:
    logged = {line["request_id"]: line["ms"] for line in server.read_log() if "ms" in line}
    for row in rows:
        row["log_ms"] = logged[row["id"]]


def time_pieces(config: FrontConfig, facts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Pieces of the front by themselves: quantiles in milliseconds over the facts."""
    manifest = load_manifest(config.model, expect="ort-genai")
    identity = Identity.of(config.model, manifest)
    verdict, generation = _answer_once(config.model, facts[0])
    reader = None
    if config.fallback:
        classifier = load_classifier(config.fallback)
        reader = ConfidenceReader(classifier, model_manifest=identity.manifest_sha256)
    bodies = [write_body(fact, config.deadline_ms) for fact in facts]
    served = Served(generation, 128, 128, fact_clipped=False, queue_ms=1.0)

    def parse(index: int) -> None:
        refuse_unusable(PredictRequest.model_validate_json(bodies[index]).fact, MAX_FACT_CHARS)

    def reply(index: int) -> None:
        build_reply(
            served,
            fact=facts[index],
            tasks=ALL_TASKS,
            include_reasoning=True,
            identity=identity,
            request_id="alone",
            deadline_ms=config.deadline_ms,
            total_ms=20.0,
        ).model_dump_json()

    pieces: dict[str, Callable[[int], object]] = {"parse_body": parse, "build_reply": reply}
    if reader is not None:
        pieces["confidence"] = lambda i: reader.assess(facts[i], verdict, thinking_cut=False)
    return {name: _time_each(piece, len(facts)) for name, piece in pieces.items()}


def _answer_once(model: Path, fact: str) -> tuple[Verdict, Generation]:
    generation = OrtEngine(model).generate([Request(fact, 128, 128)])[0]
    verdict = parse_completion(generation.text).verdict
    if not isinstance(verdict, Verdict):
        raise ValueError(f"{model} gives no readable verdict on the first case: use a trained one")
    return verdict, generation


def _time_each(piece: Callable[[int], object], count: int) -> dict[str, float]:
    times_ms = []
    for index in range(count):
        started_s = time.perf_counter()
        piece(index)
        times_ms.append((time.perf_counter() - started_s) * 1e3)
    return quantiles(times_ms)


if __name__ == "__main__":
    run(FrontConfig, work, expected=EXPECTED)
