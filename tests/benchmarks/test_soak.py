from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.load.soak import (
    SoakConfig,
    judge,
    measure,
    read_processor,
    share_processor,
    to_series,
    verdict_on,
    watch_memory,
)
from benchmarks.load.trend import Trend
from curt.corpus.store import write_cases
from tests.cases import common_cases


def test_flat_rising_and_undecided():
    assert verdict_on(Trend(1.0, 0.5, 1.5), 2.0) == "flat"
    assert verdict_on(Trend(-9.0, -12.0, -5.0), 2.0) == "flat"
    assert verdict_on(Trend(3.0, 2.0, 4.0), 2.0) == "rising"
    assert verdict_on(Trend(2.0, 1.0, 3.0), 2.0) == "undecided"


def test_a_leak_rises_and_a_steady_process_is_flat():
    points = [i / 99 for i in range(100)]
    series = {
        "front_mib": [(at, 80.0 + at % 0.03) for at in points],
        "worker 1_mib": [(at, 60.0 + 40 * at) for at in points],
        "other 0_mib": [(1.0, 60.0)],
    }
    rows = judge(SoakConfig(), series)
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert verdicts == {
        "front_mib": "flat",
        "worker 1_mib": "rising",
        "other 0_mib": "undecided",
    }
    assert rows["worker 1_mib"]["growth"] == pytest.approx(40)


def test_what_happens_while_it_settles_is_not_judged():
    series = {"front_mib": [(i / 50, 10.0 if i < 5 else 90.0) for i in range(50)]}
    assert judge(SoakConfig(settle=0.1), series)["front_mib"]["verdict"] == "flat"


def test_p99_is_judged_as_a_share_of_its_median():
    slower = {"p99_ms": [(i / 10, 40.0 + 20 * i / 10) for i in range(1, 11)]}
    row = judge(SoakConfig(), slower)["p99_ms"]
    assert row["limit"] == pytest.approx(0.25 * 51)
    assert row["verdict"] == "rising"


def test_a_part_without_an_answer_has_no_latency_but_misses():
    parts = [
        {"answer_ms": {"p99": 30.0}, "miss_share": 0.0},
        {"answer_ms": {}, "miss_share": 1.0},
    ]
    series = to_series(parts, {"front": [(5.0, 70.0)]}, 10.0)
    assert series["p99_ms"] == [(0.25, 30.0)]
    assert series["miss_share"] == [(0.25, 0.0), (0.75, 1.0)]
    assert series["front_mib"] == [(0.5, 70.0)]


def test_the_processor_is_shared_out_between_server_client_others_and_the_machine_below():
    before = {"server": 1.0, "client": 2.0, "busy": 10.0, "idle": 5.0, "stolen": 0.0}
    after = {"server": 3.0, "client": 3.0, "busy": 17.0, "idle": 6.0, "stolen": 2.0}
    assert share_processor(before, after, 400) == pytest.approx(
        {"server_cpu_ms": 5.0, "others_share": 0.4, "stolen_share": 0.2}
    )
    assert share_processor(before, before, 0)["stolen_share"] == 0


def test_the_server_is_a_process_with_all_below_it():
    spin = "while True: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as child:
        before, started_s = read_processor(os.getpid()), time.monotonic()
        time.sleep(0.5)
        took = read_processor(os.getpid())["server"] - before["server"]
        child.kill()
    assert 0.05 < took < 2 * (time.monotonic() - started_s)


def test_memory_is_read_per_process_and_a_lost_one_is_counted():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    async def watch() -> tuple[dict[str, list[tuple[float, float]]], int]:
        task = asyncio.create_task(watch_memory(os.getpid(), [child.pid], 0.02))
        await asyncio.sleep(0.3)
        child.kill()
        child.wait()
        await asyncio.sleep(0.1)
        task.cancel()
        return await task

    try:
        seen, lost = asyncio.run(watch())
    finally:
        child.kill()
        child.wait()
    assert lost == 1
    assert len(seen["front"]) > len(seen["worker 1"]) >= 3
    assert all(held > 1 for _, held in seen["front"])


@pytest.mark.slow
def test_a_short_soak_of_a_real_server(soak_model: Path, tmp_path: Path) -> None:
    cases = tmp_path / "cases.jsonl"
    write_cases(cases, common_cases(5, seed=1))
    config = SoakConfig(
        model=soak_model, fallback=None, cases=cases, minutes=0.05, parts=3, capacity=8, workers=1
    )
    result, series = measure(config)
    assert result["processes_lost"] == 0
    assert result["requests"] == sum(part["arrived"] for part in result["parts"]) > 5
    assert all(part["exact_share"] == 0 for part in result["parts"])  # random weights
    assert {"p99_ms", "miss_share", "front_mib", "worker 1_mib"} <= set(series)
