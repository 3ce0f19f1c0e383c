"""The real command against a small server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.loadtest.stalled_server import serving

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_search_has_its_steps_and_a_whole_one_all_it_promises(
    tmp_path: Path,
) -> None:
    cases, report = tmp_path / "cases.jsonl", tmp_path / "capacity.json"
    cases.write_text('{"fact": "被告人张某窃取现金2000元。"}\n', encoding="utf-8")
    with serving(stall_s=0.0) as host:
        command = [
            sys.executable, "-m", "loadtest.capacity", "--host", host, "--report", str(report),
            "--cases", str(cases), "--slo_p99_ms", "2000", "--deadline_ms", "2000",
            "--min_requests", "60", "--min_s", "1", "--start_per_s", "20", "--max_per_s", "80",
            "--settle_s", "0",
        ]  # fmt: skip
        first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        end_s = time.monotonic() + 40
        while not report.exists() and time.monotonic() < end_s:
            time.sleep(0.05)
        first.send_signal(signal.SIGINT)
        _, log = first.communicate(timeout=30)
        assert first.returncode == 130, log
        half = json.loads(report.read_text())["capacity"]
        assert half["finished"] is False
        assert 1 <= len(half["steps"]) < 3
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert second.returncode == 0, second.stderr
    whole = json.loads(report.read_text())["capacity"]
    assert whole["finished"] is True
    assert [step["rate_per_s"] for step in whole["steps"]] == [20, 40, 80]
    assert whole["rate_per_s"] == 80
    rows = report.with_suffix(".csv").read_text().splitlines()
    assert len(rows) == 1 + sum(step["requests"] for step in whole["steps"])
    assert report.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    page = report.with_suffix(".html").read_text(encoding="utf-8")
    for written in (page, second.stderr, report.read_text()):
        assert "被告人" not in written


def test_a_server_that_is_down_is_no_capacity(tmp_path: Path) -> None:
    cases = tmp_path / "cases.jsonl"
    cases.write_text('{"fact": "被告人张某窃取现金2000元。"}\n', encoding="utf-8")
    ended = subprocess.run(
        [
            sys.executable, "-m", "loadtest.capacity", "--host", "http://127.0.0.1:9",
            "--ready_timeout_s", "0.5", "--cases", str(cases),
            "--report", str(tmp_path / "capacity.json"),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "make serve" in ended.stderr
    assert not (tmp_path / "capacity.json").exists()
