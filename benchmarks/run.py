"""Servers to be measured or mistreated, their machine, and the files a benchmark leaves."""

from __future__ import annotations

import contextlib
import csv
import gzip
import http.client
import io
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from pydantic import Field

from curt.config import Config
from curt.corpus.case import Case
from curt.corpus.store import read_cases
from curt.files import write_atomic, write_json

ROOT = Path(__file__).parents[1]
HOST = "127.0.0.1"
READY_S, STOP_S = 120.0, 20.0
EXPECTED = (OSError, RuntimeError, ValueError)
"""Errors that a user can mend, for `curt.config.run`."""


class StartError(RuntimeError):
    """A server that does not come up; the message holds its last words."""


class RunningServer:
    """A process that answers HTTP; `log` holds what it prints, for ours one JSON object a line."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log

    def is_ready(self, path: str = "/readyz") -> bool:
        """Whether it answers 200 there."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):  # not listening yet, or not any more
            return False
        finally:
            connection.close()

    def read_log(self) -> list[dict[str, Any]]:
        """Every line so far that is whole, with `at_s`, its Unix time to the millisecond."""
        rows = []
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines(True):
            if line.startswith("{") and line.endswith("}\n"):
                row = json.loads(line)
                rows.append({**row, "at_s": datetime.fromisoformat(row["time"]).timestamp()})
        return rows

    def cpu_s(self) -> float:
        """Processor time of the front so far, without its workers."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def worker_pids(self) -> list[int]:
        """The workers that serve, in the order they took their places; spares are not among them.

        The server tells nobody but its log.
        """
        said = (
            row["message"].split() for row in self.read_log() if row["logger"] == "serve.pool.pool"
        )
        placed = [int(words[1]) for words in said if words[::2] == ["worker", "ready"]]
        return [pid for pid in placed if _is_alive(pid)]


@contextlib.contextmanager
def run_server(
    command: Sequence[str],
    url: str,
    environment: Mapping[str, str],
    *,
    ready_path: str = "/readyz",
    ready_s: float = READY_S,
) -> Iterator[RunningServer]:
    """Start a server, wait until it is ready, and end it and all its children after the block.

    Raises StartError when its port is taken, when it ends at once, or takes too long.
    """
    port = urlsplit(url).port or 80
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:  # another server would be measured in its stead
            raise StartError(f"port {port} is taken: end what listens there") from error
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=dict(environment), stdin=subprocess.DEVNULL, stdout=file,
                stderr=file, start_new_session=True,
            )  # fmt: skip
        server = RunningServer(process, url, log)
        try:
            end_s = time.monotonic() + ready_s
            while not server.is_ready(ready_path):
                if process.poll() is not None or time.monotonic() > end_s:
                    lines = log.read_text(errors="replace").strip().splitlines()
                    words = " / ".join(lines[-3:]) or "it said nothing"
                    raise StartError(f"the server at {url} is not ready: {words}")
                time.sleep(0.1)
            yield server
        finally:
            _end(process)


def serve(model: Path, **settings: object) -> AbstractContextManager[RunningServer]:
    """Serve a model folder until the block ends; `settings` are those of `serve.settings`.

    None of this process's own CURT_ variables reaches the server. Its result cache is off unless
    `cache_ttl_s` says otherwise. Raises StartError.
    """
    port = free_port()
    chosen = {"model": model, "host": HOST, "port": port, "cache_ttl_s": 0, **settings}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CURT_")}
    environment |= {f"CURT_{k.upper()}": str(v) for k, v in chosen.items() if v is not None}
    return run_server([sys.executable, "-m", "serve"], f"http://{HOST}:{port}", environment)


def end_servers_when_told() -> None:
    """Make SIGTERM unwind this program as Ctrl-C does, so that no server outlives it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


class ServedConfig(Config):
    """Settings of every benchmark that starts a server."""

    model: Path = Path("artifacts/demo/ort-w8a8")
    """Model folder to serve."""
    fallback: Path | None = Path("artifacts/demo/fallback")
    """Its classifier folder; without one, what can't be met is refused."""
    workers: int | None = Field(None, ge=1)
    """Of the server; one per core when left out."""
    deadline_ms: int = 400
    """Of every request."""
    seed: int = 1
    """Of the arrivals."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """JSONL file that the facts come from."""

    def read_cases(self) -> list[Case]:
        """The cases. Raises OSError and ValueError where there is none."""
        cases = list(read_cases(self.cases))
        if not cases:
            raise ValueError(f"{self.cases} holds no case")
        return cases

    def serve(self, **settings: object) -> AbstractContextManager[RunningServer]:
        """The server of these settings, for a block."""
        chosen = {"fallback": self.fallback, "workers": self.workers, **settings}
        return serve(self.model, **chosen)

    def describe(self) -> dict[str, Any]:
        """Machine and server, for a report."""
        return {
            "machine": describe_machine(),
            "model": self.model.name,
            "workers": self.workers,
            "fallback": self.fallback is not None,
        }


def describe_machine() -> dict[str, Any]:
    """What the figures were taken on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "processor": next(names, platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def write_results(
    report: Path,
    summary: Mapping[str, Any],
    *,
    rows: Sequence[Mapping[str, Any]] = (),
    picture: bytes | None = None,
) -> None:
    """Write the summary as JSON and beside it raw rows as .rows.csv.gz and the picture as .png.

    Rows may lack columns that others have. The same rows give the same bytes.
    """
    if rows:
        text = io.StringIO()
        columns = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        packed = gzip.compress(text.getvalue().encode(), mtime=0)
        write_atomic(report.with_suffix(".rows.csv.gz"), packed)
    if picture is not None:
        write_atomic(report.with_suffix(".png"), picture)
    write_json(report, summary)


def _end(process: subprocess.Popen[bytes]) -> None:
    """First politely, then the whole group, so that no worker stays behind."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
