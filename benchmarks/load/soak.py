"""Load a server for ten minutes and judge whether memory, latency or misses grow.

    python -m benchmarks.load.soak --minutes 10

Starts a server and measures its capacity as `python -m loadtest.capacity` does, in shorter steps:
the highest rate at which p99 and misses keep the promise. Loads it at a share of that with unique
cases, and writes down for every minute the 99th percentile of the latency (from the scheduled
instant), the share of misses (whatever is no good answer), what the server's processes took of the
cores for a request and what others took, and from every second the memory of the front and of each
of its processes.

Flat is judged by the slope of a straight line, Theil and Sen's: the median over all pairs of
points, which single spikes do not move, with Sen's interval (95%). A series is flat when the
interval holds no growth worth naming (the limits below, over the whole run): "rising" needs the
interval above the limit, and one that holds both is "undecided". The first part of the run, in
which caches and pools fill, is left out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from pydantic import Field

from benchmarks.client import load, quantiles
from benchmarks.load.rates import summarise
from benchmarks.load.trend import Trend, fit_trend
from benchmarks.run import EXPECTED, ServedConfig, describe_machine, write_results
from curt.config import run
from loadtest._cases import mix_cases
from loadtest._http import HttpClient
from loadtest.capacity._curt import ask_curt
from loadtest.capacity._search import search
from loadtest.capacity._step import StepPlan

log = logging.getLogger(__name__)

MEBIBYTE = 1 << 20
START_PER_S = 8.0  # the lowest capacity that is looked for
# Growth over the run that counts.
GROWTH_MIB = 16.0  # of one process's memory
GROWTH_P99 = 0.25  # of its median
GROWTH_MISSES = 0.005  # of all requests

Series = dict[str, list[tuple[float, float]]]
"""(share of the run, value) points by name."""


class SoakConfig(ServedConfig):
    """How long and how hard."""

    capacity: float | None = None
    """Requests a second with which the server keeps its promise; measured first when left out."""
    step_seconds: float = Field(15.0, gt=0)
    """How long each rate of that measurement lasts."""
    minutes: float = Field(10.0, gt=0)
    """Length of the soak."""
    parts: int = Field(10, ge=3)
    """Stretches to summarise by: minutes, when there are ten of both."""
    share: float = Field(0.8, gt=0)
    """Of the capacity."""
    settle: float = Field(0.1, ge=0, lt=0.9)
    """Share of the run, from its start, that is not judged."""
    report: Path = Path("benchmarks/results/soak.json")
    """File of results; raw rows go beside it."""


def work(config: SoakConfig) -> int:
    """Soak and write; 1 where something rises or a process was lost."""
    result, series = measure(config)
    rows = [
        {"series": name, "share_of_run": round(at, 6), "value": round(value, 4)}
        for name, points in series.items()
        for at, value in points
    ]
    write_results(config.report, result, rows=rows)
    verdicts = {name: row["verdict"] for name, row in result["trends"].items()}
    log.info(
        "%s: %s after %d requests, %d misses; %s",
        config.report,
        "flat" if result["flat"] else "NOT FLAT",
        result["requests"],
        result["misses"],
        json.dumps(verdicts),
    )
    return 1 if result["processes_lost"] or "rising" in verdicts.values() else 0


def measure(config: SoakConfig) -> tuple[dict[str, Any], Series]:
    """Serve, find the capacity, soak, judge: the result, and every point behind it."""
    with config.serve() as server:
        workers = server.worker_pids()
        return asyncio.run(soak(config, server.url, server.process.pid, workers))


async def soak(
    config: SoakConfig, url: str, pid: int, workers: Sequence[int]
) -> tuple[dict[str, Any], Series]:
    """Load the server at `url`, whose front is the process `pid`, and judge what is seen."""
    cases = config.read_cases()
    facts, verdicts = [case.fact for case in cases], [case.verdict for case in cases]
    capacity, steps = await find_capacity(config, url, facts)
    rate, seconds = capacity * config.share, config.minutes * 60
    log.info("capacity %.1f/s; %.1f/s for %.1f minutes", capacity, rate, config.minutes)
    watching = asyncio.create_task(watch_memory(pid, workers, min(1.0, seconds / 20)))
    started_s = time.monotonic()
    latencies_ms: list[float] = []
    parts: list[dict[str, Any]] = []
    part_s = seconds / config.parts
    for part in range(config.parts):
        before = read_processor(pid)
        own = await load(url, facts, rate, part_s, config.deadline_ms, config.seed + part)
        latencies_ms += [each.latency_ms for each in own]
        parts.append(
            summarise(own, verdicts, config.deadline_ms, part_s)
            | share_processor(before, read_processor(pid), len(own))
        )
        log.info("part %d of %d: %d misses", part + 1, config.parts, parts[-1]["misses"]["all"])
    took_s = time.monotonic() - started_s
    watching.cancel()
    memory, lost = await watching
    series = to_series(parts, memory, took_s)
    trends = judge(config, series)
    return {
        "machine": describe_machine(),
        "settings": config.model_dump(mode="json", exclude={"report"}),
        "capacity_steps": steps,
        "capacity_per_s": capacity,
        "rate_per_s": rate,
        "requests": len(latencies_ms),
        "misses": sum(part["misses"]["all"] for part in parts),
        "latency_ms": quantiles(latencies_ms),
        "processes_lost": lost,
        "trends": trends,
        "flat": not lost and all(row["verdict"] == "flat" for row in trends.values()),
        "parts": parts,
    }, series


def read_processor(pid: int) -> dict[str, float]:
    """Seconds of processor time so far: of the server, this client, all that runs, and all cores.

    "stolen" are those that the machine below gave to others while somebody here wanted them.
    """
    front, times = psutil.Process(pid), psutil.cpu_times()
    server = [each.cpu_times() for each in (front, *front.children(recursive=True))]
    client = psutil.Process().cpu_times()
    idle, stolen = times.idle + times.iowait, times.steal
    return {
        "server": sum(each.user + each.system for each in server),
        "client": client.user + client.system,
        "busy": times.user + times.nice + times.system + times.irq + times.softirq,
        "idle": idle,
        "stolen": stolen,
    }


def share_processor(
    before: Mapping[str, float], after: Mapping[str, float], requests: int
) -> dict[str, float]:
    """What the server took for a request, and the cores' shares of others here and below.

    The same work that takes more milliseconds is done by slower cores: another machine's load on
    the same processor shows there, and by no other sign.
    """
    took = {name: after[name] - before[name] for name in after}
    whole = max(1e-9, took["busy"] + took["idle"] + took["stolen"])
    return {
        "server_cpu_ms": took["server"] * 1e3 / max(1, requests),
        "others_share": max(0.0, took["busy"] - took["server"] - took["client"]) / whole,
        "stolen_share": took["stolen"] / whole,
    }


async def find_capacity(
    config: SoakConfig, url: str, facts: Sequence[str]
) -> tuple[float, list[dict[str, Any]]]:
    """The highest rate that keeps the promise, and the summary of every rate that was tried.

    Raises ValueError when not even the first one does: then nothing was measured.
    """
    if config.capacity is not None:
        return config.capacity, []
    client = HttpClient(url)
    ask = ask_curt(client, mix_cases(facts, config.seed), int(time.time()), config.deadline_ms)
    plan = StepPlan(
        slo_ms=config.deadline_ms,
        start_per_s=START_PER_S,
        min_per_s=START_PER_S,
        max_s=config.step_seconds,
        warmup_requests=0,
    )
    found = await search(ask, plan)
    client.close()
    if not found.rate_per_s:
        raise ValueError(f"{found.note}: is the server ready, is the machine busy with other work?")
    return found.rate_per_s, found.to_json()["steps"]


async def watch_memory(
    pid: int, workers: Sequence[int], interval_s: float
) -> tuple[dict[str, list[tuple[float, float]]], int]:
    """(seconds, MiB) of the front and of each process below it, until this task is cancelled.

    Others than the workers are spares and what starts them.

    Also how many of the processes that were there at first have gone since.
    """
    front = psutil.Process(pid)
    names = {pid: "front"} | {worker: f"worker {i + 1}" for i, worker in enumerate(workers)}
    seen: dict[str, list[tuple[float, float]]] = defaultdict(list)
    family = {front, *front.children(recursive=True)}
    started_s = time.monotonic()
    try:
        while True:
            for process in (front, *front.children(recursive=True)):
                name = names.setdefault(process.pid, f"other {len(names) - len(workers)}")
                try:
                    held = process.memory_info().rss / MEBIBYTE
                except psutil.NoSuchProcess:  # gone since it was listed
                    continue
                seen[name].append((time.monotonic() - started_s, held))
            await asyncio.sleep(interval_s)
    except asyncio.CancelledError:
        return dict(seen), sum(not process.is_running() for process in family)


def to_series(
    parts: Sequence[Mapping[str, Any]],
    memory: Mapping[str, Sequence[tuple[float, float]]],
    took_s: float,
) -> Series:
    """Everything that may rise, as (share of the run, value): parts at their middles."""
    middles = [(index + 0.5) / len(parts) for index in range(len(parts))]
    series = {
        # a part whose every request was lost has no latency
        "p99_ms": [
            (at, part["answer_ms"]["p99"])
            for at, part in zip(middles, parts, strict=True)
            if part["answer_ms"]
        ],
        "miss_share": [(at, part["miss_share"]) for at, part in zip(middles, parts, strict=True)],
    }
    return series | {
        f"{name}_mib": [(at_s / took_s, held) for at_s, held in points]
        for name, points in memory.items()
    }


def judge(
    config: SoakConfig, series: Mapping[str, Sequence[tuple[float, float]]]
) -> dict[str, dict[str, Any]]:
    """For each series its growth over the run, the interval of that, the limit and the verdict.

    One with too few points after the settling (a process that came late) is "undecided".
    """
    rows = {}
    for name, points in series.items():
        judged = [(at, value) for at, value in points if at >= config.settle]
        if len(judged) < 3:
            rows[name] = {"points": len(judged), "verdict": "undecided"}
            continue
        trend = fit_trend(judged)
        limit = GROWTH_MISSES if name == "miss_share" else GROWTH_MIB
        if name == "p99_ms":
            limit = GROWTH_P99 * median(value for _, value in judged)
        rows[name] = {
            "points": len(judged),
            "growth": trend.slope,
            "interval": [trend.low, trend.high],
            "limit": limit,
            "verdict": verdict_on(trend, limit),
        }
    return rows


def verdict_on(trend: Trend, limit: float) -> str:
    """Flat below the limit with its whole interval, rising above it with all of it."""
    if trend.high < limit:
        return "flat"
    return "rising" if trend.low >= limit else "undecided"


if __name__ == "__main__":
    run(SoakConfig, work, expected=(*EXPECTED, psutil.Error))
