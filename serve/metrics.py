"""Prometheus metrics of one server. Names and units follow Prometheus' conventions."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# Dense around 0.4 s, where the promise is.
LATENCY_BUCKETS_S = (
    0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.325, 0.35, 0.375, 0.39, 0.4,
    0.41, 0.425, 0.45, 0.5, 0.6, 0.8, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
PHASE_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4,
    0.5, 1.0, 2.0, 5.0, 20.0,
)  # fmt: skip
TOKEN_BUCKETS = (0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "curt_requests", "Requests to /predict", ["status"], registry=self.registry
        )
        self.latency = Histogram(
            "curt_e2e_request_latency_seconds",
            "From the first byte of a /predict request to its reply, errors included",
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.queue = self._phase("queue", "Waiting for a worker")
        self.prefill = self._phase("prefill", "Reading the prompt")
        self.decode = self._phase("decode", "Thinking and answering")
        self.thinking_used = self._tokens("used", "Thinking tokens generated")
        self.thinking_allowed = self._tokens("allowed", "Thinking tokens the deadline allowed")
        self.shed = Counter(
            "curt_shed", "Requests refused or given up with 503", ["reason"], registry=self.registry
        )
        self.degraded = Counter(
            "curt_degraded", "Replies without a full verdict", ["reason"], registry=self.registry
        )
        self.deadline_missed = Counter(
            "curt_deadline_missed", "Replies sent after their deadline", registry=self.registry
        )
        self.worker_deaths = Counter(
            "curt_worker_deaths", "Workers that ended unasked", registry=self.registry
        )
        self.workers_ready = Gauge(
            "curt_workers_ready", "Workers that can take requests", registry=self.registry
        )
        self.queue_depth = Gauge(
            "curt_queue_depth", "Requests waiting for a worker", registry=self.registry
        )

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)

    def _phase(self, name: str, text: str) -> Histogram:
        return Histogram(
            f"curt_{name}_seconds", text, buckets=PHASE_BUCKETS_S, registry=self.registry
        )

    def _tokens(self, name: str, text: str) -> Histogram:
        return Histogram(
            f"curt_thinking_tokens_{name}", text, buckets=TOKEN_BUCKETS, registry=self.registry
        )
