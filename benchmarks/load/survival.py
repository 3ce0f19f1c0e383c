"""What clients notice when workers are killed and when the server is told to end, under load.

    python -m benchmarks.load.survival --model artifacts/demo/ort-w8a8

First a random worker is killed (SIGKILL) every few seconds, while a request is under way. Every
full verdict is then compared, word for word, with what an engine in this process answers to the
same case under the same stated budget and limit. Then, several times: SIGTERM under load, with
arrivals going on until after the end. A request is lost where the server had taken its connection
and what was sent on it got no whole reply. A refusal, a connection that is not taken and one that
is closed before anything is sent on it are no loss: their clients know at once that nothing
happened.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from benchmarks.client import (
    Exchange,
    arrivals_for,
    exact_share,
    quantiles,
    send_on_time,
    thinking_of,
    write_body,
)
from benchmarks.run import EXPECTED, RunningServer, ServedConfig, describe_machine, write_results
from curt.config import run
from curt.corpus.case import Case
from curt.dialogue import parse_completion
from curt.engines.onnx.engine import OrtEngine
from curt.engines.protocol import Engine, Generation, Request
from curt.law.statutes import law_day
from curt.law.verdict import Verdict
from loadtest._http import PATIENCE_S, HttpClient
from serve.api.reply import build_defendant
from serve.api.schemas import ALL_TASKS

T = TypeVar("T")

logger = logging.getLogger(__name__)

WHOLE_AGAIN_S = 2.0  # within which a worker that died must have been replaced
KILL_EVERY_S = 5.0
BEFORE_STOP_S, AFTER_STOP_S = 4.0, 3.0  # load before a server is told to end, and after
POLL_S = 0.002
TO_THE_WORKER_S = 0.004  # from the client to the middle of a request's work
EXIT_S = 30.0  # for the server to end after SIGTERM


class SurvivalConfig(ServedConfig):
    """What to mistreat, and how often."""

    rate: float = Field(10.0, gt=0)
    """Arrivals a second."""
    kill_seconds: float = Field(120.0, gt=0)
    """How long workers are killed."""
    stops: int = Field(5, ge=1)
    """How often the server is told to end."""
    report: Path = Path("benchmarks/results/survival.json")
    """File of results."""


def work(config: SurvivalConfig) -> int:
    """Measure and write; 1 when something was lost or wrong."""
    results = measure(config)
    write_results(config.report, results)
    logger.info("%s: %s", config.report, results["passed"])
    return 0 if all(results["passed"].values()) else 1


def measure(config: SurvivalConfig) -> dict[str, Any]:
    """Both parts, and whether the server stood."""
    machine = describe_machine()
    cases = config.read_cases()
    facts = [case.fact for case in cases]
    kills = survive_kills(config, cases)
    stops = [survive_stop(config, facts, seed) for seed in range(config.stops)]
    lost = sum(row["lost"] for row in stops)
    slowest_ms = kills["worker_replaced_ms"].get("max", 0.0)
    return {
        "machine": machine,
        "model": config.model.name,
        "rate_per_s": config.rate,
        "deadline_ms": config.deadline_ms,
        "kills": kills,
        "stops": stops,
        "lost_at_stops": lost,
        "passed": {
            "workers_were_killed_at_work": kills["killed_at_work"] > 0,
            "no_wrong_answer": kills["compared"] > 0 and not kills["wrong"],
            "no_hang": not kills["fates"].get("lost"),
            f"whole_again_within_{WHOLE_AGAIN_S:g}_s": not kills["not_replaced"]
            and slowest_ms <= WHOLE_AGAIN_S * 1e3,
            "nothing_lost_at_stops": not lost,
            "exit_code_0": all(row["exit_code"] == 0 for row in stops),
            "new_ones_refused": not any(row["served_once_unready"] for row in stops),
        },
    }


def survive_kills(config: SurvivalConfig, cases: Sequence[Case]) -> dict[str, Any]:
    """Kill a worker again and again under load, and judge every answer."""
    facts = [case.fact for case in cases]
    with config.serve() as server:
        client = HttpClient(server.url, config.deadline_ms / 1e3 + PATIENCE_S)
        killing = kill_workers(config, server, client)
        exchanges, killed_s = asyncio.run(
            load_during(killing, client, config, facts, config.kill_seconds, config.seed)
        )
        time.sleep(WHOLE_AGAIN_S)
        log = server.read_log()
    replaced, late = recoveries(log, killed_s, " ready")
    spares, _ = recoveries(log, killed_s, " loaded in ")
    full = [each for each in exchanges if each.full]
    logger.info("%d kills; comparing %d answers", len(killed_s), len(full))
    wrong = find_wrong(OrtEngine(config.model), facts, full)
    ends = Counter(row["message"] for row in log if row["message"].startswith("a worker ended"))
    idle = sum(count for message, count in ends.items() if message.endswith("while idle"))
    return {
        "seconds": config.kill_seconds,
        "kills": len(killed_s),
        "killed_at_work": sum(ends.values()) - idle,
        "requests": len(exchanges),
        "fates": dict(Counter(fate(e) for e in exchanges)),
        "degraded": dict(
            Counter(e.answer["degraded_reason"] for e in exchanges if fate(e) == "degraded")
        ),
        "exact_share": exact_share(exchanges, [case.verdict for case in cases]),
        **thinking_of(exchanges),
        "compared": len(full),
        "wrong": wrong,
        "latency_ms": quantiles([e.latency_ms for e in exchanges if e.got.status == 200]),
        "worker_replaced_ms": quantiles(replaced),
        "not_replaced": late,
        "spare_loaded_ms": quantiles(spares),
        "failures": dict(Counter(e.got.failure for e in exchanges if e.got.failure)),
    }


def survive_stop(config: SurvivalConfig, facts: Sequence[str], seed: int) -> dict[str, Any]:
    """SIGTERM under load: what became of every request, and how the server ended."""
    with config.serve() as server:
        client = HttpClient(server.url, config.deadline_ms / 1e3 + PATIENCE_S)
        seconds = BEFORE_STOP_S + AFTER_STOP_S
        exchanges, times = asyncio.run(
            load_during(end(server), client, config, facts, seconds, config.seed + seed)
        )
        code = server.process.poll()
    return judge_stop(exchanges, times) | {"exit_code": code}


def judge_stop(exchanges: Sequence[Exchange], times: Mapping[str, float]) -> dict[str, Any]:
    """Fates before, across and after SIGTERM; `times` are `time.monotonic()` instants.

    "told" is the signal, "unready" the first /readyz that was not 200, "ended" the process's end.
    """
    told_s, unready_s = times["told"], times["unready"]
    across = [e for e in exchanges if e.sent_s <= told_s < e.done_s]
    after = [e for e in exchanges if e.sent_s > told_s]
    fates = Counter(fate(e) for e in exchanges)
    return {
        "requests": len(exchanges),
        "lost": fates["lost"],
        "failures": dict(Counter(e.got.failure for e in exchanges if e.got.failure)),
        "before": dict(Counter(fate(e) for e in exchanges if e.done_s <= told_s)),
        "under_way_at_signal": dict(Counter(fate(e) for e in across)),
        "after": dict(Counter(fate(e) for e in after)),
        "served_once_unready": sum(e.got.status == 200 for e in after if e.sent_s > unready_s),
        "unready_after_ms": round((unready_s - told_s) * 1e3, 1),
        "ended_after_ms": round((times["ended"] - told_s) * 1e3, 1),
    }


def fate(exchange: Exchange) -> str:
    """What became of a request."""
    got = exchange.got
    if got.status == 200:
        return "degraded" if exchange.answer["degraded"] else "answered"
    if got.status:
        return "refused" if got.status == 503 else "error"
    known = {"not_connected": "not_accepted", "not_sent": "closed_before_sending"}
    return known.get(got.failure, "lost")


def recoveries(
    log: Sequence[Mapping[str, Any]], killed_s: Sequence[float], sign: str
) -> tuple[list[float], int]:
    """Milliseconds from each kill to the next log line of a worker that holds `sign`.

    And how many kills had none before the next. Unix times on both sides.
    """
    mine = (row for row in log if row["message"].startswith("worker "))
    times_s = [row["at_s"] for row in mine if sign in row["message"]]
    found = []
    for start_s, end_s in zip(killed_s, [*killed_s[1:], float("inf")], strict=True):
        # The log's times are cut to milliseconds.
        after = [at_s for at_s in times_s if start_s - 0.001 <= at_s < end_s]
        found += [max(0.0, (after[0] - start_s) * 1e3)] if after else []
    return found, len(killed_s) - len(found)


def find_wrong(
    engine: Engine, facts: Sequence[str], full: Sequence[Exchange]
) -> list[dict[str, object]]:
    """Full verdicts that the engine does not give under the same budget and limit.

    Each as its number among the arrivals and the fields that differ: nothing of the case. Where
    the model was overruled the verdict is not its own, and only what it thought is compared.
    """
    known: dict[tuple[int, int, int], Generation] = {}
    wrong: list[dict[str, object]] = []
    for exchange in full:
        thinking = exchange.answer["thinking"]
        key = (exchange.index % len(facts), thinking["stated_budget"], thinking["allowed"])
        if key not in known:
            known[key] = engine.generate([Request(facts[key[0]], *key[1:])])[0]
        law = exchange.answer["law"]
        day = date.fromisoformat(law["day"]) if law["day"] else law_day(law["version"])
        expected = expected_answer(known[key], day)
        told = {
            "tokens": thinking["tokens"],
            "cut": thinking["cut"],
        }
        if exchange.answer["source"] == "model":
            told |= {name: exchange.answer[name] for name in ("defendants", "reasoning")}
        differ = [name for name, value in told.items() if expected[name] != value]
        if differ:
            wrong.append({"arrival": exchange.index, "differ": differ})
    return wrong


def expected_answer(generation: Generation, law: date | None) -> dict[str, object]:
    """What a reply must say of a generation: the verdict in full, its reasoning and its length.

    The verdict is held against the `law` of a day.
    """
    completion = parse_completion(generation.text)
    verdict = completion.verdict
    return {
        "defendants": [json.loads(build_defendant(verdict, ALL_TASKS, law).model_dump_json())]
        if isinstance(verdict, Verdict)
        else [],
        "reasoning": completion.thinking,
        "tokens": generation.thinking_tokens,
        "cut": generation.thinking_cut,
    }


async def load_during(
    trouble: Awaitable[T],
    client: HttpClient,
    config: SurvivalConfig,
    facts: Sequence[str],
    seconds: float,
    seed: int,
) -> tuple[list[Exchange], T]:
    """Every request of a load and what the trouble that ran beside it returned."""

    def make_body(index: int) -> bytes:
        return write_body(facts[index % len(facts)], config.deadline_ms)

    arrivals_s = arrivals_for(config.rate, seed, seconds)
    return await asyncio.gather(send_on_time(client, arrivals_s, make_body), trouble)


async def kill_workers(
    config: SurvivalConfig, server: RunningServer, client: HttpClient
) -> list[float]:
    """Kill a random worker every few seconds, each while a request is under way: Unix times."""
    source = random.Random(config.seed)
    killed_s: list[float] = []
    start_s = time.monotonic()
    for number in range(1, math.ceil(config.kill_seconds / KILL_EVERY_S)):
        await asyncio.sleep(start_s + number * KILL_EVERY_S - time.monotonic())
        pids: list[int] = []
        while not (client.under_way and pids):
            if time.monotonic() > start_s + config.kill_seconds:
                return killed_s
            await asyncio.sleep(POLL_S)
            pids = pids or await asyncio.to_thread(server.worker_pids)
        await asyncio.sleep(TO_THE_WORKER_S)
        killed_s.append(time.time())
        os.kill(source.choice(pids), signal.SIGKILL)
    return killed_s


async def end(server: RunningServer) -> dict[str, float]:
    """Tell a server to end: the instants that `judge_stop` takes."""
    await asyncio.sleep(BEFORE_STOP_S)
    times = {"told": time.monotonic()}
    server.process.send_signal(signal.SIGTERM)
    while await asyncio.to_thread(server.is_ready):
        await asyncio.sleep(POLL_S)
    times["unready"] = time.monotonic()
    while server.process.poll() is None:
        if time.monotonic() > times["told"] + EXIT_S:
            raise RuntimeError(f"the server did not end within {EXIT_S:.0f} s of SIGTERM")
        await asyncio.sleep(POLL_S)
    return times | {"ended": time.monotonic()}


if __name__ == "__main__":
    run(SurvivalConfig, work, expected=EXPECTED)
