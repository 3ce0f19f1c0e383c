"""The real `locust` command against a small server that behaves and misbehaves."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from serve.api.schemas import PredictRequest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@dataclass
class Behaviour:
    """How the neighbour server acts, and what it saw."""

    status: int = 200
    degraded: bool = False
    stall_s: float = 0.0  # out of every `period_s`
    period_s: float = 5.0
    ready_after_s: float = 0.0
    started_s: float = field(default_factory=time.monotonic)
    payloads: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    first_ready_s: float | None = None
    first_case_s: float | None = None


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            return

        def do_GET(self) -> None:
            age_s = time.monotonic() - behaviour.started_s
            ready = self.path == "/readyz" and age_s >= behaviour.ready_after_s
            if ready and behaviour.first_ready_s is None:
                behaviour.first_ready_s = time.monotonic()
            self._reply(200 if ready else 503, {})

        def do_POST(self) -> None:
            if behaviour.first_case_s is None:
                behaviour.first_case_s = time.monotonic()
            body = self.rfile.read(int(self.headers["Content-Length"]))
            behaviour.payloads.append(json.loads(body))
            behaviour.keys.add(self.headers["Authorization"])
            phase_s = (time.monotonic() - behaviour.started_s) % behaviour.period_s
            if phase_s < behaviour.stall_s:
                time.sleep(behaviour.stall_s - phase_s)
            reply = {
                "request_id": self.headers["X-Request-ID"],
                "degraded": behaviour.degraded,
                "defendants": [{"charges": [{"name": "盗窃"}]}],
                "thinking": {"tokens": 7, "allowed": 32, "stated_budget": 32, "cut": False},
                "timings_ms": {"queue": 0.5, "prefill": 1.5, "decode": 2.0, "total": 4.0},
                "warnings": [],
                "deadline_ms": behaviour.payloads[-1]["deadline_ms"],
                "notice": "for reference only",
            }
            self._reply(behaviour.status, reply)

        def _reply(self, status: int, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            return  # a client that gave up

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    path = tmp_path / "test.jsonl"
    rows = [{"fact": f"被告人张某窃取现金{amount}元。"} for amount in (2000, 30000, 9000)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    return path


def command(host: str, cases: Path, report: Path, *flags: str) -> list[str]:
    return [
        sys.executable, "-m", "locust", "-f", "loadtest/", "--headless", "--host", host,
        "--run-time", "5s", "--cases", str(cases), "--slo-report", str(report), *flags,
    ]  # fmt: skip


def run_locust(
    host: str, cases: Path, tmp_path: Path, *flags: str
) -> tuple[int, dict[str, Any], str]:
    report = tmp_path / "loadtest.json"
    process = subprocess.run(
        command(host, cases, report, *flags), cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    log = process.stdout + process.stderr
    return process.returncode, json.loads(report.read_text()), log


def test_a_healthy_server_passes(cases: Path, tmp_path: Path) -> None:
    behaviour = Behaviour(ready_after_s=3.0)
    # Wide limits: what is tested is the verdict, not how busy this machine is.
    with serving(behaviour) as host:
        code, report, log = run_locust(
            host, cases, tmp_path, "--rate", "20", "--slo-p99-ms", "3000", "--deadline-ms", "3500"
        )
    assert code == 0, log
    assert report["verdict"]["passed"]
    assert report["misses"] == 0
    assert report["requests"] == len(report["latencies_ms"]) == len(behaviour.payloads)
    assert 50 < report["requests"] < 160, "100 expected in 5 s at 20 a second"
    assert report["achieved_rate_per_s"] == pytest.approx(report["requests"] / 5, rel=0.2)
    assert report["server_ms"] == {"queue": 0.5, "prefill": 1.5, "decode": 2.0, "total": 4.0}
    assert report["thinking_tokens_mean"] == 7
    assert "too few requests" in report["confidence"]["statement"]
    facts = [payload["fact"] for payload in behaviour.payloads]
    assert len(set(facts)) == len(facts), "every case is new to a cache"
    assert all(PredictRequest.model_validate_json(json.dumps(p)) for p in behaviour.payloads)
    assert {payload["deadline_ms"] for payload in behaviour.payloads} == {3500}
    assert behaviour.first_ready_s is not None
    assert behaviour.first_case_s is not None
    assert behaviour.first_case_s > behaviour.first_ready_s >= behaviour.started_s + 3
    assert "被告人" not in log, "no case text in the log"


def test_a_server_that_stalls_one_second_in_five_fails_by_its_p99(
    cases: Path, tmp_path: Path
) -> None:
    behaviour = Behaviour(stall_s=1.0)
    with serving(behaviour) as host:
        code, report, log = run_locust(host, cases, tmp_path, "--rate", "20", "--run-time", "7s")
    assert code == 1, log
    assert not report["verdict"]["passed"]
    assert 400 < report["latency_ms"]["p99"] < 2500
    assert report["latency_ms"]["p50"] < 400, "most requests came outside the stall"
    assert report["misses_by_reason"]["over the SLO"] == report["misses"]


def test_what_is_still_owed_at_the_end_counts(cases: Path, tmp_path: Path) -> None:
    """The server answers nothing before the run is over, so only the drain sees any reply."""
    behaviour = Behaviour(stall_s=30.0, period_s=60.0)
    with serving(behaviour) as host:
        code, report, log = run_locust(
            host, cases, tmp_path, "--rate", "10", "--run-time", "3s", "--timeout-s", "1.5"
        )
    assert code == 1, log
    assert report["requests"] == report["misses"] > 10
    assert set(report["misses_by_reason"]) == {"timeout"}
    assert report["latency_ms"]["p50"] is None


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (Behaviour(status=503), "shed (503)"),
        (Behaviour(degraded=True), "degraded"),
    ],
    ids=["sheds", "degrades"],
)
def test_a_server_that_refuses_or_degrades_fails(
    behaviour: Behaviour, reason: str, cases: Path, tmp_path: Path
) -> None:
    with serving(behaviour) as host:
        code, report, log = run_locust(host, cases, tmp_path, "--rate", "20", "--run-time", "2s")
    assert code == 1, log
    assert report["requests"] > 0
    assert report["misses_by_reason"] == {reason: report["requests"]}


def test_a_server_that_is_down_fails(cases: Path, tmp_path: Path) -> None:
    with serving(Behaviour()) as host:
        pass  # a port that nobody listens on any more
    code, report, log = run_locust(host, cases, tmp_path, "--ready-timeout-s", "1")
    assert code == 1
    assert report["ready"] is False
    assert report["verdict"] == {"passed": False, "reasons": ["no request was made"]}
    assert "make serve" in log


def test_a_run_without_requests_fails(cases: Path, tmp_path: Path) -> None:
    behaviour = Behaviour()
    with serving(behaviour) as host:
        code, report, log = run_locust(host, cases, tmp_path, "--rate", "0.001", "--run-time", "1s")
    assert behaviour.payloads == []
    assert code == 1, log
    assert report["verdict"]["reasons"] == ["no request was made"]


def test_a_terminated_run_still_reports(cases: Path, tmp_path: Path) -> None:
    report = tmp_path / "loadtest.json"
    behaviour = Behaviour()
    with serving(behaviour) as host:
        process = subprocess.Popen(
            command(host, cases, report, "--rate", "20", "--run-time", "60s"),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end_s = time.monotonic() + 30
        while len(behaviour.payloads) < 5 and time.monotonic() < end_s:
            time.sleep(0.05)
        process.terminate()
        process.wait(timeout=30)
    assert json.loads(report.read_text())["requests"] == len(behaviour.payloads) >= 5


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--rate", "0"), "use more than 0"),
        (("--api-key-file", "nowhere.key"), "give a text file"),
        (
            (
                "--processes",
                "2",
                "--master-bind-port",
                "8167",
                "--master-port",
                "8167",
                "--mix",
                "long:1",
                "--length-bounds",
                "99,99",
            ),
            "the corpus has none",
        ),
    ],
)
def test_a_run_that_could_mean_nothing_is_refused(
    flags: tuple[str, ...], complaint: str, cases: Path, tmp_path: Path
) -> None:
    process = subprocess.run(
        command("http://127.0.0.1:9", cases, tmp_path / "loadtest.json", *flags),
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert process.returncode == 1
    assert complaint in process.stderr


def test_a_shaped_run_of_two_workers_is_one_run_with_one_verdict(
    cases: Path, tmp_path: Path
) -> None:
    behaviour = Behaviour()
    page, key = tmp_path / "report.html", tmp_path / "api.key"
    key.write_text("sk-secret-of-mine\n")
    with serving(behaviour) as host:
        code, report, log = run_locust(
            host, cases, tmp_path, "--processes", "2", "--master-bind-port", "8166",
            "--master-port", "8166", "--shape", "step", "--rate", "10",
            "--peak", "50", "--steps", "2", "--mix", "short:3,long:1", "--length-bounds", "15,15",
            "--slo-p99-ms", "3000", "--deadline-ms", "3000", "--slo-html", str(page),
            "--api-key-file", str(key),
        )  # fmt: skip
    assert code == 0, log
    assert report["workers"] == 2
    assert report["requests"] == len(behaviour.payloads), "every outcome reached the master"
    assert len({p["fact"] for p in behaviour.payloads}) == report["requests"]
    # Poisson with mean 150; five standard deviations, and a little for late starts.
    assert abs(report["requests"] - report["expected_requests"]) < 70
    assert report["expected_requests"] == pytest.approx(150, rel=0.1)
    early = sum(row["requests"] for row in report["windows"] if row["from_s"] < 2)
    late = sum(row["requests"] for row in report["windows"] if 3 <= row["from_s"] < 5)
    assert late > 2 * early, "the second step is five times the first"
    assert behaviour.keys == {"Bearer sk-secret-of-mine"}
    text = page.read_text(encoding="utf-8")
    for written in (text, log, json.dumps(report)):
        assert "sk-secret" not in written
        assert "被告人" not in written
    assert text.count("<svg") == 3
    assert "http" not in text.replace(host, "").replace("http-equiv", "")


def test_a_worker_that_cannot_run_fails_the_whole(cases: Path, tmp_path: Path) -> None:
    behaviour = Behaviour(status=200)
    with serving(behaviour) as host:
        master = subprocess.Popen(
            [*command(host, cases, tmp_path / "loadtest.json", "--rate", "20", "--timeout-s", "2"),
             "--master", "--master-bind-port", "8165", "--expect-workers", "2"],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        worker = [
            sys.executable, "-m", "locust", "-f", "loadtest/", "--worker", "--master-port", "8165",
        ]  # fmt: skip
        good = subprocess.Popen(
            worker, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        bad = subprocess.Popen(
            worker, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end_s = time.monotonic() + 40
        while len(behaviour.payloads) < 5 and time.monotonic() < end_s:
            time.sleep(0.05)
        bad.kill()
        code = master.wait(timeout=60)
        bad.wait(timeout=10)
        good.wait(timeout=30)
    report = json.loads((tmp_path / "loadtest.json").read_text())
    assert code == 1
    assert report["requests"] > 5, "what the other worker saw is kept"
    assert any("1 of 2 workers sent no outcomes" in r for r in report["verdict"]["reasons"])
