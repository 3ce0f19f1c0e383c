"""Where this project's server spends its time at a rate: processes, phases, functions.

    python -m benchmarks.peers --mode profile --py_spy PYSPY/bin/py-spy

Processor time by process says who is short of it, the phases that replies report say where a
request waits, and py-spy, where it is given, names the functions of the front process.
"""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.peers.catalogue import curt_settings
from benchmarks.peers.client import Client, Reply, send_on_schedule
from benchmarks.peers.judging import summarise
from benchmarks.peers.running import run_server

if TYPE_CHECKING:
    from benchmarks.peers.__main__ import PeersConfig

log = logging.getLogger(__name__)

KNEE_SHARE = 0.8  # of the highest rate: busy, but without a queue of its own making
SAMPLES_PER_S = 100
TOP = 25


async def profile(config: PeersConfig) -> dict[str, Any]:
    """The report. Raises ValueError when no rate is given and none was measured."""
    from benchmarks.peers.__main__ import Bench

    bench = Bench(config)
    setting = curt_settings(bench.places(), config.slo_ms)[0]
    rate = config.rate or _measured_rate(config)
    with run_server(setting) as process:
        await bench.ask_in_turn(setting, 60, 2)
        before = cpu_seconds(process.pid)
        own = psutil.Process().cpu_times()
        first, bodies = bench.take(setting, round(rate * config.step_s))
        client = Client(setting.url, setting.path)
        replies = await send_on_schedule(client, bodies, rate, seed=1)
        after = cpu_seconds(process.pid)
        used = psutil.Process().cpu_times()
        # A second time for the functions: being watched slows the server down.
        sampling = asyncio.create_task(sample(config.py_spy, process.pid, config.step_s))
        if config.py_spy is not None:
            _, more = bench.take(setting, len(bodies))
            await send_on_schedule(client, more, rate, seed=2)
        stacks = await sampling
        client.close()
    outcomes = bench.judge(setting, replies, first)
    names = sorted(after, key=lambda name: (name != "front", name))
    cpu = {name: after[name] - before.get(name, 0.0) for name in names}
    cpu["client"] = used.user + used.system - own.user - own.system
    return {
        "rate_per_s": rate,
        "seconds": config.step_s,
        "step": summarise(outcomes, rate),
        "cpu_ms_per_request": {name: 1e3 * s / len(replies) for name, s in cpu.items()},
        "cpu_share_of_a_core": {name: s / config.step_s for name, s in cpu.items()},
        "phases_ms": phases(replies),
        "front_functions": rank(stacks) if stacks else None,
    }


def cpu_seconds(pid: int) -> dict[str, float]:
    """Processor seconds so far of the front process and of each of its descendants."""
    front = psutil.Process(pid)
    seconds = {"front": _used(front)}
    for child in front.children(recursive=True):
        seconds[f"process {child.pid - pid}"] = _used(child)
    return seconds


async def sample(py_spy: Path | None, pid: int, seconds: float) -> list[str]:
    """Stacks of a process, one `frame;frame;frame count` each; none without py-spy."""
    if py_spy is None:
        return []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stacks"
        process = await asyncio.create_subprocess_exec(
            str(py_spy), "record", "--pid", str(pid), "--duration", str(round(seconds)),
            "--rate", str(SAMPLES_PER_S), "--gil", "--nonblocking", "--format", "raw",
            "--output", str(file),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, errors = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"py-spy failed: {errors.decode().strip().splitlines()[-1:]}")
        return file.read_text(encoding="utf-8").splitlines()


def rank(stacks: Iterable[str]) -> dict[str, dict[str, float]]:
    """Shares of the samples: `own` where a function was at work itself, `whole` with what it calls.

    Raises ValueError when there is no sample.
    """
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    total = 0
    for line in stacks:
        frames, _, count = line.rpartition(" ")
        names = [_without_line(frame) for frame in frames.split(";")]
        total += int(count)
        own[names[-1]] += int(count)
        for name in set(names):
            whole[name] += int(count)
    if not total:
        raise ValueError("no sample: was the server idle?")
    return {
        "own": {name: round(n / total, 4) for name, n in own.most_common(TOP)},
        "whole": {name: round(n / total, 4) for name, n in whole.most_common(2 * TOP)},
    }


def phases(replies: Sequence[Reply]) -> dict[str, float]:
    """Means over full replies: the phases that the server reports and what is beside them."""
    told: list[Mapping[str, float]] = []
    beside = []
    for reply in replies:
        if reply.status == 200:
            told.append(json.loads(reply.body)["timings_ms"])
            beside.append(reply.latency_ms - told[-1]["total"])
    if not told:
        return {}
    means = {name: fmean(timings[name] for timings in told) for name in told[0]}
    inside = means["total"] - means["queue"] - means["prefill"] - means["decode"]
    return means | {"front": inside, "network_and_client": fmean(beside)}


def _without_line(frame: str) -> str:
    """`name (file:12)` as `name (file)`."""
    name, colon, line = frame.rpartition(":")
    return f"{name})" if colon and line.rstrip(")").isdigit() else frame


def _used(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _measured_rate(config: PeersConfig) -> float:
    if not config.out.is_file():
        raise ValueError(f"no rate in {config.out}: measure first, or give --rate")
    report = json.loads(config.out.read_text(encoding="utf-8"))
    return KNEE_SHARE * float(report["servers"]["curt"]["highest_per_s"]["median"])
