"""Spans of requests, with an exporter in memory, and what must never be in one."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from curt.dialogue import THINK_END, render_answer
from curt.logs import JsonFormatter
from serve.app import create_app
from serve.edge.context import RequestContext
from serve.edge.tracing import (
    TraceRequests,
    Tracing,
    TracingError,
    open_tracing,
    phases,
    wanted_endpoint,
)
from serve.errors import EngineFailedError, OverloadedError
from serve.metrics import Metrics
from serve.settings import Settings
from tests.micro import FACTS
from tests.serve.asgi_client import AsgiClient
from tests.serve.fake_engine import VERDICT
from tests.serve.fake_pool import FakePool, generation

SECRET = "幸福路三号的秘密"
FACT = f"{FACTS[0]}{SECRET}"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
LOG = {
    "queue_ms": 10.0, "prefill_ms": 20.0, "decode_ms": 100.0, "prompt_tokens": 60,
    "thinking_tokens": 30, "thinking_allowed": 48, "answer_tokens": 20,
}  # fmt: skip


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Iterator[Tracing]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider)
    yield tracing
    tracing.close()


def small_app(tracing: Tracing) -> FastAPI:
    """Routes that leave in the log what the real ones do, or fail with the fact in the message."""
    app = FastAPI()

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, str]:
        request.state.log.update(LOG, warnings=[SECRET], degraded=None)
        return {"echo": (await request.body()).decode()}

    @app.post("/cases/{name}")
    async def fail(name: str, request: Request) -> None:
        raise ValueError(f"cannot judge {name}: {await request.body()!r}")

    @app.get("/livez")
    async def livez() -> None:
        return

    app.add_middleware(TraceRequests, tracing=tracing)
    app.add_middleware(RequestContext, metrics=Metrics())
    return app


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def milliseconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e6


def test_a_request_and_its_phases_are_spans_of_one_trace(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    AsgiClient(small_app(tracing)).post("/predict", content=FACT)
    spans = by_name(exporter)
    assert set(spans) == {"POST /predict", "queue", "prefill", "thinking", "answer"}
    request = spans.pop("POST /predict")
    assert {span.context.trace_id for span in spans.values()} == {request.context.trace_id}
    assert {span.parent.span_id for span in spans.values() if span.parent} == {
        request.context.span_id
    }
    lasted = {name: milliseconds(span) for name, span in spans.items()}
    assert lasted == pytest.approx({"queue": 10, "prefill": 20, "thinking": 60, "answer": 40})
    assert spans["prefill"].start_time == spans["queue"].end_time
    assert dict(spans["thinking"].attributes or {}) == {
        "curt.thinking_tokens": 30,
        "curt.thinking_allowed": 48,
    }


def test_the_trace_of_the_client_goes_on_and_is_returned(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    client = AsgiClient(small_app(tracing))
    given = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=secret"}
    response = client.post("/predict", content=FACT, headers=given)
    span = by_name(exporter)["POST /predict"]
    assert response.headers["traceparent"] == f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT
    assert not span.context.trace_state


@pytest.mark.parametrize(
    "header", ["", "garbage", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", "秘" * 999]
)
def test_a_traceparent_that_is_none_begins_a_new_trace(
    tracing: Tracing, exporter: InMemorySpanExporter, header: str
) -> None:
    client = AsgiClient(small_app(tracing))
    response = client.post("/predict", content=FACT, headers={"traceparent": header.encode()})
    assert response.status_code == 200
    assert by_name(exporter)["POST /predict"].parent is None
    assert TRACE not in response.headers["traceparent"]


def test_probes_are_not_traced(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    assert AsgiClient(small_app(tracing)).get("/livez").status_code == 200
    assert exporter.get_finished_spans() == ()


def test_a_failure_is_marked_and_still_answered(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    response = AsgiClient(small_app(tracing)).post("/cases/1", content=FACT)
    assert response.status_code == 500
    span = by_name(exporter)["POST /cases/{name}"]
    assert (span.status.is_ok, span.events) == (False, ())


@pytest.mark.parametrize(
    "answer",
    [
        generation(f"{SECRET}{THINK_END}{render_answer(VERDICT)}"),
        generation(SECRET, finish="deadline"),
        OverloadedError("overloaded", "too many"),
        EngineFailedError("engine_error", SECRET),
        ValueError(SECRET),
    ],
    ids=["verdict", "cut", "refused", "engine failed", "bug"],
)
def test_no_span_and_no_log_line_holds_text_of_the_case(
    settings: Settings, tracing: Tracing, exporter: InMemorySpanExporter, answer: Any
) -> None:
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        app = create_app(settings, FakePool(answer))
        # create_app's own middleware is the outer one
        app.user_middleware.append(_inner(tracing))
        client = AsgiClient(app)
        client.post("/predict", json={"fact": FACT}, headers={"tracestate": "a=secret"})
        client.post("/predict", json={"fact": FACT, SECRET: SECRET})
        client.post("/predict", content=f'{{"fact": "{FACT}')
        client.post(f"/{SECRET}?fact={FACT}", content=FACT)
        AsgiClient(small_app(tracing)).post(f"/cases/{SECRET}", content=FACT)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    spans = [span.to_json() for span in exporter.get_finished_spans()]
    assert len(spans) >= 5
    everything = "\n".join([*spans, lines.getvalue()])
    assert json.dumps("curt")[1:-1] in everything
    escaped = json.dumps(SECRET)[1:-1]
    for part in (SECRET, escaped, FACTS[0][:8], json.dumps(FACTS[0][:8])[1:-1], "a=secret"):
        assert part not in everything
    assert '"trace_id"' in lines.getvalue()


def _inner(tracing: Tracing) -> Any:
    from starlette.middleware import Middleware

    return Middleware(TraceRequests, tracing=tracing)


def test_phases_that_did_not_happen_are_left_out() -> None:
    assert phases({}) == []
    assert [name for name, _, _ in phases({"queue_ms": 3.0, "prefill_ms": 0.0})] == ["queue"]
    without_thinking = LOG | {"thinking_tokens": 0}
    assert [name for name, _, _ in phases(without_thinking)] == ["queue", "prefill", "answer"]
    assert sum(ms for _, ms, _ in phases(without_thinking)) == pytest.approx(130)


@pytest.mark.parametrize(
    ("endpoint", "environment", "wanted"),
    [
        (None, {}, False),
        ("", {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ("http://c:4318", {}, True),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ("http://c:4318", {"OTEL_SDK_DISABLED": "true"}, False),
        ("http://c:4318", {"OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_traces_are_off_unless_a_collector_is_named(
    endpoint: str | None, environment: dict[str, str], wanted: bool
) -> None:
    assert wanted_endpoint(endpoint, environment) is wanted
    if not wanted:
        assert open_tracing(endpoint, environment, "1") is None


def test_an_address_that_is_none_is_refused_with_the_remedy() -> None:
    with pytest.raises(TracingError, match="use http://host:4318"):
        open_tracing("collector:4317", {}, "1")


def test_a_collector_that_is_down_neither_fails_requests_nor_holds_up_the_end() -> None:
    tracing = open_tracing("http://127.0.0.1:9", {}, "1")
    assert tracing is not None
    assert AsgiClient(small_app(tracing)).post("/predict", content=FACT).status_code == 200
    started_s = time.monotonic()
    tracing.close()
    assert time.monotonic() - started_s < 8
