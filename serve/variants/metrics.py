"""Metrics by variant, and how the metrics of several pools add up to those of the server.

Label values are the names that administrators gave; `forget` takes a variant's series away.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Literal, get_args

from prometheus_client import Counter, Gauge, Histogram

from serve.metrics import LATENCY_BUCKETS_S, Metrics
from serve.variants.canary import MARGINS
from serve.variants.split import Split

VERDICT_PARTS = ("charges", "articles", "term")
# Rerouted ones went to the live variant, since theirs was not ready, and end there once more.
Ending = Literal["full", "late", "degraded", "refused", "failed", "cancelled", "rerouted"]
ShadowEnding = Literal["agreed", "differed", "degraded", "failed", "dropped", "preempted"]


class VariantMetrics:
    """What every variant did."""

    def __init__(self, metrics: Metrics) -> None:
        """Adds to the registry of a server's metrics."""

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"curt_variant_{name}", text, labels, registry=metrics.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"curt_variant_{name}", text, ["variant"], registry=metrics.registry)

        self.requests = counter("requests", "Requests by how they ended", "variant", "outcome")
        self.latency = Histogram(
            "curt_variant_latency_seconds",
            "From the arrival of a request to its variant's answer",
            ["variant"],
            buckets=LATENCY_BUCKETS_S,
            registry=metrics.registry,
        )
        self.share = gauge("share", "Share of requests a variant answers")
        self.shadows = counter("shadow", "A shadow's copies by their end", "variant", "outcome")
        self.shadow_differences = counter(
            "shadow_differences", "Copies whose verdict differed in a part", "variant", "part"
        )
        self.rollbacks = counter("rollbacks", "Canaries rolled back by the test", "rate")
        self.workers_ready = gauge("workers_ready", "Workers of a variant")
        self.queue_depth = gauge("queue_depth", "Waiting for a variant")
        for rate in MARGINS:
            self.rollbacks.labels(rate)
        self._metrics = metrics
        self._answering: set[str] = set()
        metrics.workers_ready.set_function(lambda: self._sum(self.workers_ready))
        metrics.queue_depth.set_function(lambda: self._sum(self.queue_depth))

    def for_pool(self, variant: str) -> Metrics:
        """The server's metrics with gauges of a variant's own, which else two pools would share.

        Counters are shared: what befalls a model that loads or a shadow's copy counts there too.
        """
        given = copy.copy(self._metrics)
        given.workers_ready = self.workers_ready.labels(variant)
        given.queue_depth = self.queue_depth.labels(variant)
        return given

    def worker_deaths(self) -> float:
        """Workers of any variant that have ended unasked."""
        return self._metrics.registry.get_sample_value("curt_worker_deaths_total") or 0.0

    def show_split(self, split: Split, variants: Collection[str]) -> None:
        """Show every variant's share, and its series at 0.

        A series that first appears at 1 hides that from `rate()`.
        """
        self._answering = {name for name in variants if split.share_of(name) > 0}
        for name in variants:
            self.share.labels(name).set(split.share_of(name))
            self.latency.labels(name)
            for outcome in get_args(Ending):
                self.requests.labels(name, outcome)

    def forget(self, variant: str) -> None:
        """Take away the series of a variant that is gone."""
        for metric in vars(self).values():
            if isinstance(metric, Counter | Gauge | Histogram) and metric is not self.rollbacks:
                metric.remove_by_labels({"variant": variant})

    def _sum(self, gauge: Gauge) -> float:
        """Over the variants that answer: a shadow's workers serve nobody."""
        samples = [sample for family in gauge.collect() for sample in family.samples]
        return sum(s.value for s in samples if s.labels["variant"] in self._answering)
