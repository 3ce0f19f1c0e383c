"""A server that stalls one second in five: who notices?

    python -m tests.loadtest.stalled_runs

The same server is measured twice over the same time. Closed: a few users who each wait for a
reply before they ask again, timed from sending, as most load generators do it. Open: the load
test of this project, `locust -f loadtest/`, at the closed run's own rate, timed from the
schedule. Both are judged by the same rule. The closed users send one request each into a stall
and then wait with it; everyone who would have come meanwhile is not in their figures.
"""

from __future__ import annotations

import http.client
import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from curt.config import Config
from loadtest._cases import CaseMix, mix_cases
from loadtest._reply import Outcome, Slo, judge_reply
from loadtest._slo import summarise
from tests.loadtest.stalled_server import serving

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
FACT = "被告人张某窃取他人现金8000元，归案后如实供述。"


class StalledConfig(Config):
    """The stall and the two runs."""

    seconds: float = 60.0
    """How long each run lasts."""
    stall_s: float = 1.0
    """The server stands still for so long ..."""
    period_s: float = 5.0
    """... at the start of every such period."""
    users: int = 2
    """Users of the closed run."""
    pace_s: float = 0.02
    """A closed user asks this often, or as soon as the last reply is there."""
    slo_p99_ms: float = 400.0
    """p99 latency to keep."""
    max_miss_rate: float = 0.01
    """Share of requests that may miss."""
    port: int = 0
    """Of the server; 0 for a free one."""
    report: Path = Path("benchmarks/stalled.json")
    """File of results; the plot goes beside it as .png."""


def measure(config: StalledConfig) -> dict[str, Any]:
    """Both runs against the same server, and what each concluded."""
    stall = {"stall_s": config.stall_s, "period_s": config.period_s}
    with serving(config.port, **stall) as host:
        closed = run_closed(config, host)
        open_run = run_open(config, host, closed["achieved_rate_per_s"])
    return {
        "settings": config.model_dump(mode="json", exclude={"report", "port"}),
        "closed": closed,
        "open": open_run,
        "summary": {
            "closed_exit_code": closed["exit_code"],
            "open_exit_code": open_run["exit_code"],
            "closed_p99_ms": closed["latency_ms"]["p99"],
            "open_p99_ms": open_run["latency_ms"]["p99"],
            "closed_miss_rate": closed["miss_rate"],
            "open_miss_rate": open_run["miss_rate"],
            "shown": closed["exit_code"] == 0 and open_run["exit_code"] == 1,
        },
    }


def run_closed(config: StalledConfig, host: str) -> dict[str, Any]:
    """Users who wait for each reply, timed from sending, judged as the load test judges."""
    slo = Slo(config.slo_p99_ms, config.max_miss_rate)
    mix = mix_cases([FACT], 0)
    outcomes: list[Outcome] = []
    start_s = time.monotonic()
    threads = [
        threading.Thread(target=_use, args=(host, mix, user, start_s, config, slo, outcomes))
        for user in range(config.users)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    duration_s = time.monotonic() - start_s
    outcomes.sort(key=lambda outcome: outcome.at_s)
    figures = summarise(outcomes, slo, require_proof=False)
    return {
        "exit_code": 0 if figures["verdict"]["passed"] else 1,
        "duration_s": duration_s,
        "achieved_rate_per_s": len(outcomes) / duration_s,
        **_kept(figures),
        "answered_at_s": [round(o.at_s, 3) for o in outcomes if o.answered],
    }


def run_open(config: StalledConfig, host: str, rate_per_s: float) -> dict[str, Any]:
    """The load test itself, as a user runs it. Raises RuntimeError when it wrote no report."""
    with tempfile.TemporaryDirectory() as folder:
        cases, report = Path(folder, "cases.jsonl"), Path(folder, "report.json")
        cases.write_text(json.dumps({"fact": FACT}) + "\n", encoding="utf-8")
        command = [
            sys.executable, "-m", "locust", "-f", "loadtest/", "--headless", "--only-summary",
            "--host", host, "--rate", f"{rate_per_s:.3f}", "--run-time", f"{config.seconds:g}s",
            "--cases", str(cases), "--slo-report", str(report),
            "--slo-p99-ms", f"{config.slo_p99_ms:g}",
            "--max-miss-rate", f"{config.max_miss_rate:g}",
        ]  # fmt: skip
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if not report.is_file():
            raise RuntimeError(f"the load test ended with {ended.returncode}: {ended.stderr}")
        figures = json.loads(report.read_text(encoding="utf-8"))
    return {
        "exit_code": ended.returncode,
        "duration_s": figures["duration_s"],
        "achieved_rate_per_s": figures["achieved_rate_per_s"],
        **_kept(figures),
        "answered_at_s": figures["answered_at_s"],
    }


def _use(
    host: str,
    mix: CaseMix,
    user: int,
    start_s: float,
    config: StalledConfig,
    slo: Slo,
    outcomes: list[Outcome],
) -> None:
    connection = http.client.HTTPConnection(urlsplit(host).netloc, timeout=10)
    index, due_s = 0, start_s
    while due_s - start_s < config.seconds:
        time.sleep(max(0.0, due_s - time.monotonic()))
        sent = mix.request_of(index, user, int(config.slo_p99_ms))
        body = json.dumps(sent.payload, ensure_ascii=False).encode()
        sent_s = time.monotonic()
        connection.request("POST", "/predict", body, {"X-Request-ID": sent.request_id})
        reply = connection.getresponse()
        text = reply.read()
        ended_s = time.monotonic()
        outcome = judge_reply(reply.status, text, (ended_s - sent_s) * 1e3, slo, sent)
        outcomes.append(
            Outcome(outcome.latency_ms, outcome.miss, outcome.answered, at_s=sent_s - start_s)
        )
        index, due_s = index + 1, max(sent_s + config.pace_s, ended_s)
    connection.close()


def _kept(figures: dict[str, Any]) -> dict[str, Any]:
    names = (
        "requests", "misses", "miss_rate", "misses_by_reason", "latency_ms", "verdict",
        "confidence", "latencies_ms",
    )  # fmt: skip
    return {name: figures[name] for name in names}
