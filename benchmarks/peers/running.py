"""Peers' servers in turn, one at a time on the machine."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from benchmarks.peers.catalogue import Setting
from benchmarks.run import RunningServer, run_server

READY_S = 240.0


@contextlib.contextmanager
def run_setting(setting: Setting) -> Iterator[RunningServer]:
    """The server of a setting, ready. Raises StartError where it does not get there."""
    environment = {**os.environ, **setting.environment}
    with run_server(
        setting.command, setting.url, environment, ready_path=setting.ready_path, ready_s=READY_S
    ) as server:
        yield server


class ServerRotation:
    """Runs servers in turn. One that is slow to start is kept between its turns, stopped."""

    def __init__(self) -> None:
        self._kept = contextlib.ExitStack()
        self._stopped: dict[str, RunningServer] = {}

    def __enter__(self) -> ServerRotation:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._stopped.values():  # or they could not end politely
            _signal_group(server, signal.SIGCONT)
        self._kept.close()

    @contextlib.contextmanager
    def run(self, setting: Setting) -> Iterator[RunningServer]:
        """The server, ready. Raises StartError where it does not get there."""
        if not setting.slow_to_start:
            with run_setting(setting) as server:
                yield server
            return
        key = f"{setting.name} {setting.label}"
        if key not in self._stopped:
            self._stopped[key] = self._kept.enter_context(run_setting(setting))
        server = self._stopped[key]
        _signal_group(server, signal.SIGCONT)
        try:
            yield server
        finally:
            _signal_group(server, signal.SIGSTOP)


def _signal_group(server: RunningServer, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.process.pid, number)
