"""A server in a process group of its own, from the moment it answers until it is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import IO

from benchmarks.peers.catalogue import ROOT, Setting

START_S, STOP_S = 240.0, 15.0


class StartError(RuntimeError):
    """A server that does not come up; the message holds its last words."""


@contextlib.contextmanager
def run_server(setting: Setting) -> Iterator[subprocess.Popen[bytes]]:
    """The server, ready; StartError where it does not get there. Its group is ended after."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", setting.port))
        except OSError as error:  # another server would be measured in its stead
            raise StartError(f"port {setting.port} is taken: end what listens there") from error
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            setting.command,
            cwd=ROOT,
            env={**os.environ, **setting.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_until_ready(setting, process, output)
            yield process
        finally:
            _end(process)


class Hall:
    """Runs servers in turn. One that is slow to start is kept between its turns, stopped."""

    def __init__(self) -> None:
        self._kept = contextlib.ExitStack()
        self._stopped: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Hall:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._stopped.values():  # or they could not end politely
            _signal_group(process, signal.SIGCONT)
        self._kept.close()

    @contextlib.contextmanager
    def run(self, setting: Setting) -> Iterator[subprocess.Popen[bytes]]:
        """The server, ready; StartError where it does not get there."""
        if not setting.slow_to_start:
            with run_server(setting) as process:
                yield process
            return
        key = f"{setting.name} {setting.label}"
        if key not in self._stopped:
            self._stopped[key] = self._kept.enter_context(run_server(setting))
        process = self._stopped[key]
        _signal_group(process, signal.SIGCONT)
        try:
            yield process
        finally:
            _signal_group(process, signal.SIGSTOP)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def end_servers_when_told() -> None:
    """Make SIGTERM unwind this program as Ctrl-C does, so that no server outlives it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _wait_until_ready(
    setting: Setting, process: subprocess.Popen[bytes], output: IO[bytes]
) -> None:
    started = time.monotonic()
    while time.monotonic() - started < START_S:
        if process.poll() is not None:
            raise StartError(f"{setting.name} ended at once: {_last_words(output)}")
        with (
            contextlib.suppress(OSError, urllib.error.URLError),
            urllib.request.urlopen(setting.url + setting.ready_path, timeout=2) as reply,  # noqa: S310
        ):
            if reply.status == 200:
                return
        time.sleep(0.2)
    raise StartError(f"{setting.name} is not ready after {START_S:.0f} s: {_last_words(output)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """First politely, then the whole group, so that no worker stays behind."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_words(output: IO[bytes]) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").strip().splitlines() or ["nothing said"]
    return " / ".join(line.strip() for line in lines[-3:])
