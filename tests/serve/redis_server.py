"""A real Redis for the tests that need one."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest

from serve.redis_link import RedisLink

# Of tests about what is answered, not about how soon: the machine may be busy.
PATIENT = {"budget_s": 2.0}


def running_redis() -> Iterator[int]:
    """The port of a Redis of our own, without a disk; skips where none is installed."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server here: apt-get install redis-server")
    pytest.importorskip("redis")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--port", str(port), "--save", "", "--appendonly", "no", "--dir", folder]
        server = subprocess.Popen(
            [binary, *arguments, "--bind", "127.0.0.1"], stdout=subprocess.DEVNULL
        )
        try:
            end_s = time.monotonic() + 10
            while not _accepts(port):
                assert time.monotonic() < end_s, "redis-server did not start"
                time.sleep(0.02)
            yield port
        finally:
            server.terminate()
            server.wait(10)


@asynccontextmanager
async def linked(port: int, **options: Any) -> AsyncIterator[RedisLink]:
    """A link to a Redis on this machine, closed at the end."""
    link = RedisLink(f"redis://127.0.0.1:{port}/0", **options)
    try:
        yield link
    finally:
        await link.close()


def free_port() -> int:
    """A port on which nothing listens."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _accepts(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
