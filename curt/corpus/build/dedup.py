"""Duplicates and near-duplicates among texts, from their MinHash signatures.

Locality-sensitive hashing in bands finds candidates by sorting, a band at a time, so that memory
holds a few numbers a text, however long the texts are; signatures may lie in a memory-mapped file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curt.corpus.build.fingerprint import PERMUTATIONS, Hashes, Signatures

BANDS = 32  # four rows each: pairs of similarity .6 meet with 99%
NEIGHBOURS = 16  # of a bucket's earlier members; its first is always compared
PAIRS_AT_ONCE = 1 << 14

_ROWS = PERMUTATIONS // BANDS
_MIX = np.uint64(0xD6E8FEB86659FD93)
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A text that repeats an earlier one; both by their place in the order given."""

    index: int
    of: int
    similarity: float


def check_threshold(threshold: float) -> float:
    """The threshold. Raises ValueError outside (0, 1]."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold}: use more than 0 and at most 1")
    return threshold


def find_repeats(
    signatures: Signatures, threshold: float, groups: Hashes | None = None
) -> list[Repeat]:
    """Texts to drop, in order, each with the kept text that it is most like.

    A text is dropped when a *kept* earlier one is at least `threshold` alike (Jaccard of shingles),
    so that no chain of small changes swallows what is far from the first. Texts of the same
    `groups` number other than 0 are never repeats of each other. Raises ValueError on a threshold
    outside (0, 1].
    """
    check_threshold(threshold)
    found = [
        _alike(signatures, later, earlier, threshold, groups)
        for later, earlier in _candidates(signatures)
    ]
    if not found:
        return []
    packed, similarities = (np.concatenate(part) for part in zip(*found, strict=True))
    packed, first = np.unique(packed, return_index=True)
    return keep_first(packed // len(signatures), packed % len(signatures), similarities[first])


def keep_first(
    later: Indices, earlier: Indices, similarities: npt.NDArray[np.float32]
) -> list[Repeat]:
    """Decide pair by pair, `later` ascending, which texts repeat a kept one."""
    dropped: dict[int, Repeat] = {}
    rows = zip(later.tolist(), earlier.tolist(), similarities.tolist(), strict=True)
    for index, of, similarity in rows:
        if of in dropped:
            continue
        known = dropped.get(index)
        if known is None or similarity > known.similarity:
            dropped[index] = Repeat(index, of, similarity)
    return list(dropped.values())


def _candidates(signatures: Signatures) -> Iterator[tuple[Indices, Indices]]:
    """Pairs (later, earlier) that share a band, some at a time and some more than once."""
    for band in range(BANDS):
        rows = np.asarray(signatures[:, band * _ROWS : (band + 1) * _ROWS], np.uint64)
        keys = np.zeros(len(rows), np.uint64)
        for column in rows.T:
            keys = (keys ^ column) * _MIX
            keys ^= keys >> np.uint64(32)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else order
        sizes = np.diff(np.r_[starts, len(keys)])
        places = np.arange(len(keys)) - np.repeat(starts, sizes)
        far = np.flatnonzero(places > NEIGHBOURS)
        if len(far):
            yield from _chunks(order[far], order[far - places[far]])
        for distance in range(1, min(NEIGHBOURS, int(sizes.max(initial=1)) - 1) + 1):
            near = np.flatnonzero(places >= distance)
            yield from _chunks(order[near], order[near - distance])


def _chunks(later: Indices, earlier: Indices) -> Iterator[tuple[Indices, Indices]]:
    for start in range(0, len(later), PAIRS_AT_ONCE):
        stop = start + PAIRS_AT_ONCE
        yield later[start:stop], earlier[start:stop]


def _alike(
    signatures: Signatures,
    later: Indices,
    earlier: Indices,
    threshold: float,
    groups: Hashes | None,
) -> tuple[Indices, npt.NDArray[np.float32]]:
    """Pairs that are alike enough, as later * texts + earlier, with their similarity."""
    if groups is not None:
        apart = (groups[later] != groups[earlier]) | (groups[later] == 0)
        later, earlier = later[apart], earlier[apart]
    equal = signatures[later] == signatures[earlier]
    similarity = np.asarray(equal.mean(axis=1), np.float32)
    close = similarity >= np.float32(threshold)
    return later[close] * len(signatures) + earlier[close], similarity[close]
