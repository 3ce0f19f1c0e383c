"""Metrics by variant, and how the metrics of several pools add up to those of the server.

Label values are the names that administrators gave; `forget` takes a variant's series away.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, cast, get_args

from prometheus_client import Counter, Gauge, Histogram

from serve.metrics import LATENCY_BUCKETS_S, Metrics
from serve.variants.canary import RATES

Ending = Literal["full", "degraded", "refused", "failed", "cancelled"]
ShadowEnding = Literal["agreed", "differed", "failed", "dropped", "preempted"]


class VariantMetrics:
    """What every variant did."""

    def __init__(self, metrics: Metrics) -> None:
        """Adds to the registry of a server's metrics."""
        self._metrics = metrics
        registry = metrics.registry
        self.requests = Counter(
            "curt_variant_requests",
            "Requests by the variant that had them and how they ended",
            ["variant", "outcome"],
            registry=registry,
        )
        self.latency = Histogram(
            "curt_variant_latency_seconds",
            "From the arrival of a request to its variant's answer",
            ["variant"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.share = Gauge(
            "curt_variant_share", "Share of keys a variant answers", ["variant"], registry=registry
        )
        self.rerouted = Counter(
            "curt_variant_rerouted",
            "Requests that went to the live variant because theirs was not ready",
            ["variant"],
            registry=registry,
        )
        self.shadows = Counter(
            "curt_variant_shadow",
            "Copies of requests for a shadow and what became of them",
            ["variant", "outcome"],
            registry=registry,
        )
        self.rollbacks = Counter(
            "curt_variant_rollbacks",
            "Canaries rolled back by the test",
            ["rate"],
            registry=registry,
        )
        self.workers_ready = Gauge(
            "curt_variant_workers_ready", "Workers of a variant", ["variant"], registry=registry
        )
        self.queue_depth = Gauge(
            "curt_variant_queue_depth", "Waiting for a variant", ["variant"], registry=registry
        )
        for rate in RATES:
            self.rollbacks.labels(rate)
        self._quiet: dict[str, Callable[[], bool]] = {}
        metrics.workers_ready.set_function(lambda: self._sum(self.workers_ready))
        metrics.queue_depth.set_function(lambda: self._sum(self.queue_depth))

    def for_pool(self, variant: str, is_quiet: Callable[[], bool]) -> tuple[Metrics, Metrics]:
        """The metrics to give a variant's pool, and those it counts in while `is_quiet()`.

        A model that loads, and a shadow, must not raise the server's counts of refusals and
        deaths: nobody was refused. Two pools must not overwrite each other's gauges either.
        """
        self._quiet[variant] = is_quiet
        aside, given = Metrics(), copy.copy(self._metrics)
        for name, metric in vars(given).items():
            if isinstance(metric, Counter):
                switch = _Switch(metric, vars(aside)[name], is_quiet)
                setattr(given, name, cast(Counter, switch))
        given.workers_ready = self.workers_ready.labels(variant)
        given.queue_depth = self.queue_depth.labels(variant)
        return given, aside

    def announce(self, variant: str) -> None:
        """Show a variant's series at 0: one that first appears at 1 hides it from `rate()`."""
        for outcome in get_args(Ending):
            self.requests.labels(variant, outcome)
        self.latency.labels(variant)

    def forget(self, variant: str) -> None:
        """Take away the series of a variant that is gone."""
        for outcome in get_args(Ending):
            self.requests.remove(variant, outcome)
        for outcome in get_args(ShadowEnding):
            self.shadows.remove(variant, outcome)
        for metric in (
            self.latency, self.share, self.rerouted, self.workers_ready, self.queue_depth,
        ):  # fmt: skip
            metric.remove(variant)
        self._quiet.pop(variant, None)

    def _sum(self, gauge: Gauge) -> float:
        """Over the variants that answer: a shadow's workers serve nobody."""
        answering = {variant for variant, is_quiet in self._quiet.items() if not is_quiet()}
        samples = [sample for family in gauge.collect() for sample in family.samples]
        return sum(s.value for s in samples if s.labels["variant"] in answering)


class _Switch:
    """A counter that counts in one of two places."""

    def __init__(self, loud: Counter, quiet: Counter, is_quiet: Callable[[], bool]) -> None:
        self._loud, self._quiet, self._is_quiet = loud, quiet, is_quiet

    def inc(self, amount: float = 1) -> None:
        self._place().inc(amount)

    def labels(self, *values: Any) -> Counter:
        return self._place().labels(*values)

    def _place(self) -> Counter:
        return self._quiet if self._is_quiet() else self._loud
