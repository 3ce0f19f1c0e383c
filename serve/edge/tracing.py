"""OpenTelemetry traces: one span a request, and one each for its queue, prefill, thinking, answer.

Off unless `CURT_OTLP_ENDPOINT` or one of the standard `OTEL_EXPORTER_OTLP_*ENDPOINT` variables
names a collector. A span holds counts, times and the route's pattern. It never holds a client's
text, since facts are personal data: no path as sent, no request id, no `tracestate`, no message of
an exception.

The spans of the phases are made when the request ends, from what the routes leave in `state.log`,
so that the pool and the workers need not know of tracing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.edge.context import QUIET_ROUTES

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
TIMEOUT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")
EXPORT_TIMEOUT_S = 2.0  # a collector that is down must not hold up the end of a drain
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# What of `state.log` goes into the span of the request: numbers and flags only.
REQUEST_FIELDS = {
    "deadline_ms": "curt.deadline_ms",
    "queue_ms": "curt.queue_ms",
    "prefill_ms": "curt.prefill_ms",
    "decode_ms": "curt.decode_ms",
    "prompt_tokens": "curt.prompt_tokens",
    "thinking_tokens": "curt.thinking_tokens",
    "thinking_allowed": "curt.thinking_allowed",
    "thinking_cut": "curt.thinking_cut",
    "answer_tokens": "curt.answer_tokens",
}


class TracingError(ValueError):
    """Traces are wanted and can't be sent; the message says what to do."""


class Tracing:
    """Spans of requests, sent by a provider."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("curt.serve")
        self._propagator = TraceContextTextMapPropagator()

    def start_request(self, scope: Scope) -> Span:
        """Begin the span of a request, within the trace its `traceparent` names, if it does."""
        from opentelemetry.trace import SpanKind

        return self._tracer.start_span(
            "request",
            context=self._remote_context(scope),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": _method(scope)},
            # The message of an exception may quote the fact it failed on.
            record_exception=False,
            set_status_on_exception=False,
        )

    def traceparent(self, span: Span) -> str:
        """The W3C header that names a span."""
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return carrier["traceparent"]

    def end_request(
        self, span: Span, scope: Scope, status: int, log: Mapping[str, Any], start_ns: int
    ) -> None:
        """Complete the span of a request and add the spans of its phases below it."""
        from opentelemetry.trace import StatusCode

        route = getattr(scope.get("route"), "path", None)
        if isinstance(route, str):
            span.update_name(f"{_method(scope)} {route}")
            span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", status)
        span.set_attribute("curt.degraded", bool(log.get("degraded")))
        for name, attribute in REQUEST_FIELDS.items():
            value = log.get(name)
            if isinstance(value, int | float):
                span.set_attribute(attribute, value)
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        self._add_phases(span, log, start_ns)
        span.end()

    def close(self) -> None:
        """Send what is left and stop; takes a few seconds when the collector is down."""
        self._provider.shutdown()

    def _add_phases(self, parent: Span, log: Mapping[str, Any], start_ns: int) -> None:
        from opentelemetry.trace import set_span_in_context

        context = set_span_in_context(parent)
        at_ns = start_ns
        for name, duration_ms, counts in phases(log):
            span = self._tracer.start_span(
                name, context=context, start_time=at_ns, attributes=counts
            )
            at_ns += int(duration_ms * 1e6)
            span.end(at_ns)

    def _remote_context(self, scope: Scope) -> Context | None:
        given = Headers(scope=scope).getlist("traceparent")
        if len(given) != 1:
            return None
        # Without `tracestate`, which may hold any text and would be sent on.
        return self._propagator.extract({"traceparent": given[0]})


class TraceRequests:
    """ASGI middleware that traces requests; stands inside `RequestContext`, whose state it uses.

    It joins the trace of the client's `traceparent` header, replies with its own, and adds
    `trace_id` to the log line.
    """

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self.app = app
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or scope["path"] in QUIET_ROUTES:
            await self.app(scope, receive, send)
            return
        start_ns = time.time_ns()
        span = self.tracing.start_request(scope)
        header = self.tracing.traceparent(span)
        log: dict[str, Any] = scope["state"]["log"]
        log["trace_id"] = header.split("-")[1]
        scope["state"]["traceparent"] = header  # for engines that are reached over HTTP
        status = 500  # unless a reply says otherwise

        async def send_with_parent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"traceparent", header.encode())]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self.app(scope, receive, send_with_parent)
        finally:
            self.tracing.end_request(span, scope, status, log, start_ns)


def phases(log: Mapping[str, Any]) -> list[tuple[str, float, dict[str, int]]]:
    """Name, milliseconds and counts of each phase a request went through, in order.

    The engine times decoding as a whole; it is divided between thinking and answer by tokens.
    """
    if "queue_ms" not in log:
        return []
    found: list[tuple[str, float, dict[str, int]]] = [("queue", log["queue_ms"], {})]
    if not log.get("prefill_ms"):
        return found
    found.append(("prefill", log["prefill_ms"], _counts(log, "prompt_tokens")))
    thinking, answer = log.get("thinking_tokens", 0), log.get("answer_tokens", 0)
    total = thinking + answer
    if thinking:
        counts = _counts(log, "thinking_tokens", "thinking_allowed")
        found.append(("thinking", log["decode_ms"] * thinking / total, counts))
    if answer:
        counts = _counts(log, "answer_tokens")
        found.append(("answer", log["decode_ms"] * answer / total, counts))
    return found


def wanted_endpoint(endpoint: str | None, environment: Mapping[str, str]) -> bool:
    """Whether traces are wanted: `endpoint` or an OTEL_* variable names a collector."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return False
    return bool(endpoint) or any(environment.get(name) for name in ENDPOINT_VARIABLES)


def open_tracing(
    endpoint: str | None, environment: Mapping[str, str], version: str
) -> Tracing | None:
    """Tracing as set up, or None where it is off.

    Args:
        endpoint: base address of an OTLP/HTTP collector, http://localhost:4318; None or "" leaves
            it to the OTEL_* variables.
        environment: the process's, read for those variables.
        version: of this server, for the resource.

    Raises TracingError when the address is none, or OpenTelemetry is not installed.
    """
    if not wanted_endpoint(endpoint, environment):
        return None
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise TracingError(f"{endpoint!r} is no OTLP/HTTP address: use http://host:4318")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingError(
            "traces are wanted and OpenTelemetry is not installed: install opentelemetry-sdk and "
            "opentelemetry-exporter-otlp-proto-http, or unset the endpoint"
        ) from error
    described = {"service.version": version}
    if not environment.get("OTEL_SERVICE_NAME"):
        described["service.name"] = "curt"
    exporter = OTLPSpanExporter(
        endpoint=f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None,
        timeout=None if any(environment.get(t) for t in TIMEOUT_VARIABLES) else EXPORT_TIMEOUT_S,
    )
    provider = TracerProvider(resource=Resource.create(described), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    logger.info("traces are sent")
    return Tracing(provider)


def _counts(log: Mapping[str, Any], *names: str) -> dict[str, int]:
    return {REQUEST_FIELDS[name]: log[name] for name in names if isinstance(log.get(name), int)}


def _method(scope: Scope) -> str:
    method = str(scope["method"])
    return method if method in METHODS else "_OTHER"
