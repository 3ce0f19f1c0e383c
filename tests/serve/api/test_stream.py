"""The streaming route over a pool of real processes, in a small application of its own."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from curt.artifact import load_manifest
from serve.answering.answering import Answering, OnlyWay
from serve.api.errors import install_handlers
from serve.api.reply import Replies
from serve.api.schemas import PredictReply
from serve.api.stream import STREAM_PATH, make_router
from serve.edge.context import RequestContext
from serve.metrics import Metrics
from serve.pool.pool import WorkerPool
from serve.served import Identity
from serve.settings import Settings
from tests.micro import FACTS
from tests.serve.fake_engine import open_streaming_engine
from tests.serve.pool.test_pool import FakeClassifier, count, idle_after, running_pool

FACT = FACTS[0]


def make_app(pool: WorkerPool, settings: Settings) -> FastAPI:
    identity = Identity.of(settings.model, load_manifest(settings.model))

    metrics = Metrics()
    answering = Answering(lambda *_: OnlyWay(pool, identity), settings, metrics)
    replies = Replies(answering, settings, metrics)
    app = FastAPI()
    app.add_middleware(RequestContext, metrics=metrics)
    install_handlers(app)
    app.include_router(make_router(answering, replies, settings))
    return app


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://curt") as client:
        yield client


def read_events(text: str) -> list[tuple[str, Any]]:
    events = []
    for block in text.split("\n\n"):
        if block and not block.startswith(":"):
            name, data = block.split("\n")
            events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


def test_reasoning_comes_first_and_the_verdict_is_what_predict_replies(settings: Settings) -> None:
    async def scenario() -> None:
        async with (
            running_pool(open_engine=open_streaming_engine) as pool,
            client_of(make_app(pool, settings)) as client,
        ):
            response = await client.post(STREAM_PATH, json={"fact": FACT, "deadline_ms": 2000})
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["cache-control"] == "no-store"
            assert response.headers["x-accel-buffering"] == "no"
            assert response.text.startswith(": begun\n\n")
            *pieces, (last, body) = read_events(response.text)
            assert {name for name, _ in pieces} == {"reasoning"}
            assert len(pieces) > 3
            assert last == "verdict"
            reply = PredictReply.model_validate(body)
            assert reply.reasoning == "".join(data["text"] for _, data in pieces)
            assert reply.defendants[0].charges
            assert reply.timings_ms.decode > 0
            assert reply.request_id == response.headers["x-request-id"]

    asyncio.run(scenario())


def test_a_stream_under_way_at_a_shutdown_is_finished(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_starlette.sse.AppStatus.should_exit", True)

    async def scenario() -> None:
        async with (
            running_pool(open_engine=open_streaming_engine) as pool,
            client_of(make_app(pool, settings)) as client,
        ):
            response = await client.post(STREAM_PATH, json={"fact": FACT, "deadline_ms": 2000})
            assert read_events(response.text)[-1][0] == "verdict"

    asyncio.run(scenario())


def test_without_reasoning_only_the_verdict_comes(settings: Settings) -> None:
    async def scenario() -> None:
        async with (
            running_pool(open_engine=open_streaming_engine) as pool,
            client_of(make_app(pool, settings)) as client,
        ):
            body = {"fact": FACT, "include_reasoning": False}
            response = await client.post(STREAM_PATH, json=body)
            ((name, reply),) = read_events(response.text)
            assert (name, reply["reasoning"]) == ("verdict", None)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"fact": ""}, 422, "empty_fact"),
        ({"fact": FACT, "deadline_ms": 5}, 422, "invalid_request"),
        ({"fact": FACT, "deadline_ms": 22}, 422, "deadline_too_short"),
    ],
)
def test_what_is_refused_gets_a_status_and_no_stream(
    settings: Settings, body: dict[str, Any], status: int, code: str
) -> None:
    async def scenario() -> httpx.Response:
        async with (
            running_pool(open_engine=open_streaming_engine) as pool,
            client_of(make_app(pool, settings)) as client,
        ):
            return await client.post(STREAM_PATH, json=body)

    response = asyncio.run(scenario())
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert "retry-after" not in response.headers


def test_a_failure_on_the_way_is_an_event_and_says_nothing_of_the_fact(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with (
            running_pool(workers=2, open_engine=open_streaming_engine) as pool,
            client_of(make_app(pool, settings)) as client,
        ):
            request = {"fact": FACT + "出错", "deadline_ms": 1500}
            events = read_events((await client.post(STREAM_PATH, json=request)).text)
            assert events[-1][0] == "error"
            assert events[-1][1]["error"] == {"code": "engine_error", "message": "internal error"}
            request = {"fact": FACT + "崩溃", "deadline_ms": 20_000}
            events = read_events((await client.post(STREAM_PATH, json=request)).text)
            assert events[-1][1]["error"]["code"] == "worker_died"
            assert "retry_after_s" not in events[-1][1]  # it would kill two more

    with caplog.at_level(logging.DEBUG):
        asyncio.run(scenario())
    assert not any("张某" in str(vars(record)) for record in caplog.records)


def test_a_classifiers_verdict_says_so_and_names_no_fine(settings: Settings) -> None:
    async def scenario() -> None:
        async with (
            running_pool(open_engine=open_streaming_engine, fallback=FakeClassifier()) as pool,
            client_of(make_app(pool, settings)) as client,
        ):
            request = {"fact": FACT + "读不懂", "deadline_ms": 1000}
            name, reply = read_events((await client.post(STREAM_PATH, json=request)).text)[-1]
            assert (name, reply["source"], reply["degraded"]) == ("verdict", "fallback", True)
            assert reply["degraded_reason"] == "unreadable_answer"
            assert reply["confidences"] == {"charge": 0.8, "article": 0.7, "term": 0.4}
            (defendant,) = reply["defendants"]
            assert defendant["charges"][0]["name"] == "诈骗"
            assert (defendant["fine_yuan"], defendant["ruling"]) == (None, None)

    asyncio.run(scenario())


async def call(app: FastAPI, body: dict[str, Any], leave_after_events: int) -> list[bytes]:
    """Call the application as a server would; hang up after some events."""
    data = json.dumps(body).encode()
    gone = asyncio.Event()
    inbox = [{"type": "http.request", "body": data, "more_body": False}]
    sent: list[bytes] = []

    async def receive() -> dict[str, Any]:
        if inbox:
            return inbox.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and b"event: " in message["body"]:
            sent.append(message["body"])
            if len(sent) == leave_after_events:
                gone.set()

    headers = [(b"content-type", b"application/json")]
    scope = {
        "type": "http", "method": "POST", "path": STREAM_PATH, "raw_path": b"", "scheme": "http",
        "query_string": b"", "headers": headers, "http_version": "1.1", "asgi": {"version": "3.0"},
        "server": ("curt", 80), "client": ("client", 1), "root_path": "",
    }  # fmt: skip
    await app(scope, receive, send)
    return sent


def test_a_client_that_hangs_up_in_the_middle_frees_the_worker(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with running_pool(open_engine=open_streaming_engine) as pool:
            app = make_app(pool, settings)
            sent = await call(app, {"fact": FACT, "deadline_ms": 5000}, leave_after_events=1)
            assert len(sent) == 1
            assert await idle_after(pool) < 0.1  # loose: a busy machine
            assert count(pool, "cancelled", stage="running") == 1
            whole = await call(app, {"fact": FACT, "deadline_ms": 5000}, leave_after_events=999)
            assert b"event: verdict" in whole[-1]

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    lines = [vars(r) for r in caplog.records if r.name == "serve.access"]
    assert [line.get("error") for line in lines] == ["client_closed", None]
