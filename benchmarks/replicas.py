"""What stands in front of two workers: plain uvicorn, nginx, Ray Serve; the same load for each.

    python -m benchmarks.replicas --fronts '["uvicorn","nginx","ray"]'

Two workers each time: of one server, of two replicas behind nginx (`deploy.replicas`), and of two
replicas of Ray Serve behind its HAProxy (`deploy/ray_serve.yaml`). All fronts are up throughout and
take turns, so that what else the machine does meets each alike; only the ratios to the first count.
An idle front takes processor time from the one whose turn it is; how much is in the report.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml
from pydantic import Field

from benchmarks.fleet import count, tell_replicas
from benchmarks.open_loop import (
    PATIENCE_S,
    Client,
    Exchange,
    arrivals_for,
    quantiles,
    send_on_time,
    write_body,
)
from benchmarks.served import HOST, ROOT, Served, describe_machine, serve
from curt.config import Config, load_config
from curt.files import write_json
from curt.logs import configure_logging
from loadtest._arrivals import load_facts, number_fact

logger = logging.getLogger(__name__)

Front = Literal["uvicorn", "nginx", "ray"]
WORKERS = 2
WAIT_RAY_S, STOP_RAY_S = 120.0, 90.0


class ReplicasBenchConfig(Config):
    """What to compare and how hard to load it."""

    fronts: list[Front] = Field(["uvicorn", "nginx", "ray"], min_length=1)
    """The first is what the others are compared with."""
    model: Path = Path("artifacts/demo/ort-w8a8")
    """Model folder."""
    fallback: Path | None = Path("artifacts/demo/fallback")
    """Classifier folder."""
    rate: float = 5.0
    """Arrivals a second at each front in turn."""
    seconds: float = 12.0
    """Of load in a turn."""
    rounds: int = Field(4, ge=1)
    """Turns of each front."""
    light: int = 150
    """Requests without a model (`GET /version`) in a turn, one after the other."""
    deadline_ms: int = 1000
    """Of every request under load."""
    chars: int = 300
    """Length facts are cut to."""
    seed: int = 1
    """Of the arrivals; each round has its own, the same for every front."""
    port: int = 8100
    """Of the first front; the others follow. Fifty are used."""
    ray_python: Path = Path(sys.executable)
    """Python of an environment with `ray[serve]`."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """Where the facts come from."""
    report: Path = Path("benchmarks/replicas.json")
    """File of results."""


def main() -> None:
    """Start the fronts, load them in turn and write the results."""
    config = load_config(ReplicasBenchConfig)
    configure_logging()
    machine = describe_machine()
    try:
        facts = [fact[: config.chars] for fact in load_facts(config.cases)]
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            ports = {front: config.port + 10 * n for n, front in enumerate(config.fronts)}
            started = {
                front: stack.enter_context(_start(front, config, port, Path(folder)))
                for front, port in ports.items()
            }
            idle = {front: measure_idle(pids) for front, pids in started.items()}
            results = asyncio.run(_take_turns(config, ports, facts))
    except (RuntimeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    results |= {"idle_cores": idle, "machine": machine, "rate_per_s": config.rate}
    write_json(config.report, results)
    logger.info("%s: to %s %s", config.report, config.fronts[0], results["ratios"])


async def _take_turns(
    config: ReplicasBenchConfig, ports: Mapping[Front, int], facts: Sequence[str]
) -> dict[str, Any]:
    cases: dict[str, list[list[Exchange]]] = {front: [] for front in ports}
    light: dict[str, list[list[float]]] = {front: [] for front in ports}
    for number in range(config.rounds):
        order = list(ports.items())
        for front, port in order[number % len(order) :] + order[: number % len(order)]:
            light[front].append(await _ask_lightly(port, config.light))
            cases[front].append(await _load(config, port, facts, config.seed + number))
            logger.info("round %d, %s done", number, front)
    first = config.fronts[0]
    fronts = {
        front: {
            **count([e for turn in cases[front] for e in turn], config.deadline_ms),
            "light_ms": quantiles([ms for turn in light[front] for ms in turn]),
            "turns_p50_ms": [p50_of(turn) for turn in cases[front]],
        }
        for front in ports
    }
    return {
        "fronts": fronts,
        "ratios": {
            front: compare(fronts[front], fronts[first]) for front in fronts if front != first
        },
    }


def compare(front: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, float]:
    """A front beside the first: ratios of whole answers, and milliseconds more of light ones.

    `p50_of_turns` is the median of the ratios of turns next to each other, which what else the
    machine does moves least.
    """
    turns = zip(front["turns_p50_ms"], first["turns_p50_ms"], strict=True)
    return {
        **{q: round(front["answer_ms"][q] / first["answer_ms"][q], 3) for q in ("p50", "p99")},
        "p50_of_turns": round(statistics.median(mine / other for mine, other in turns), 3),
        **{
            f"light_{q}_more_ms": round(front["light_ms"][q] - first["light_ms"][q], 3)
            for q in ("p50", "p99")
        },
    }


def p50_of(turn: Sequence[Exchange]) -> float:
    """Median latency of the answers of a turn. Raises ValueError when there was none."""
    answered = [e.latency_ms for e in turn if e.got.status == 200]
    if not answered:
        raise ValueError("a turn without an answer: is the machine busy with other work?")
    return quantiles(answered)["p50"]


async def _ask_lightly(port: int, requests: int) -> list[float]:
    client = Client(HOST, port, PATIENCE_S)
    took_ms = []
    for _ in range(requests):
        start_s = time.perf_counter()
        got = await client.exchange(b"", what="GET /version")
        took_ms.append((time.perf_counter() - start_s) * 1e3)
        if got.status != 200:
            raise RuntimeError(f"port {port} said {got.failure or got.status} to GET /version")
    client.close()
    return took_ms


async def _load(
    config: ReplicasBenchConfig, port: int, facts: Sequence[str], seed: int
) -> list[Exchange]:
    run = time.time_ns() // 1_000_000

    def make_body(index: int) -> bytes:
        return write_body(number_fact(facts[index % len(facts)], run, index), config.deadline_ms)

    client = Client(HOST, port, config.deadline_ms / 1e3 + PATIENCE_S)
    return await send_on_time(client, arrivals_for(config.rate, seed, config.seconds), make_body)


def _start(
    front: Front, config: ReplicasBenchConfig, port: int, folder: Path
) -> contextlib.AbstractContextManager[list[int]]:
    start = {"uvicorn": _on_uvicorn, "nginx": _behind_nginx, "ray": _on_ray}[front]
    return start(config, port, folder)


@contextlib.contextmanager
def _on_uvicorn(config: ReplicasBenchConfig, port: int, _: Path) -> Iterator[list[int]]:
    given = {"fallback": config.fallback, "workers": WORKERS, "spares": 0}
    with serve(config.model, port=port, **given) as server:
        yield [server.process.pid]


@contextlib.contextmanager
def _behind_nginx(config: ReplicasBenchConfig, port: int, folder: Path) -> Iterator[list[int]]:
    run = folder / "nginx"
    given: dict[str, object] = {"fallback": config.fallback.absolute()} if config.fallback else {}
    tell_replicas(
        "up",
        run=run,
        model=config.model.absolute(),
        replicas=WORKERS,
        port=port,
        first_port=port + 1,
        settings='{"cache_ttl_s": "0"}',
        **given,
    )
    try:
        yield [int(file.read_text()) for file in run.glob("*.pid")]
    finally:
        tell_replicas("down", run=run)


@contextlib.contextmanager
def _on_ray(config: ReplicasBenchConfig, port: int, folder: Path) -> Iterator[list[int]]:
    told = yaml.safe_load((ROOT / "deploy" / "ray_serve.yaml").read_text(encoding="utf-8"))
    file = folder / "ray_serve.yaml"
    file.write_text(yaml.safe_dump(at_port(told, port)), encoding="utf-8")
    log = folder / "ray.log"
    command = [str(config.ray_python), "-m", "ray.serve.scripts", "run", str(file)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=ray_environment(config, port, os.environ), stdout=out, stderr=out
        )
    try:
        _wait_for_ray(Served(process, port, log))
        yield [process.pid]
    finally:
        process.terminate()
        try:
            process.wait(STOP_RAY_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def at_port(told: dict[str, Any], port: int) -> dict[str, Any]:
    """A Ray Serve file with another port and just as many replicas as there are workers."""
    changed = {**told, "http_options": {**told["http_options"], "port": port}}
    (application,) = told["applications"]
    (deployment,) = application["deployments"]
    scaling = {"min_replicas": WORKERS, "max_replicas": WORKERS}
    scaling = {**deployment["autoscaling_config"], **scaling}
    fixed = {**deployment, "autoscaling_config": scaling}
    changed["applications"] = [{**application, "deployments": [fixed]}]
    return changed


def ray_environment(
    config: ReplicasBenchConfig, port: int, inherited: Mapping[str, str]
) -> dict[str, str]:
    """The environment Ray and its replicas start in: HAProxy on, every port near `port`."""
    chosen = {
        "CURT_MODEL": str(config.model.absolute()),
        "CURT_SPARES": "0",
        "CURT_CACHE_TTL_S": "0",
        "PYTHONPATH": str(ROOT),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(port + 1),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(port + 2),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(port + 3),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + 9),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    if config.fallback:
        chosen["CURT_FALLBACK"] = str(config.fallback.absolute())
    return {k: v for k, v in inherited.items() if not k.startswith("CURT_")} | chosen


def _wait_for_ray(server: Served) -> None:
    """Raises RuntimeError with the last words when it is not ready in time."""
    end_s = time.monotonic() + WAIT_RAY_S
    while not server.is_ready():
        if server.process.poll() is not None or time.monotonic() > end_s:
            words = server.log.read_text(errors="replace").strip().splitlines()
            raise RuntimeError(f"Ray Serve is not ready: {words[-1] if words else 'no word'}")
        time.sleep(0.5)
    time.sleep(5.0)  # the second replica, too


def measure_idle(pids: Sequence[int], seconds: float = 5.0) -> float:
    """Cores that processes and all below them use while nobody asks them anything."""
    before_s = _processor_s(pids)
    time.sleep(seconds)
    return round((_processor_s(pids) - before_s) / seconds, 3)


def _processor_s(pids: Sequence[int]) -> float:
    total_s = 0.0
    for pid in pids:
        first = psutil.Process(pid)
        for process in (first, *first.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
                times = process.cpu_times()
                total_s += times.user + times.system
    return total_s


if __name__ == "__main__":
    main()
