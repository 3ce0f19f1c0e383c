"""A server of this checkout in a process of its own, with its log, to be measured or mistreated."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
HOST = "127.0.0.1"
READY_S, STOP_S = 120.0, 20.0


class Served:
    """The running server; `log` holds one JSON object a line."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log
        self.url = f"http://{HOST}:{port}"

    def is_ready(self) -> bool:
        """Whether it says so."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=2)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):  # not listening yet, or not any more
            return False
        finally:
            connection.close()

    def wait_until_ready(self) -> None:
        """Raises RuntimeError with the server's last words when it ends or takes too long."""
        end_s = time.monotonic() + READY_S
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > end_s:
                words = self.log.read_text(errors="replace").strip().splitlines()
                raise RuntimeError(f"the server is not ready: {words[-1] if words else 'no word'}")
            time.sleep(0.1)

    def read_log(self) -> list[dict[str, Any]]:
        """Every line so far that is whole, with `at_s`, its Unix time to the millisecond."""
        rows = []
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines(True):
            if line.startswith("{") and line.endswith("}\n"):
                row = json.loads(line)
                rows.append({**row, "at_s": datetime.fromisoformat(row["time"]).timestamp()})
        return rows

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
def serve(model: Path, *, port: int = 0, **settings: object) -> Iterator[Served]:
    """Serve a model folder until the block ends; `settings` are those of `serve.settings`.

    None of this process's own CURT_ variables reaches it. The result cache is off unless
    `cache_ttl_s` says otherwise; a port of 0 takes a free one. Raises RuntimeError when the
    server does not become ready.
    """
    port = port or _free_port()
    chosen = {"model": model, "host": HOST, "port": port, "cache_ttl_s": 0, **settings}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CURT_")}
    environment |= {f"CURT_{k.upper()}": str(v) for k, v in chosen.items() if v is not None}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "serve"], cwd=ROOT, env=environment, stdout=file, stderr=file
            )
        server = Served(process, port, log)
        try:
            server.wait_until_ready()
            yield server
        finally:
            _end(process)


@contextlib.contextmanager
def reach(url: str | None, model: Path, *, port: int = 0, **settings: object) -> Iterator[str]:
    """The address of a running server where one is given, else of one served for this block."""
    if url is not None:
        yield url
        return
    with serve(model, port=port, **settings) as server:
        yield server.url


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


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
