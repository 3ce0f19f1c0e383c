"""Metrics by variant, and how the metrics of several pools add up to those of the server.

Label values are the names that administrators gave; `forget` takes a variant's series away.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, cast, get_args

from prometheus_client import Counter, Gauge, Histogram

from serve.metrics import LATENCY_BUCKETS_S, Metrics
from serve.variants.canary import MARGINS

Ending = Literal["full", "degraded", "refused", "failed", "cancelled"]
ShadowEnding = Literal["agreed", "differed", "failed", "dropped", "preempted"]


class VariantMetrics:
    """What every variant did."""

    def __init__(self, metrics: Metrics) -> None:
        """Adds to the registry of a server's metrics."""

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"curt_variant_{name}", text, labels, registry=metrics.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"curt_variant_{name}", text, ["variant"], registry=metrics.registry)

        self.requests = counter(
            "requests", "Requests by their variant and how they ended", "variant", "outcome"
        )
        self.latency = Histogram(
            "curt_variant_latency_seconds",
            "From the arrival of a request to its variant's answer",
            ["variant"],
            buckets=LATENCY_BUCKETS_S,
            registry=metrics.registry,
        )
        self.share = gauge("share", "Share of keys a variant answers")
        self.rerouted = counter(
            "rerouted", "Requests that the live variant had: theirs was not ready", "variant"
        )
        self.shadows = counter(
            "shadow", "Copies of requests for a shadow by their outcome", "variant", "outcome"
        )
        self.rollbacks = counter("rollbacks", "Canaries rolled back by the test", "rate")
        self.workers_ready = gauge("workers_ready", "Workers of a variant")
        self.queue_depth = gauge("queue_depth", "Waiting for a variant")
        for rate in MARGINS:
            self.rollbacks.labels(rate)
        self.is_quiet: Callable[[str], bool] = lambda variant: True
        """Whether a variant serves nobody: it loads or is a shadow. The router sets it."""
        self._metrics = metrics
        self._aside: dict[str, Metrics] = {}
        metrics.workers_ready.set_function(lambda: self._sum(self.workers_ready))
        metrics.queue_depth.set_function(lambda: self._sum(self.queue_depth))

    def for_pool(self, variant: str) -> Metrics:
        """The metrics to give a variant's pool; while it is quiet they count aside.

        A model that loads, and a shadow, must not raise the server's counts of refusals and
        deaths: nobody was refused. Two pools must not overwrite each other's gauges either.
        """
        aside = self._aside[variant] = Metrics()
        given = copy.copy(self._metrics)
        for name, metric in vars(given).items():
            if isinstance(metric, Counter):
                switch = _SwitchedCounter(metric, vars(aside)[name], lambda: self.is_quiet(variant))
                setattr(given, name, cast(Counter, switch))
        given.workers_ready = self.workers_ready.labels(variant)
        given.queue_depth = self.queue_depth.labels(variant)
        return given

    def deaths_aside(self, variant: str) -> float:
        """Workers of a variant that died while it was quiet."""
        return self._aside[variant].registry.get_sample_value("curt_worker_deaths_total") or 0.0

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
        for gauge in (self.share, self.workers_ready, self.queue_depth):
            gauge.remove(variant)
        self.latency.remove(variant)
        self.rerouted.remove(variant)
        self._aside.pop(variant, None)

    def _sum(self, gauge: Gauge) -> float:
        """Over the variants that answer: a shadow's workers serve nobody."""
        samples = [sample for family in gauge.collect() for sample in family.samples]
        return sum(s.value for s in samples if not self.is_quiet(s.labels["variant"]))


class _SwitchedCounter:
    """A counter of the server that counts aside instead while `is_quiet()`."""

    def __init__(self, loud: Counter, aside: Counter, is_quiet: Callable[[], bool]) -> None:
        self._loud, self._aside, self._is_quiet = loud, aside, is_quiet

    def __getattr__(self, name: str) -> Any:  # `inc` and `labels`
        return getattr(self._aside if self._is_quiet() else self._loud, name)
