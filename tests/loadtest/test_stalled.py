"""A server that stalls one second in five: an open run notices, a closed one does not.

Closed: a few users who each wait for a reply before they ask again, timed from sending, as most
load generators do it. Open: `locust -f loadtest/` at the closed run's own rate, timed from the
schedule. The closed users send one request each into a stall and then wait with it; everyone who
would have come meanwhile is not in their figures.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from loadtest._cases import mix_cases
from loadtest._reply import Outcome, Slo, judge_reply
from loadtest._slo import summarise
from tests.loadtest.stalled_server import serving

ROOT = Path(__file__).parents[2]
FACT = "被告人张某窃取他人现金8000元，归案后如实供述。"
SECONDS = 11.0
USERS = 2
PACE_S = 0.02  # a closed user asks this often, or as soon as the last reply is there


@pytest.mark.slow
def test_the_open_run_fails_a_stalling_server_that_the_closed_run_passes(tmp_path: Path) -> None:
    with serving(stall_s=1.0, period_s=5.0) as host:
        closed, rate_per_s = run_closed(host)
        exit_code, open_run = run_open(host, rate_per_s, tmp_path)
    assert closed["verdict"]["passed"], closed["verdict"]
    assert exit_code == 1, open_run["verdict"]
    # Of arrivals in a 1 s stall, those in its first 0.6 s wait more than 400 ms: 12% of all.
    assert 0.06 < open_run["miss_rate"] < 0.25
    assert closed["miss_rate"] < 0.01
    assert open_run["latency_ms"]["p99"] > 400 > closed["latency_ms"]["p99"]
    assert open_run["achieved_rate_per_s"] == pytest.approx(rate_per_s, rel=0.25)


def run_closed(host: str) -> tuple[dict[str, Any], float]:
    """Figures of users who wait for each reply, and how many requests a second they made."""
    slo, mix = Slo(), mix_cases([FACT], 0)
    outcomes: list[Outcome] = []
    start_s = time.monotonic()

    def ask_again_and_again(user: int) -> None:
        connection = http.client.HTTPConnection(urlsplit(host).netloc, timeout=10)
        index, due_s = 0, start_s
        while due_s - start_s < SECONDS:
            time.sleep(max(0.0, due_s - time.monotonic()))
            sent = mix.request_of(index, user, 400)
            body = json.dumps(sent.payload, ensure_ascii=False).encode()
            sent_s = time.monotonic()
            connection.request("POST", "/predict", body, {"X-Request-ID": sent.request_id})
            reply = connection.getresponse()
            text = reply.read()
            ended_s = time.monotonic()
            outcomes.append(judge_reply(reply.status, text, (ended_s - sent_s) * 1e3, slo, sent))
            index, due_s = index + 1, max(sent_s + PACE_S, ended_s)
        connection.close()

    threads = [threading.Thread(target=ask_again_and_again, args=(user,)) for user in range(USERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate_per_s = len(outcomes) / (time.monotonic() - start_s)
    return summarise(outcomes, slo, require_proof=False), rate_per_s


def run_open(host: str, rate_per_s: float, folder: Path) -> tuple[int, dict[str, Any]]:
    """Exit code and report of the load test itself, as a user runs it."""
    cases, report = folder / "cases.jsonl", folder / "report.json"
    cases.write_text(json.dumps({"fact": FACT}) + "\n", encoding="utf-8")
    command = [
        sys.executable, "-m", "locust", "-f", "loadtest/", "--headless", "--only-summary",
        "--host", host, "--rate", f"{rate_per_s:.3f}", "--run-time", f"{SECONDS:g}s",
        "--cases", str(cases), "--slo-report", str(report),
    ]  # fmt: skip
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert report.is_file(), ended.stderr
    return ended.returncode, json.loads(report.read_text(encoding="utf-8"))
