"""Whether the charges that the model gives are still those of its training corpus.

Charges that shift mean other cases than before, or a model that has become biased. The last ones
are held against the corpus by the Jensen-Shannon distance (J. Lin, IEEE Trans. Inf. Theory 37(1),
1991): JSD(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2, in bits, so between 0 and 1; its square root
is a metric (Endres and Schindelin, 2003). Beside it stands what chance alone would give.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from curt.law.statutes import CHARGES
from serve.served import Served

Floats = npt.NDArray[np.float64]

WINDOW = 1000  # charges that are compared
OTHER = "其他"  # stands for unknown charges, so that no text of a client becomes a label
DRAWS = 400
QUANTILE = 0.99
# Below this a difference is real with enough charges, and still too small to act on.
MIN_DISTANCE = 0.1
_SEED = 20_180_101
_CHARGES = TypeAdapter(dict[str, NonNegativeInt])


class MixComparison(NamedTuple):
    """Distances from 0 to 1; `limit` is the 99th percentile of what chance alone gives."""

    distance: float
    limit: float

    @property
    def has_drifted(self) -> bool:
        """Whether the distance is beyond chance and large enough to matter."""
        return self.distance > self.limit and self.distance >= MIN_DISTANCE


class Drift(Collector):
    """Counts the charges of full verdicts and shows at /metrics how far they are from a corpus."""

    def __init__(self, reference: Path, registry: CollectorRegistry) -> None:
        """`reference`: a corpus's corpus.json. Raises ValueError or OSError when it is none."""
        self._reference = read_charges(reference)
        self._recent: collections.deque[str] = collections.deque(maxlen=WINDOW)
        self._counted = Counter(
            "curt_charges", "Charges of full verdicts", ["charge"], registry=registry
        )
        registry.register(self)

    def observe(self, served: Served) -> None:
        """Count an answer; a stand-in's charges are left out, as another model gave them."""
        verdict = served.model_verdict
        for charge in verdict.charges if verdict else ():
            name = charge if charge in CHARGES else OTHER
            self._counted.labels(name).inc()
            self._recent.append(name)

    def compare(self) -> MixComparison | None:
        """The latest charges beside the corpus's; None before the first."""
        return compare(collections.Counter(self._recent.copy()), self._reference)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing: registering must not compute the gauges to learn their names."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Distance, limit and verdict, computed when Prometheus asks; none before a charge."""
        if (found := self.compare()) is None:
            return
        for name, text, value in (
            ("distance", "Jensen-Shannon distance of the latest charges to the corpus's, 0 to 1",
             found.distance),
            ("distance_limit", "Distance that chance alone exceeds once in a hundred", found.limit),
            ("drifted", "1 when the distance is beyond chance and large enough to matter",
             found.has_drifted),
        ):  # fmt: skip
            yield GaugeMetricFamily(f"curt_drift_{name}", text, value=value)


def read_charges(path: Path) -> dict[str, int]:
    """Cases by charge of a corpus's training set. Raises ValueError or OSError."""
    try:
        counts = _CHARGES.validate_python(json.loads(path.read_bytes())["sets"]["train"]["charges"])
    except (ValueError, KeyError, TypeError, ValidationError):
        counts = {}
    if not any(counts.values()):
        raise ValueError(
            f"{path} counts no charges: give the corpus.json that `python -m curt.corpus build` "
            "wrote beside the training cases"
        )
    return counts


def compare(observed: Mapping[str, int], reference: Mapping[str, int]) -> MixComparison | None:
    """Hold observed counts against the reference's; None where nothing was observed."""
    if not observed:
        return None
    names = sorted(observed.keys() | reference.keys())
    seen = np.array([[observed.get(name, 0) for name in names]], np.float64)
    known = np.array([[reference.get(name, 0) for name in names]], np.float64)
    labels = _round(sum(observed.values()))
    by_chance = _distances_by_chance(tuple(filter(None, reference.values())), labels)
    distance = float(jensen_shannon_distance(seen, known)[0])
    return MixComparison(distance, float(np.quantile(by_chance, QUANTILE)))


def jensen_shannon_distance(left: Floats, right: Floats) -> Floats:
    """Square root of the divergence in bits of each row of counts (n, labels) to the other's."""
    p = left / left.sum(axis=1, keepdims=True)
    q = right / right.sum(axis=1, keepdims=True)
    divergence = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    distances: Floats = np.sqrt(np.clip(divergence, 0, 1))
    return distances


def _entropy(shares: Floats) -> Floats:
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy: Floats = -(shares * logs).sum(axis=1)
    return entropy


@lru_cache(maxsize=64)
def _distances_by_chance(reference: tuple[int, ...], labels: int) -> Floats:
    """Distances of two samples of the same mix, of the sizes that are to be compared."""
    rng = np.random.default_rng(_SEED)
    counts = np.array(reference, np.float64)
    shares = counts / counts.sum()
    drawn = rng.multinomial(labels, shares, DRAWS).astype(np.float64)
    again = rng.multinomial(int(counts.sum()), shares, DRAWS).astype(np.float64)
    return jensen_shannon_distance(drawn, again)


def _round(labels: int) -> int:
    """Two leading digits, rounded down: the limit moves little, and draws are kept for reuse."""
    scale = int(10 ** max(0, len(str(labels)) - 2))
    return labels // scale * scale
