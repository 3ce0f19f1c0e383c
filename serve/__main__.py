"""Serve a model folder: `CURT_MODEL=artifacts/demo/ort-w8a8 python -m serve`.

Every setting is an environment variable; see serve/settings.py. SIGTERM or Ctrl+C drains: the
server says 503 for a moment, finishes what it has taken, and exits with status 0.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from collections.abc import Sequence
from types import FrameType

import uvicorn
from pydantic import ValidationError

from curt.artifact import ArtifactError
from curt.logs import configure_logging
from serve.answering.answering import Startable
from serve.app import create_app
from serve.edge.connections import (
    ConnectionLimits,
    LimitedProtocol,
    limited_protocol,
    raise_file_limit,
)
from serve.settings import MAX_DEADLINE_MS, Settings, describe_settings, unknown_variables

logger = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """A uvicorn server that goes on answering 503 for a moment before it closes its socket."""

    def __init__(
        self,
        config: uvicorn.Config,
        protocol: type[LimitedProtocol],
        workers: Startable,
        drain_s: float,
    ) -> None:
        super().__init__(config)
        self._protocol = protocol
        self._workers = workers
        self._drain_s = drain_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Keep the loop for `handle_exit`, which runs outside of it."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, close at once at the second, drop everything at the third.

        uvicorn would raise the signal again in the end; here a drained exit has status 0.
        """
        self._signals += 1
        if self._signals == 1 and self._loop:
            self._loop.call_soon_threadsafe(self._begin_drain)
        else:
            self.force_exit = self._signals > 2
            self.should_exit = True

    def _begin_drain(self) -> None:
        self._workers.drain()
        self._protocol.is_draining = True
        for connection in self.server_state.connections:
            assert isinstance(connection, LimitedProtocol)
            if connection.cycle is not None:  # whose reply has not begun
                connection.cycle.keep_alive = False
        asyncio.get_running_loop().call_later(self._drain_s, self._close)

    def _close(self) -> None:
        self.should_exit = True


def main(argv: Sequence[str] = ()) -> None:
    """Run the server; exits with status 2 and a message when it is set up wrongly."""
    parser = argparse.ArgumentParser(
        prog="python -m serve",
        description=__doc__,
        epilog=describe_settings(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    try:
        settings = Settings()  # type: ignore[call-arg]  # from the environment
    except ValidationError as error:
        problems = "\n".join(
            f"  {'_'.join(['CURT', *map(str, e['loc'])]).upper()}: {e['msg']}"
            for e in error.errors()
        )
        _refuse(f"settings refused\n{problems}")
    configure_logging(json=settings.log_json, background=True)
    # No log line names thread or process; looking them up would cost system calls for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each call to a remote engine
    for message in unknown_variables(os.environ):
        logger.warning(message)
    try:
        app = create_app(settings)
    except ArtifactError as error:
        _refuse(f"CURT_MODEL: {error}")
    except ValueError as error:
        _refuse(str(error))
    limits = ConnectionLimits(
        raise_file_limit(settings.max_connections),
        settings.max_header_bytes,
        settings.max_headers,
        settings.head_timeout_s,
    )
    if limits.max_connections < settings.max_connections:
        logger.warning("open files allow only %d connections", limits.max_connections)
    protocol = limited_protocol(limits)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=protocol,
        ws="none",
        timeout_keep_alive=settings.keep_alive_s,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # serve.edge.limits reads them, from trusted proxies alone
        timeout_graceful_shutdown=MAX_DEADLINE_MS // 1000 + 5,
    )
    DrainingServer(config, protocol, app.state.pool, settings.drain_s).run()


def _refuse(message: str) -> None:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
