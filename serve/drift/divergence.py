"""How far two mixes of labels lie apart, and how far chance alone would have put them.

J. Lin, "Divergence measures based on the Shannon entropy", IEEE Trans. Inf. Theory 37(1), 1991:
JSD(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2, here in bits, so between 0 and 1; its square root
is a metric (Endres and Schindelin, 2003).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DRAWS = 400
QUANTILE = 0.99
# Below this a difference is real with enough requests, and still too small to act on.
MIN_DISTANCE = 0.1
_SEED = 20_180_101


@dataclass(frozen=True, slots=True)
class MixComparison:
    """Distances run from 0 to 1.

    `chance` is the mean and `limit` the 99th percentile of the distance between the reference
    and as many labels drawn from it, the reference's own sampling included.
    """

    labels: int
    distance: float
    chance: float
    limit: float

    @property
    def has_drifted(self) -> bool:
        """Whether the distance is beyond chance and large enough to matter."""
        return self.distance > self.limit and self.distance >= MIN_DISTANCE

    @property
    def state(self) -> str:
        """In words: as trained, slight shift (beyond chance, too small to act on), drifted."""
        if self.has_drifted:
            return "drifted"
        return "slight shift" if self.distance > self.limit else "as trained"


def compare(observed: Mapping[str, int], reference: Mapping[str, int]) -> MixComparison | None:
    """Hold observed counts against the reference's; None where either is empty."""
    names = sorted(observed.keys() | reference.keys())
    seen = np.array([observed.get(name, 0) for name in names], np.float64)
    known = np.array([reference.get(name, 0) for name in names], np.float64)
    if not seen.sum() or not known.sum():
        return None
    labels = int(seen.sum())
    by_chance = _distances_by_chance(tuple(int(count) for count in known if count), _round(labels))
    return MixComparison(
        labels,
        distance=float(jensen_shannon_distance(seen[None], known[None])[0]),
        chance=float(by_chance.mean()),
        limit=float(np.quantile(by_chance, QUANTILE)),
    )


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
