"""Attacks over real sockets and generated requests of the API's own description.

The whole of it, ten thousand attacks on a demo model, is `python -m tests.serve.edge.hostile`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import uvicorn
from fastapi import FastAPI
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.config import SchemathesisConfig

from curt.dialogue import THINK_END, render_answer
from serve.app import create_app
from serve.pool.job import Job
from serve.served import Served
from serve.settings import Settings
from tests.micro import FACTS
from tests.serve.edge.hostile import Tally, quotes_case, storm
from tests.serve.edge.hostile_bodies import MARK, RECIPES, Attack, attacks, post
from tests.serve.fake_engine import VERDICT
from tests.serve.fake_pool import FakePool, generation
from tests.serve.test_server import Server, children

GOOD = generation(f"窃取8000元{THINK_END}{render_answer(VERDICT)}")
load_all_checks()
API_CHECKS = CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "response_headers_conformance",
        "unsupported_method",
    ]
)


class BusyPool(FakePool):
    """A pool that answers in the loop after a moment, as a real one does."""

    async def submit(self, job: Job) -> Served:
        await asyncio.sleep(0.001)
        json.dumps(job.fact, ensure_ascii=False).encode()  # what the pipe to a worker needs
        return await super().submit(job)


@contextmanager
def listening(app: FastAPI) -> Iterator[int]:
    """The application behind uvicorn's own HTTP parser, on a port of its own."""
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, server_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def port(empty_model: Path) -> Iterator[int]:
    with listening(create_app(Settings(model=empty_model, workers=1), BusyPool(GOOD))) as port:
        yield port


def run(port: int, stream: Iterator[Attack], at_once: int = 16) -> Tally:
    tally = Tally()
    asyncio.run(storm("127.0.0.1", port, stream, tally, at_once))
    return tally


def one(port: int, attack: Attack) -> str:
    (statuses,) = run(port, iter([attack]), 1).statuses.values()
    return next(iter(statuses))


def test_attacks_are_the_same_for_the_same_seed_and_cover_every_kind() -> None:
    first, again = (list(islice(attacks(7, FACTS), 90)) for _ in range(2))
    assert first == again
    assert first != list(islice(attacks(8, FACTS), 90))
    assert set(Counter(attack.kind for attack in first)) == set(RECIPES)
    with pytest.raises(ValueError, match="at least one"):
        next(attacks(7, []))


def test_a_seeded_storm_breaks_nothing_and_quotes_nothing(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        tally = run(port, islice(attacks(7, FACTS), 20 * len(RECIPES)))
    assert tally.faults == []
    statuses = sum((Counter(each) for each in tally.statuses.values()), Counter[str]())
    assert {"200", "400", "404", "405", "413", "422"} <= set(statuses)
    assert all(int(status) < 500 for status in statuses if status.isdigit())
    lines = [f"{record.getMessage()} {vars(record)}".encode() for record in caplog.records]
    assert lines
    assert not any(quotes_case(line) for line in lines)


@pytest.mark.parametrize("escape", ["\\ud800", "\\udfff", "\\udc00\\ud800", "\\ud83d."])
def test_half_a_character_is_refused_before_it_reaches_a_worker(port: int, escape: str) -> None:
    fact = json.dumps(FACTS[0])[:-1] + escape + '"'
    assert one(port, post("surrogates", f'{{"fact": {fact}}}'.encode())) == "422"
    whole = json.dumps(FACTS[0] + "𠮷")
    assert one(port, post("whole", f'{{"fact": {whole}}}'.encode())) == "200"


def test_what_a_bad_server_would_do_is_noticed() -> None:
    attack = post("malformed", b"{")
    for status, body in [("500", b""), ("504", b""), ("silence", b""), ("422", MARK.encode())]:
        tally = Tally()
        tally.add(attack, status, 0.1, body)
        assert len(tally.faults) == 1
    tally = Tally()
    for status, body in [("503", b""), ("422", b"no"), ("closed", b""), ("200", MARK.encode())]:
        tally.add(attack, status, 0.1, body)
    tally.add(Attack("slow", (b"P",), complete=False), "silence", 0.1, b"")
    assert tally.faults == []


def ask_all(schema: schemathesis.BaseSchema, examples: int) -> Counter[int]:
    """Send valid and invalid requests to every operation and check the replies; their statuses."""
    statuses = Counter[int]()

    def ask(case: schemathesis.Case) -> None:
        response = case.call()
        statuses[response.status_code] += 1
        # 503 is how a server that is too busy says so; any other from 500 on is a fault.
        excluded = API_CHECKS[:1] if response.status_code == 503 else []
        case.validate_response(response, checks=API_CHECKS, excluded_checks=excluded)

    for result in schema.get_all_operations():
        for mode in schemathesis.GenerationMode:
            run_with(result.ok().as_strategy(generation_mode=mode), ask, examples)
    return statuses


def run_with(strategy: Any, ask: Any, examples: int) -> None:
    @given(case=strategy)
    @hypothesis_settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def each(case: schemathesis.Case) -> None:
        ask(case)

    try:
        each()
    except Unsatisfiable:
        return  # an operation without parameters can't be called wrongly


def test_the_api_is_what_it_says_over_a_stand_in_pool(empty_model: Path) -> None:
    app = create_app(Settings(model=empty_model, workers=1), FakePool(GOOD))
    config = SchemathesisConfig(seed=1)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config)
    statuses = ask_all(schema, examples=15)
    assert statuses[200] > 5
    assert statuses[422] > 10
    assert 503 not in statuses


@pytest.fixture(scope="module")
def server(ort_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(ort_model, tmp_path_factory.mktemp("hostile") / "log", CURT_WORKERS="1")
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


@pytest.mark.slow
def test_a_real_server_stands_with_the_same_worker_and_the_same_answers(server: Server) -> None:
    port = int(server.url.rpartition(":")[2])
    process = server.process.pid
    before = quiet_answer(server)
    run(port, islice(attacks(1, FACTS), 4 * len(RECIPES)))  # fill caches and pools
    workers, memory = server.workers(), resident_mib(process)
    tally = run(port, islice(attacks(2, FACTS), 10 * len(RECIPES)))
    assert tally.faults == []
    assert server.workers() == workers
    after = quiet_answer(server)
    for part in ("defendants", "degraded", "reasoning", "thinking"):
        assert after[part] == before[part]
    assert resident_mib(process) - memory < 40
    assert not any(quotes_case(line) for line in server.log.read_bytes().splitlines())


@pytest.mark.slow
def test_the_api_is_what_it_says_over_a_real_pool(server: Server) -> None:
    config = SchemathesisConfig(seed=1)
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json", config=config)
    statuses = ask_all(schema, examples=6)
    assert statuses[200] > 5
    assert statuses[422] > 5


def quiet_answer(server: Server) -> Any:
    """An answer on the full budget: for seconds after a storm everyone's is shortened."""
    end_s = time.monotonic() + 15
    while time.monotonic() < end_s:
        answer = server.predict(FACTS[0], deadline_ms=20_000).json()
        if answer["thinking"]["allowed"] == 64:
            return answer
        time.sleep(0.5)
    raise AssertionError("the budget did not come back")


def resident_mib(process: int) -> float:
    """Of a process and its children."""
    return sum(resident_kib(pid) for pid in (process, *children(process))) / 1024


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
