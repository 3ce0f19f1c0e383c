"""Prometheus metrics of one server. Names and units follow Prometheus' conventions.

No label holds anything a client chose: label values are status codes and our own error codes. The
number of error codes is capped, so that a mistake there can't create series without end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from serve.served import DegradedReason, Served

# Dense around 0.4 s, the default deadline.
LATENCY_BUCKETS_S = (
    0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.325, 0.35, 0.375, 0.39, 0.4,
    0.41, 0.425, 0.45, 0.5, 0.6, 0.8, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
PHASE_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4,
    0.5, 1.0, 2.0, 5.0, 20.0,
)  # fmt: skip
# From a tiny model on a free core to a large one on a busy core.
TOKEN_TIME_BUCKETS_S = (
    0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015,
    0.02, 0.03, 0.05, 0.1, 0.2,
)  # fmt: skip
RATIO_BUCKETS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0)
TOKEN_BUCKETS = (0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)

Outcome = Literal["good", "late", "degraded", "refused", "failed", "rejected", "left"]
"""What became of a case: a full verdict of the model in time, or later; none of the model; 503;
another failure of ours; 400 to 499; its client hung up."""

CLIENT_CLOSED = "client_closed"  # the error of a client that hung up

# Why the pool refuses a request or gives it up; a test compares them with its code.
SHED_REASONS = (
    "draining", "starting", "queue_full", "overloaded", "expired", "overrun", "worker_died",
    "front_busy",
)  # fmt: skip
MAX_REASONS = 40
_REASON = re.compile(r"[a-z][a-z_]{0,39}")


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory and open files of the front
        self.requests = self._counter("requests", "Requests to /predict", "status")
        self.latency = self._histogram(
            "e2e_request_latency_seconds",
            "From the first byte of a /predict request to its reply, errors included",
            LATENCY_BUCKETS_S,
        )
        self.answer_latency = self._histogram(
            "answer_latency_seconds",
            "From the first byte of a request to its verdict, refusals left out",
            LATENCY_BUCKETS_S,
        )
        self.first_token = self._histogram(
            "time_to_first_token_seconds",
            "From the first byte of a request to its first token of reasoning or answer",
            LATENCY_BUCKETS_S,
        )
        self.token_time = self._histogram(
            "time_per_output_token_seconds",
            "Decoding time of an answer by its tokens, forced ones included",
            TOKEN_TIME_BUCKETS_S,
        )
        self.queue = self._histogram("queue_seconds", "Waiting for a worker", PHASE_BUCKETS_S)
        self.prefill = self._histogram("prefill_seconds", "Reading the prompt", PHASE_BUCKETS_S)
        self.decode = self._histogram("decode_seconds", "Thinking and answering", PHASE_BUCKETS_S)
        self.thinking_used = self._histogram(
            "thinking_tokens_used", "Thinking tokens generated", TOKEN_BUCKETS
        )
        self.thinking_allowed = self._histogram(
            "thinking_tokens_allowed", "Thinking tokens the deadline allowed", TOKEN_BUCKETS
        )
        self.thinking_ratio = self._histogram(
            "thinking_allowed_ratio",
            "Thinking tokens allowed, by what half of the cases take where they may",
            RATIO_BUCKETS,
        )
        self.short_thinking = self._counter(
            "short_thinking", "Answers that were allowed less thinking than usual", "cause"
        )
        self.cases = self._counter("cases", "Cases by what became of them", "outcome")
        self.key_cases = self._counter(
            "key_cases", "Cases of an API key by what became of them", "key", "outcome"
        )
        self.deadline_missed = self._counter("deadline_missed", "Replies sent after their deadline")
        self.degraded = self._counter("degraded", "Replies without a full verdict", "reason")
        self.fallback = self._counter(
            "fallback", "Verdicts given by the fallback classifier", "reason"
        )
        self.shed = self._counter("shed", "Requests refused or given up with 503", "reason")
        self.rejected = self._counter(
            "rejected", "Requests refused with a status from 400 to 499", "reason"
        )
        self.cancelled = self._counter(
            "cancelled", "Requests whose client left before the answer", "stage"
        )
        self.worker_deaths = self._counter("worker_deaths", "Workers that ended unasked")
        self.worker_restarts = self._counter(
            "worker_restarts", "Workers that took the place of one that ended"
        )
        self.workers_ready = self._gauge("workers_ready", "Workers that can take requests")
        self.queue_depth = self._gauge("queue_depth", "Requests waiting for a worker")
        self.build = Gauge(
            "curt_build_info",
            "What is running; always 1",
            ["version", "model", "manifest", "precision"],
            registry=self.registry,
        )
        self._reasons: set[str] = set()

    def describe(self, *, version: str, model: str, manifest: str, precision: str) -> None:
        """Say what is running, and show every known reason at 0.

        A series that first appears at 1 hides that first event from `rate()`.
        """
        self.build.labels(version, model, manifest, precision).set(1)
        for reason in SHED_REASONS:
            self.shed.labels(reason)
        for reason in get_args(DegradedReason):
            self.degraded.labels(reason)
        for cause in ("load", "deadline"):
            self.short_thinking.labels(cause)
        for stage in ("queued", "running"):
            self.cancelled.labels(stage)
        for outcome in get_args(Outcome):
            self.cases.labels(outcome)
        for status in ("200", "500", "503"):
            self.requests.labels(status)

    def record_answer(self, served: Served, *, total_ms: float, deadline_ms: float) -> Outcome:
        """Count one answer: its times and its tokens; whether it is a good one.

        An answer that no worker made (from the cache, or the classifier's) counts in the
        end-to-end figures only.
        """
        generation = served.generation
        self.answer_latency.observe(total_ms / 1e3)
        if generation.prefill_ms > 0:
            self.queue.observe(served.queue_ms / 1e3)
            self.prefill.observe(generation.prefill_ms / 1e3)
            self.decode.observe(generation.decode_ms / 1e3)
            self.thinking_used.observe(generation.thinking_tokens)
            self.thinking_allowed.observe(served.thinking_allowed)
            if served.usual_thinking:
                self.thinking_ratio.observe(served.thinking_allowed / served.usual_thinking)
            if served.short_thinking:
                self.short_thinking.labels(served.short_thinking).inc()
            tokens = generation.thinking_tokens + generation.answer_tokens
            if tokens:
                self.first_token.observe((served.queue_ms + generation.prefill_ms) / 1e3)
                self.token_time.observe(generation.decode_ms / tokens / 1e3)
        late = total_ms > deadline_ms
        if late:
            self.deadline_missed.inc()
        if served.degraded_reason:
            self.degraded.labels(served.degraded_reason).inc()
            return "degraded"
        return "late" if late else "good"

    def record_case(self, status: int, log: Mapping[str, Any]) -> None:
        """Count a case that has ended, of a request for one or for several.

        `log` holds the `outcome` of an answer; where there was none, the `error` of a client that
        left, and the `error_status` of a stream that broke off after its status had been sent.
        """
        outcome: Outcome | None = log.get("outcome")
        status = log.get("error_status", status)
        if outcome is None:
            if log.get("error") == CLIENT_CLOSED or status == 0:
                outcome = "left"
            elif status < 500:
                outcome = "rejected"
            else:
                outcome = "refused" if status == 503 else "failed"
        self.cases.labels(outcome).inc()
        if key := log.get("key"):
            self.key_cases.labels(key, outcome).inc()

    def record_end(self, status: int, reason: object, seconds: float) -> None:
        """Count a request to /predict that ended; `reason` is the code of its error, if any."""
        self.requests.labels(str(status)).inc()
        self.latency.observe(seconds)
        if 400 <= status < 500:
            self.rejected.labels(self._bounded(reason)).inc()

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)

    def _bounded(self, reason: object) -> str:
        """The reason if it looks like one of ours and there are not too many yet, else "other"."""
        if not isinstance(reason, str) or not _REASON.fullmatch(reason):
            return "other"
        if reason not in self._reasons and len(self._reasons) >= MAX_REASONS:
            return "other"
        self._reasons.add(reason)
        return reason

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"curt_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"curt_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"curt_{name}", text, buckets=buckets, registry=self.registry)
