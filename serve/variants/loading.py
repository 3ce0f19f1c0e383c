"""Bringing a model up: workers started, warm, and one whole request answered."""

from __future__ import annotations

import asyncio
import time

from serve.metrics import Metrics
from serve.pool.job import Job
from serve.pool.worker import CALIBRATION_TEXT
from serve.variants.router import Variant
from serve.variants.shadow import verdict_in

MAX_LOAD_DEATHS = 2  # of workers, before a load is given up; one may be bad luck
WARM_UP_S = 30.0  # for the one request a model answers before it may have traffic
POLL_S = 0.05


class LoadError(Exception):
    """A model that did not come up; the message says why."""


async def bring_up(variant: Variant, aside: Metrics, timeout_s: float) -> str:
    """Start a variant's pool and let it answer one request.

    `aside` is where the pool counts deaths of its workers meanwhile. Returns what is doubtful
    about the answer, or nothing. Raises LoadError, or RequestError where it answers none.
    """
    await variant.pool.start()
    end_s = time.monotonic() + timeout_s
    while not variant.pool.ready:
        deaths = aside.registry.get_sample_value("curt_worker_deaths_total") or 0
        if deaths >= MAX_LOAD_DEATHS:
            raise LoadError(f"{deaths:.0f} workers ended while they loaded it; see the log")
        if time.monotonic() >= end_s:
            raise LoadError(f"not ready after {timeout_s:.0f} s")
        await asyncio.sleep(POLL_S)
    now_s = time.monotonic()
    served = await variant.pool.submit(Job(CALIBRATION_TEXT, now_s, now_s + WARM_UP_S))
    return "" if verdict_in(served) else "its warm-up answer was no verdict"
