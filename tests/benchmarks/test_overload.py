"""An overload of a server whose behaviour is known."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.client import quantiles
from benchmarks.load.rates import RatesConfig, measure
from benchmarks.load.soak import SoakConfig, find_capacity
from benchmarks.run import RunningServer
from curt.corpus.store import write_cases
from tests.cases import common_cases

CASES = common_cases(5, seed=1)


@asynccontextmanager
async def server_of(capacity_per_s: float) -> AsyncIterator[str]:
    """Answers so many requests a second and refuses the others at once."""
    free_at_s = 0.0
    seen: set[str] = set()
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal free_at_s
        loop = asyncio.get_running_loop()
        serving.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                fact = json.loads(await reader.readexactly(length))["fact"]
                assert fact not in seen, "a cache would answer it"
                seen.add(fact)
                status, body = "503 Busy", b"{}"
                if free_at_s - loop.time() < 0.2:  # what it owes already
                    free_at_s = max(free_at_s, loop.time()) + 1 / capacity_per_s
                    status, body = "200 OK", b'{"degraded": false, "thinking": {"tokens": 7}}'
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client left
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.gather(*(task for task in serving if task))  # every client has left


# The stand-in server's streams end with the loop.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_goodput_of_a_server_that_refuses_the_rest(tmp_path: Path) -> None:
    cases = tmp_path / "cases.jsonl"
    write_cases(cases, CASES)
    this = cast("subprocess.Popen[bytes]", SimpleNamespace(pid=os.getpid()))
    config = RatesConfig(cases=cases, rates=[250], deadlines=[50], seconds=1.5, settle_seconds=0)

    async def scenario() -> Any:
        async with server_of(50) as url:
            return await measure(config, RunningServer(this, url, tmp_path))

    results, _ = asyncio.run(scenario())
    (row,), (short,) = results["rates"], results["deadlines"]
    assert (row["deadline_ms"], short["deadline_ms"]) == (400, 50)
    assert short["misses"]["all"] > row["misses"]["all"]
    assert row["arrived"] == pytest.approx(250 * 1.5, rel=0.4)
    assert row["misses"]["refused"] > 0
    assert row["misses"].keys() <= {"all", "refused", "late"}  # late on a busy machine, none lost
    assert row["goodput_per_s"] > 25
    assert row["front_cpu_ms"] > 0  # of this process, which is server and client
    assert row["exact_share"] == 0  # the stand-in gives no verdict


def test_a_server_that_is_not_there_has_no_capacity() -> None:
    config = SoakConfig(step_seconds=0.2)
    with pytest.raises(ValueError, match=r"no rate kept the promise.*is the server ready"):
        asyncio.run(find_capacity(config, "http://127.0.0.1:9", [CASES[0].fact]))


def test_quantiles_are_values_that_occurred() -> None:
    assert quantiles([]) == {}
    assert quantiles([3.0, 1.0, 2.0]) == {"p50": 2, "p95": 3, "p99": 3, "p999": 3, "max": 3}
