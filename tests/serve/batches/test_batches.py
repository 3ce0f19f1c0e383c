"""Batches over the routes, and over a real server that is killed in the middle of one."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from curt.dialogue import THINK_END, render_answer
from serve.app import create_app
from serve.batches import batches
from serve.edge.keys import add_key, make_key
from serve.errors import OverloadedError
from serve.pool.job import Job
from serve.served import Served
from serve.settings import MAX_DEADLINE_MS, Settings
from tests.micro import FACTS
from tests.serve.fake_engine import VERDICT
from tests.serve.fake_pool import FakePool, generation
from tests.serve.test_server import Server, until

GOOD = generation(f"窃取8000元{THINK_END}{render_answer(VERDICT)}")
THEFT = "被告人张某在某超市窃取他人现金8000元。"


class UnevenPool(FakePool):
    """The first is answered last; 忙 in a fact is refused at first."""

    async def submit(self, job: Job) -> Served:
        self.jobs.append(job)
        if "忙" in job.fact and sum(other.fact == job.fact for other in self.jobs) == 1:
            raise OverloadedError("overloaded", "not now", 0.1)
        await asyncio.sleep(0.05 if len(self.jobs) == 1 else 0.001)
        return Served(GOOD, 48, 48, 1.5)


@asynccontextmanager
async def serving(settings: Settings, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings.model_copy(update=changes), UnevenPool(GOOD))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://curt") as client,
    ):
        client.pool = app.state.pool  # type: ignore[attr-defined]
        yield client


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


async def finished(client: httpx.AsyncClient, name: str, **options: Any) -> dict[str, Any]:
    for _ in range(200):
        told = (await client.get(f"/batches/{name}", **options)).json()
        if told["state"] != "in_progress":
            break
        await asyncio.sleep(0.02)
    return dict(told)


async def results(client: httpx.AsyncClient, name: str) -> list[Any]:
    text = (await client.get(f"/batches/{name}/results")).text
    return [json.loads(line) for line in text.splitlines()]


def chat(fact: str, name: str, **fields: Any) -> dict[str, Any]:
    body = {"model": "curt", "messages": [{"role": "user", "content": fact}], **fields}
    where = {"method": "POST", "url": "/v1/chat/completions"}
    return {"custom_id": name, **where, "body": body}


def test_cases_of_both_forms_are_answered_in_order_and_in_the_background(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with serving(settings, batches=tmp_path) as client:
            body = lines(
                {"fact": THEFT}, chat(THEFT, "chat"), {"fact": "", "deadline_ms": 900},
                {"fact": THEFT + "忙"}, chat(THEFT, "two", n=2),
                {"fact": THEFT + "被告人李某销赃。", "defendants": "each"},
            )  # fmt: skip
            taken = await client.post("/batches", content=body + b"\n")
            assert (taken.status_code, taken.json()["total"]) == (202, 6)
            name = taken.json()["id"]
            told = await finished(client, name)
            assert [told[key] for key in ("state", "done", "failed")] == ["completed", 6, 2]
            rows = await results(client, name)
            assert [row["id"] for row in rows] == [f"{name}.{index}" for index in range(6)]
            assert [row["custom_id"] for row in rows] == [None, "chat", None, None, "two", None]
            answers = [row["response"] for row in rows]
            assert [each["status_code"] for each in answers] == [200, 200, 422, 200, 400, 200]
            assert answers[0]["body"]["defendants"][0]["charges"][0]["name"] == "盗窃"
            assert answers[0]["body"]["request_id"] == answers[0]["request_id"] == f"{name}.0"
            assert answers[1]["body"]["choices"][0]["finish_reason"] == "stop"
            assert answers[4]["body"]["error"]["param"] == "n"
            both = answers[5]["body"]["results"]
            assert [each["defendant"] for each in both] == ["张某", "李某"]
            jobs: list[Job] = client.pool.jobs  # type: ignore[attr-defined]
            assert all(job.background for job in jobs)
            assert round(jobs[0].deadline_s - jobs[0].arrived_s, 3) == MAX_DEADLINE_MS / 1e3
            text = (await client.get("/metrics")).text
            assert 'curt_batch_lines_total{status="200"} 4.0' in text
            assert 'curt_cases_total{outcome="good"} 0.0' in text  # nobody waited for these

    with caplog.at_level("DEBUG"):
        asyncio.run(scenario())
    assert "窃取" not in caplog.text + repr([vars(record) for record in caplog.records])
    files = [path for path in tmp_path.rglob("*") if path.name in ("input.jsonl", "results.jsonl")]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600] * 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the batch is empty: send one case a line"),
        (lines({"fact": THEFT}) + b"{", "line 2 is no JSON object: send one case a line"),
        (b"[" * 100_000, "line 1 is no JSON object: send one case a line"),
        (lines([THEFT]), "line 1 is no JSON object: send one case a line"),
        (lines(chat(THEFT, "a"), chat(THEFT, "a")), "line 2 repeats an earlier custom_id"),
        (lines(chat(THEFT, "a", stream=True)), "line 1 asks for a stream, which no batch can give: "
         "leave it out"),
        (lines({"body": {}, "url": "/admin/load"}), "line 1 needs an object as body, a text as "
         "custom_id, and as url /predict or /v1/chat/completions"),
        (lines(*[{"fact": THEFT}] * 9), "line 9 is one too many: send 8 cases or fewer at once"),
    ],
)  # fmt: skip
def test_what_is_no_batch_is_refused_whole_and_leaves_nothing(
    settings: Settings, tmp_path: Path, body: bytes, message: str
) -> None:
    async def scenario() -> None:
        async with serving(settings, batches=tmp_path, batch_cases=8) as client:
            refused = await client.post("/batches", content=body)
            assert (refused.status_code, refused.json()["error"]["message"]) == (422, message)
            assert (await client.post("/batches", content=b" " * 17_000_000)).status_code == 413
            assert [path.name for path in tmp_path.iterdir()] == [".lock"]

    asyncio.run(scenario())


def test_a_batch_belongs_to_its_key_and_counts_in_its_quota(
    settings: Settings, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    made = [make_key(name, "predict", per_day=10) for name in ("one", "other")]
    for _, record in made:
        add_key(keys, record)
    mine, others = ({"Authorization": f"Bearer {key}"} for key, _ in made)

    async def scenario() -> None:
        async with serving(settings, batches=tmp_path / "b", keys_file=keys) as client:
            body = lines(*[{"fact": THEFT}] * 6)
            assert (await client.post("/batches", content=body)).status_code == 401
            name = (await client.post("/batches", content=body, headers=mine)).json()["id"]
            for path in (f"/batches/{name}", f"/batches/{name}/results", "/batches/x%2F..%2Fy"):
                assert (await client.get(path, headers=others)).status_code == 404
            assert (await client.delete(f"/batches/{name}", headers=others)).status_code == 404
            again = await client.post("/batches", content=body, headers=mine)
            assert (again.status_code, again.json()["error"]["code"]) == (429, "quota_used_up")
            never = await client.post("/batches", content=body * 2, headers=mine)
            assert never.json()["error"]["message"] == "send 10 cases or fewer a day"
            assert (await finished(client, name, headers=mine))["done"] == 6

    asyncio.run(scenario())


def test_a_batch_ends_when_its_owner_or_its_age_says_so(settings: Settings, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(settings, batches=tmp_path) as client:
            client.pool.ready = False  # type: ignore[attr-defined]
            name = (await client.post("/batches", content=lines({"fact": THEFT}))).json()["id"]
            assert (await client.delete(f"/batches/{name}")).json()["state"] == "cancelled"
            client.pool.ready = True  # type: ignore[attr-defined]
            assert (await finished(client, name))["done"] == 0
            assert await results(client, name) == []
            assert (await client.delete(f"/batches/{name}")).status_code == 200
            assert (await client.get(f"/batches/{name}")).status_code == 404
            assert not (tmp_path / name).exists()
            old = (await client.post("/batches", content=lines({"fact": THEFT}))).json()["id"]
            assert (await finished(client, old))["state"] == "completed"
        about = tmp_path / old / "batch.json"
        about.write_text(json.dumps(json.loads(about.read_text()) | {"created_s": 1.0}))
        (tmp_path / f".{name}.1.tmp").mkdir()  # as a kill leaves it
        async with serving(settings, batches=tmp_path) as client:
            while (await client.get(f"/batches/{old}")).status_code == 200:
                await asyncio.sleep(0.02)
            assert [path.name for path in tmp_path.iterdir()] == [".lock"]

    asyncio.run(scenario())


def test_an_owner_keeps_only_so_many(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MAX_KEPT", 1)

    async def scenario() -> None:
        async with serving(settings, batches=tmp_path) as client:
            name = (await client.post("/batches", content=lines({"fact": THEFT}))).json()["id"]
            await finished(client, name)
            refused = await client.post("/batches", content=lines({"fact": THEFT}))
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "60")
            await client.delete(f"/batches/{name}")
            taken = await client.post("/batches", content=lines({"fact": THEFT}))
            assert taken.status_code == 202

    asyncio.run(scenario())


def test_batches_are_off_unless_a_folder_is_set(settings: Settings) -> None:
    async def scenario() -> None:
        async with serving(settings) as client:
            assert (await client.post("/batches", content=b"{}")).status_code == 404

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_server_killed_or_ended_goes_on_where_it_was(ort_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "batches"
    count = 60
    cases = [{"fact": f"{FACTS[0]}另有第{n}次。"} for n in range(count)]
    servers = []
    try:
        for attempt in range(3):
            server = Server(ort_model, tmp_path / f"log{attempt}", CURT_BATCHES=str(folder))
            servers.append(server)
            server.wait_ready()
            if attempt == 0:
                name = httpx.post(server.url + "/batches", content=lines(*cases)).json()["id"]
            file = folder / name / "results.jsonl"
            wanted = (10, 25, count)[attempt]
            until(lambda file=file, wanted=wanted: read(file).count(b"\n") >= wanted, 120)
            if attempt < 2:
                server.process.send_signal(signal.SIGTERM if attempt else signal.SIGKILL)
                assert server.process.wait(20) == (0 if attempt else -signal.SIGKILL)
                with open(file, "ab") as torn:
                    torn.write(b'{"id": "half a line')
        until(lambda: httpx.get(f"{server.url}/batches/{name}").json()["state"] == "completed")
        told = httpx.get(f"{server.url}/batches/{name}/results").text.splitlines()
        assert [json.loads(line)["id"] for line in told] == [f"{name}.{n}" for n in range(count)]
        assert {json.loads(line)["response"]["status_code"] for line in told} == {200}
        started_s = time.monotonic()
        assert server.predict().status_code == 200
        assert time.monotonic() - started_s < 5
        assert all("\\u" not in s.log.read_text() and "另有" not in s.log.read_text()
                   for s in servers)  # fmt: skip
    finally:
        for server in servers:
            server.stop()


def read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
