"""The OpenAI-compatible routes, asked by OpenAI's own client over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI
from openai import OpenAI
from pydantic import BaseModel

from curt.classifier.model import Prediction
from curt.dialogue import THINK_END, parse_answer, render_answer
from curt.law.verdict import Term, Verdict
from serve.answering.answering import Answering, OnlyWay
from serve.api.chat.chat import IGNORED_HEADER, make_router
from serve.api.chat.request import ChatRequest, thinking_bound
from serve.api.chat.verdict_schema import (
    VERDICT_SCHEMA,
    SchemaError,
    check_schema,
    project,
)
from serve.api.errors import install_handlers
from serve.api.reply import Replies
from serve.edge.context import RequestContext
from serve.edge.limits import BodyLimit
from serve.errors import (
    DeadlineTooShortError,
    EngineFailedError,
    OverloadedError,
    RequestError,
)
from serve.metrics import Metrics
from serve.pool.job import Job, Piece
from serve.pool.pool import WorkerPool
from serve.served import Identity, Served
from serve.settings import Settings
from tests.micro import FACTS
from tests.serve.fake_engine import MANIFEST, VERDICT, open_streaming_engine
from tests.serve.fake_pool import generation

SECRET = "某市幸福路三号的秘密"
SERVED = Served(generation(f"窃取八千{THINK_END}{render_answer(VERDICT)}"), 48, 48, 1.5)
USER = [{"role": "user", "content": FACTS[0]}]


@dataclass
class FakeTold:
    """Pieces and an answer, or an error at the end."""

    items: list[Piece | Served | Exception]
    closed: bool = False

    async def __aiter__(self) -> AsyncIterator[Piece | Served]:
        for item in self.items:
            await asyncio.sleep(0.001)
            if isinstance(item, Exception):
                raise item
            yield item

    def close(self) -> None:
        self.closed = True


@dataclass
class FakePool:
    """Answers every job alike; `refusal` is raised before anything is served."""

    served: Served = SERVED
    refusal: Exception | None = None
    pieces: list[Piece | Served | Exception] | None = None
    jobs: list[Any] = field(default_factory=list)
    told: list[FakeTold] = field(default_factory=list)

    async def submit(self, job: Job) -> Served:
        self.jobs.append(job)
        if self.refusal:
            raise self.refusal
        return self.served

    def stream(self, job: Job) -> FakeTold:
        self.jobs.append(job)
        if self.refusal:
            raise self.refusal
        items = self.pieces
        if items is None:
            items = [Piece("窃取", 1), Piece("八千", 1), self.served]
        self.told.append(FakeTold(items))
        return self.told[-1]


def make_app(pool: Any, settings: Settings) -> FastAPI:
    identity = Identity.of(settings.model, settings.manifest())
    metrics = Metrics()
    app = FastAPI()
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(RequestContext, metrics=metrics)
    install_handlers(app)
    answering = Answering(lambda *_: OnlyWay(pool, identity), settings, metrics)
    replies = Replies(answering, settings, metrics)
    app.include_router(make_router(answering, replies, settings, identity))
    return app


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The application on a free port, in a thread of this process."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "waited too long"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def pool() -> FakePool:
    return FakePool()


@pytest.fixture(scope="module")
def address(pool: FakePool, empty_model: Path) -> Iterator[str]:
    settings = Settings(model=empty_model, workers=1)
    with serving(make_app(pool, settings)) as url:
        yield url


@pytest.fixture
def client(address: str, pool: FakePool) -> Iterator[OpenAI]:
    pool.__init__()  # type: ignore[misc]  # as new, over the same socket
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "curt", "messages": USER} | options)


def test_a_completion_is_the_verdict_with_its_reasoning_and_usage(
    client: OpenAI, pool: FakePool
) -> None:
    completion = ask(client, extra_body={"deadline_ms": 250})
    (choice,) = completion.choices
    assert parse_answer(choice.message.content) == VERDICT
    assert choice.message.role == "assistant"
    assert choice.message.reasoning_content == "窃取八千"
    assert choice.finish_reason == "stop"
    assert completion.usage.prompt_tokens == 60
    assert completion.usage.completion_tokens == 23
    assert completion.usage.total_tokens == 83
    assert completion.usage.completion_tokens_details.reasoning_tokens == 3
    assert completion.model == "model"
    assert completion.id == f"chatcmpl-{completion.curt['request_id']}"
    assert completion._request_id == completion.curt["request_id"]
    assert completion.curt["degraded"] is False
    assert completion.curt["deadline_ms"] == 250
    (job,) = pool.jobs
    assert job.fact == FACTS[0]
    assert job.deadline_s - job.arrived_s == pytest.approx(0.25)
    assert job.max_thinking_tokens is None


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["model", "curt"]
    assert client.models.retrieve("curt").owned_by == "curt"
    with pytest.raises(openai.NotFoundError) as fault:
        client.models.retrieve("gpt-5")
    assert fault.value.code == "model_not_found"


def test_a_stream_tells_the_reasoning_then_the_verdict_then_usage(
    client: OpenAI, pool: FakePool
) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    reasoning = [delta.reasoning_content for delta in deltas if hasattr(delta, "reasoning_content")]
    assert reasoning == ["窃取", "八千"]
    content = "".join(delta.content or "" for delta in deltas)
    assert parse_answer(content) == VERDICT
    assert deltas[0].role == "assistant"
    finishes = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert finishes == [None] * (len(finishes) - 1) + ["stop"]
    assert chunks[-1].usage.completion_tokens == 23
    assert len({chunk.id for chunk in chunks}) == 1
    until(lambda: pool.told[0].closed)


def test_a_stream_without_usage_asked_for_has_none(client: OpenAI) -> None:
    chunks = list(ask(client, stream=True))
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].curt["degraded"] is False


def test_the_clients_own_accumulator_reads_the_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(model="curt", messages=USER) as stream:
        completion = stream.get_final_completion()
    assert parse_answer(completion.choices[0].message.content) == VERDICT


def test_reasoning_that_starts_again_is_parted_by_a_line(client: OpenAI, pool: FakePool) -> None:
    pool.pieces = [Piece("窃", 1), Piece("窃取", 2), SERVED]
    deltas = [c.choices[0].delta for c in ask(client, stream=True)]
    told = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert told == "窃\n窃取"


def test_an_answer_that_was_there_at_once_still_tells_its_reasoning(
    client: OpenAI, pool: FakePool
) -> None:
    pool.pieces = [SERVED]
    deltas = [c.choices[0].delta for c in ask(client, stream=True)]
    assert [d.reasoning_content for d in deltas if hasattr(d, "reasoning_content")] == ["窃取八千"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_before_work_is_a_503_with_retry_after(
    client: OpenAI, pool: FakePool, stream: bool
) -> None:
    pool.refusal = OverloadedError("overloaded", "behind those waiting", 3)
    with pytest.raises(openai.InternalServerError) as fault:
        ask(client, stream=stream)
    assert fault.value.status_code == 503
    assert fault.value.code == "overloaded"
    assert fault.value.type == "server_error"
    assert fault.value.response.headers["retry-after"] == "3"


@pytest.mark.parametrize(
    ("refusal", "status", "param", "tries"),
    [
        (DeadlineTooShortError("deadline_too_short", "too short"), 400, "deadline_ms", 1),
        (EngineFailedError("worker_died", "two workers died on it"), 500, None, 1),
        (OverloadedError("overloaded", "behind those waiting"), 503, None, 3),
    ],
)
def test_what_can_not_succeed_is_not_tried_again(
    client: OpenAI, pool: FakePool, refusal: RequestError, status: int, param: str, tries: int
) -> None:
    pool.refusal = refusal
    with pytest.raises(openai.APIStatusError) as fault:
        ask(client.with_options(max_retries=2))
    assert (fault.value.status_code, fault.value.param) == (status, param)
    assert len(pool.jobs) == tries


def test_a_fault_in_mid_stream_is_an_error_of_the_client(
    client: OpenAI, pool: FakePool, caplog: pytest.LogCaptureFixture
) -> None:
    for failure, code in (
        (OverloadedError("worker_died", "the worker died"), "worker_died"),
        (EngineFailedError("engine_error", SECRET), "engine_error"),
        (RuntimeError(SECRET), "internal"),
    ):
        pool.pieces = [Piece("窃", 1), failure]
        with pytest.raises(openai.APIError) as fault:
            list(ask(client, stream=True))
        assert fault.value.code == code
        assert SECRET not in str(fault.value)
        until(lambda: pool.told[-1].closed)
    assert SECRET not in caplog.text


def test_an_engine_failure_says_nothing_of_the_case(client: OpenAI, pool: FakePool) -> None:
    pool.refusal = EngineFailedError("engine_error", f"can't judge {SECRET}")
    with pytest.raises(openai.InternalServerError) as fault:
        ask(client)
    assert SECRET not in str(fault.value)
    assert fault.value.code == "engine_error"


class Sentence(BaseModel):
    kind: Literal["fixed", "detention", "surveillance", "life", "reprieve", "death", "exempt"]
    months: int
    probation_months: int


class Ruling(BaseModel):
    charges: list[str]
    term: Sentence
    fine_yuan: int | None


def test_structured_answers_by_the_clients_own_parser(client: OpenAI) -> None:
    completion = client.chat.completions.parse(model="curt", messages=USER, response_format=Ruling)
    parsed = completion.choices[0].message.parsed
    assert parsed is not None
    assert parsed.charges == ["盗窃"]
    assert parsed.term.months == 8
    assert parsed.fine_yuan == 2000


def test_json_mode_tells_every_part(client: OpenAI) -> None:
    content = ask(client, response_format={"type": "json_object"}).choices[0].message.content
    assert json.loads(content) == VERDICT.to_json()


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"stop": ["。"]}, "stop", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            "tools", "unsupported_parameter",
        ),
        ({"top_logprobs": 2}, "top_logprobs", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
        ({"logit_bias": {"7": 1}}, "logit_bias", "unsupported_parameter"),
        ({"extra_body": {"best_of": 2}}, "best_of", "unsupported_parameter"),
        ({"extra_body": {"use_beam_search": True}}, "use_beam_search", "unknown_parameter"),
        ({"extra_body": {"defendants": "each"}}, "defendants", "unknown_parameter"),
        ({"extra_body": {SECRET: 1}}, None, "unknown_parameter"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
        ({"reasoning_effort": SECRET}, "reasoning_effort", "invalid_value"),
        ({"extra_body": {"deadline_ms": 1}}, "deadline_ms", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "system", "content": SECRET}, *USER]}, "messages",
         "unsupported_role"),
        ({"messages": [{"role": "developer", "content": SECRET}, *USER]}, "messages",
         "unsupported_role"),
        ({"messages": [*USER, {"role": "assistant", "content": "罪名：盗窃"},
                       {"role": "user", "content": "为什么？"}]}, "messages", "follow_up"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages", "empty_fact"),
        (
            {"messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": SECRET}}]}]},
            "messages", "unsupported_content",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
                "type": "object", "properties": {SECRET: {"type": "string"}}}}}},
            "response_format", "invalid_schema",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_or_not_supported_is_refused_in_their_shape(
    client: OpenAI, pool: FakePool, options: dict[str, Any], param: str | None, code: str
) -> None:
    with pytest.raises(openai.BadRequestError) as fault:
        ask(client, **options)
    assert (fault.value.param, fault.value.code) == (param, code)
    assert fault.value.type == "invalid_request_error"
    assert SECRET not in str(fault.value)
    assert pool.jobs == []


def test_another_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as fault:
        ask(client, model="gpt-5")
    assert fault.value.code == "model_not_found"


def test_what_has_no_effect_is_named_in_a_header(client: OpenAI, pool: FakePool) -> None:
    messages = [
        {"role": "user", "content": "第一段。"},
        {"role": "user", "content": [{"type": "text", "text": FACTS[0]}]},
    ]
    raw = client.chat.completions.with_raw_response.create(
        model="curt",
        messages=messages,
        temperature=0.7,
        top_p=0.9,
        seed=1,
        n=1,
        user="u",
        extra_body={"top_k": 5},
    )
    ignored = raw.headers[IGNORED_HEADER]
    assert ignored == "seed, temperature, top_k, top_p, user"
    assert pool.jobs[0].fact == f"第一段。\n{FACTS[0]}"  # no message is dropped


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({}, None),
        ({"reasoning_effort": "none"}, 0),
        ({"reasoning_effort": "low"}, 32),
        ({"reasoning_effort": "high"}, None),
        ({"max_completion_tokens": 64}, 0),
        ({"max_completion_tokens": 30}, 0),
        ({"max_completion_tokens": 100}, 36),
        ({"max_completion_tokens": 4096}, None),
        ({"max_tokens": 80, "reasoning_effort": "low"}, 16),
    ],
)
def test_effort_and_tokens_bound_the_thinking(
    client: OpenAI, pool: FakePool, options: dict[str, Any], bound: int | None
) -> None:
    ask(client, **options)
    assert pool.jobs[0].max_thinking_tokens == bound


def test_no_bound_is_asked_that_the_model_keeps_anyway() -> None:
    body = ChatRequest.model_validate({"model": "curt", "messages": USER, "max_tokens": 128})
    assert thinking_bound(body, 64) is None
    assert thinking_bound(body, 65) == 64


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_of_more_tokens_than_asked_for_is_not_told(client: OpenAI, stream: bool) -> None:
    (last,) = [ask(client, max_tokens=5)] if not stream else list(
        ask(client, max_tokens=5, stream=True)
    )[-1:]  # fmt: skip
    assert last.choices[0].finish_reason == "length"
    if not stream:
        assert last.choices[0].message.content == ""
    assert ask(client, max_tokens=23).choices[0].finish_reason == "stop"


def test_a_ping_in_english_is_answered_with_a_refusal(client: OpenAI, pool: FakePool) -> None:
    """As LiteLLM asks whether a model is healthy."""
    ping = [{"role": "user", "content": "Hey how's it going?"}]
    completion = ask(client, messages=ping, max_tokens=5)
    assert completion.choices[0].message.content is None
    assert "Chinese" in completion.choices[0].message.refusal
    assert completion.usage.total_tokens == 0
    options = {"include_usage": True}
    chunks = list(ask(client, messages=ping, stream=True, stream_options=options))
    assert "Chinese" in chunks[0].choices[0].delta.refusal
    assert chunks[-1].usage.total_tokens == 0
    assert pool.jobs == []


def test_usage_is_null_in_every_chunk_but_the_last(client: OpenAI) -> None:
    options = {"include_usage": True}
    raw = client.chat.completions.with_raw_response.create(
        model="curt", messages=USER, stream=True, stream_options=options
    )
    lines = [line[6:] for line in raw.http_response.iter_lines() if line.startswith("data: {")]
    told = [json.loads(line) for line in lines]
    assert [each["usage"] for each in told[:-1]] == [None] * (len(told) - 1)
    assert told[-1]["usage"]["total_tokens"] == 83


def test_an_answer_that_was_cut_is_not_told(client: OpenAI, pool: FakePool) -> None:
    pool.served = replace(SERVED, generation=replace(SERVED.generation, finish="deadline"))
    completion = ask(client)
    assert completion.choices[0].finish_reason == "length"
    assert completion.choices[0].message.content == ""
    assert completion.curt["degraded_reason"] == "deadline"
    chunks = list(ask(client, stream=True))
    assert chunks[-1].choices[0].finish_reason == "length"
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="curt", messages=USER, response_format=Ruling)


def test_an_unreadable_answer_is_a_refusal(client: OpenAI, pool: FakePool) -> None:
    pool.served = replace(SERVED, generation=generation(f"窃{THINK_END}读不懂"))
    message = ask(client).choices[0].message
    assert message.content is None
    assert "verdict" in message.refusal
    deltas = [c.choices[0].delta for c in ask(client, stream=True)]
    assert [delta.refusal for delta in deltas if delta.refusal] == [message.refusal]


def test_a_stand_in_says_that_it_is_one_and_nothing_of_fines(
    client: OpenAI, pool: FakePool
) -> None:
    verdict = Verdict(("诈骗",), ("266",), Term("fixed", 7))
    confidences: Any = {"charge": 0.9, "article": 0.8, "term": 0.5}
    cut = replace(SERVED.generation, finish="deadline")
    pool.served = replace(SERVED, generation=cut, fallback=Prediction(verdict, confidences))
    completion = ask(client, response_format={"type": "json_object"})
    told = json.loads(completion.choices[0].message.content)
    assert told["charges"] == ["诈骗"]
    assert told["fine_yuan"] is None
    assert completion.choices[0].finish_reason == "stop"
    assert completion.curt["source"] == "fallback"
    assert completion.curt["degraded"] is True
    demanding = {"type": "json_schema", "json_schema": {"name": "v", "schema": {
        "type": "object", "properties": {"fine_yuan": {"type": "integer"}},
        "required": ["fine_yuan"]}}}  # fmt: skip
    message = ask(client, response_format=demanding).choices[0].message
    assert message.content is None
    assert "fine_yuan" in message.refusal


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe", b"[]", b"null", b'{"model": "curt"}', b"x" * 200_000]
)
def test_hostile_bodies_get_an_error_in_their_shape(address: str, body: bytes) -> None:
    response = httpx.post(f"{address}/v1/chat/completions", content=body)
    assert response.status_code in (400, 413, 422)
    error = response.json()["error"]
    assert error["code"]
    assert error["message"]


@pytest.mark.parametrize(
    "schema",
    [
        {},
        VERDICT_SCHEMA,
        Ruling.model_json_schema(),
        {"type": "object", "properties": {"fine_yuan": {"type": "number"}}},
        {"type": "object", "properties": {"term": True}, "additionalProperties": False},
    ],
)
def test_schemas_that_verdicts_fit(schema: dict[str, Any]) -> None:
    check_schema(schema)
    told = project(VERDICT.to_json(), schema)
    assert told.keys() == (schema.get("properties") or VERDICT_SCHEMA["properties"]).keys()


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array"},
        {"properties": {"guilty": {"type": "boolean"}}},
        {"required": ["guilty"]},
        {"properties": {"charges": {"type": "string"}}},
        {"properties": {"charges": {"items": {"type": "integer"}}}},
        {"properties": {"charges": {"items": {"enum": ["盗窃"]}}}},
        {"properties": {"term": {"properties": {"kind": {"enum": ["fixed"]}}}}},
        {"properties": {"fine_yuan": {"minimum": 1000}}},
        {"properties": {"term": {"$ref": "#/$defs/missing"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"anyOf": [{"type": "object"}, {"type": "array"}]},
        {"properties": {"charges": 5}},
        {"properties": 5},
        {"additionalProperties": False, "required": ["charges"]},
    ],
)
def test_schemas_that_some_verdict_would_break(schema: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        check_schema(schema)


@pytest.mark.slow
def test_a_real_pool_streams_and_stops_when_the_client_leaves(
    empty_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    pool = WorkerPool(
        empty_model, MANIFEST, metrics, workers=1, queue_size=4, margin_ms=5,
        open_engine=open_streaming_engine,
    )  # fmt: skip
    app = make_app(pool, Settings(model=empty_model, workers=1))
    app.router.lifespan_context = running(pool)
    with (
        serving(app) as url,
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        until(lambda: pool.ready)
        extra = {"deadline_ms": 3000}
        chunks = list(ask(client, stream=True, extra_body=extra))
        told = "".join(
            getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in chunks
        )
        assert told.startswith("推理。")
        assert chunks[-1].choices[0].finish_reason == "stop"
        with ask(client, stream=True, extra_body=extra) as stream:
            next(chunk for chunk in stream if hasattr(chunk.choices[0].delta, "reasoning_content"))
        until(lambda: b'curt_cancelled_total{stage="running"} 1.0' in metrics.render())
        completion = ask(client, extra_body=extra)
        assert parse_answer(completion.choices[0].message.content) == VERDICT
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def running(pool: WorkerPool) -> Any:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await pool.start()
        yield
        await pool.stop()

    return lifespan
