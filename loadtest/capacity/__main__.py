"""How many requests a second can a server take and still keep its promise?

    python -m loadtest.capacity --host http://127.0.0.1:8000 --report artifacts/demo/capacity.json

Writes the figures as JSON, the raw rows as CSV, the plot as PNG and all of it as HTML, beside
each other. Interrupted with Ctrl-C it has written every finished step. Exit code 0 when a rate was
found, 1 when none keeps the promise, 130 when interrupted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import signal
import time
from dataclasses import asdict, fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from curt.config import Config, run
from curt.files import write_atomic, write_json
from loadtest._arrivals import load_facts
from loadtest._cases import mix_cases, parse_bounds, parse_mix
from loadtest._client import read_api_key, trust_in
from loadtest._http import HttpClient, wait_until_ready
from loadtest.capacity._curt import ask_curt
from loadtest.capacity._page import draw_capacity, render_page
from loadtest.capacity._rows import write_rows
from loadtest.capacity._search import Capacity, search
from loadtest.capacity._step import RateStep, StepPlan

logger = logging.getLogger("loadtest.capacity")


class CapacityConfig(Config):
    """The server, the promise, and how thoroughly to look."""

    host: str = "http://127.0.0.1:8000"
    """The server, http or https."""
    slo_p99_ms: float = 400.0
    """p99 latency to keep, and the latest a single answer may be."""
    max_miss_rate: float = 0.01
    """Share of requests that may miss."""
    deadline_ms: int = 400
    """Deadline sent with every case."""
    start_per_s: float = 2.0
    """First rate."""
    precision: float = 0.05
    """Stop when the broken rate is this close above the kept one."""
    min_requests: int = 1000
    """Requests a step, if it lasts long enough; fewer prove less."""
    min_s: float = 10.0
    """A step lasts at least this long."""
    max_s: float = 0.0
    """A step lasts at most this long, with fewer requests if need be; 0 for no limit."""
    warmup_requests: int = 20
    """Requests before each step that do not count."""
    settle_s: float = 1.0
    """Pause between two steps."""
    timeout_s: float = 10.0
    """Give a reply up after this long."""
    ready_timeout_s: float = 60.0
    """Wait this long for /readyz."""
    attempts: int = 1
    """How often a rate has to break before it counts as broken; more forgives hiccups."""
    max_per_s: float = 10_000.0
    """Highest rate to try."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """JSONL rows with a "fact"."""
    mix: str = ""
    """Weights by length, such as short:50,medium:40,long:10; as found when empty."""
    length_bounds: str = ""
    """Longest short and medium case in characters; thirds of the corpus when empty."""
    seed: int = 0
    """Of the schedules and the order of cases."""
    api_key_file: str = ""
    """File with the API key; else the environment's CURT_API_KEY, else none."""
    ca_file: str = ""
    """PEM certificates to trust in place of the system's."""
    report: Path = Path("artifacts/demo/capacity.json")
    """JSON file; .csv, .png and .html go beside it."""


def work(config: CapacityConfig) -> int:
    """Search; the exit code says what came of it."""
    try:
        found = asyncio.run(find(config))
    except (KeyboardInterrupt, asyncio.CancelledError):
        logger.warning("interrupted; %s keeps the finished steps", config.report)
        return 130
    logger.info("%s: %s", config.report, found.note)
    return 0 if found.rate_per_s else 1


async def find(config: CapacityConfig) -> Capacity:
    """Search, and write after every step."""
    loop = asyncio.get_running_loop()
    this = asyncio.current_task()
    assert this is not None
    loop.add_signal_handler(signal.SIGTERM, this.cancel)
    plan = make_plan(config)
    connect = partial(
        HttpClient,
        config.host,
        keep_alive=False,  # every case comes from a different user
        api_key=read_api_key(config.api_key_file),
        trust=trust_in(config.ca_file) if config.host.startswith("https") else None,
    )
    client = connect(config.timeout_s)
    mix = mix_cases(
        load_facts(config.cases),
        config.seed,
        weights=parse_mix(config.mix),
        bounds_chars=parse_bounds(config.length_bounds),
    )
    settings = {
        "host": config.host,
        "deadline_ms": config.deadline_ms,
        "cases": str(config.cases),
        "mix": mix.describe(),
        "plan": asdict(plan),
    }
    steps: list[RateStep] = []
    if not await wait_until_ready(connect(what="GET /readyz"), config.ready_timeout_s):
        raise ValueError(
            f"{config.host}/readyz did not answer 200 within {config.ready_timeout_s:g} s: start "
            "the server with `make serve`, or raise --ready_timeout_s"
        )

    def keep(step: RateStep) -> None:
        steps.append(step)
        save(config.report, settings, Capacity(tuple(steps), finished=False))

    ask = ask_curt(client, mix, int(time.time()), config.deadline_ms)
    found = await search(ask, plan, on_step=keep)
    save(config.report, settings, found)
    draw(config.report, settings, found)
    return found


def make_plan(config: CapacityConfig) -> StepPlan:
    """Raises ValueError on invalid settings."""
    same = {field.name for field in fields(StepPlan)} & CapacityConfig.model_fields.keys()
    return StepPlan(
        slo_ms=config.slo_p99_ms,
        patience_s=config.timeout_s,
        **{name: getattr(config, name) for name in same},
    )


def save(path: Path, settings: dict[str, Any], capacity: Capacity) -> None:
    """Write rows, then the report that counts on them."""
    write_rows(path.with_suffix(".csv"), capacity.steps)
    write_json(
        path,
        {
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": settings,
            "machine": {
                "cores": os.cpu_count(),
                "processor": platform.machine(),
                "python": platform.python_version(),
            },
            "capacity": capacity.to_json(),
        },
    )


def draw(path: Path, settings: dict[str, Any], capacity: Capacity) -> None:
    """Write the plot and the page."""
    slo_ms = settings["plan"]["slo_ms"]
    write_atomic(path.with_suffix(".png"), draw_capacity(capacity, slo_ms))
    write_atomic(path.with_suffix(".html"), render_page(settings, capacity))


if __name__ == "__main__":
    run(CapacityConfig, work, expected=(ValueError,))
