"""Poisson arrival times, the facts that are sent, and an open loop under asyncio."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any

LEAD_S = 0.1  # before the first arrival
LOOK_S = 0.1  # between two looks at whether a run is lost


def arrival_times_s(rate_per_s: float, seed: int) -> Iterator[float]:
    """Endless Poisson arrivals: seconds from the start, in order, the same for the same seed.

    Raises ValueError when the rate is not above 0.
    """
    if not rate_per_s > 0:
        raise ValueError(f"a rate of {rate_per_s} arrivals a second: use more than 0")
    return _exponential_gaps(rate_per_s, random.Random(seed))


def _exponential_gaps(rate_per_s: float, source: random.Random) -> Iterator[float]:
    at_s = 0.0
    while True:
        at_s += source.expovariate(rate_per_s)
        yield at_s


async def run_open_loop(
    offsets_s: Iterable[float],
    work: Callable[[int, float], Coroutine[Any, Any, None]],
    is_lost: Callable[[], bool] = lambda: False,
) -> bool:
    """Begin `work(index, due_s)` at each offset from now, whatever is under way; wait for all.

    `due_s` is a `time.monotonic()` instant. Once `is_lost` no more begin, which is what it returns.
    Raises the first error of any work, and ends the others then.
    """
    start_s = time.monotonic() + LEAD_S
    try:
        async with asyncio.TaskGroup() as under_way:
            for index, offset_s in enumerate(offsets_s):
                due_s = start_s + offset_s
                while not is_lost() and (wait_s := due_s - time.monotonic()) > 0:
                    await asyncio.sleep(min(wait_s, LOOK_S))
                if is_lost():
                    return True
                under_way.create_task(work(index, due_s))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return False


def load_facts(path: Path) -> list[str]:
    """The `fact` of every row of a JSONL corpus. Raises ValueError naming the remedy."""
    remedy = "run `make demo` to make one, or name another JSONL file with --cases"
    if not path.is_file():
        raise ValueError(f"no cases at {path}: {remedy}")
    facts = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                fact = json.loads(line)["fact"]
            except (json.JSONDecodeError, KeyError, TypeError):
                fact = None
            if not isinstance(fact, str) or not fact.strip():
                raise ValueError(f'{path}, line {number} has no text under "fact": {remedy}')
            facts.append(fact)
    if not facts:
        raise ValueError(f"{path} holds no cases: {remedy}")
    return facts


def number_fact(fact: str, run: int, index: int) -> str:
    """The same case under a docket number of its own, so that no result cache can answer it.

    The number stands in front: behind, an engine that caches prompt prefixes would reuse the
    work of the whole fact and look faster than it is on new cases.
    """
    return f"（案卷{run}-{index}）{fact}"
