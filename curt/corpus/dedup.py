"""Duplicates and near-duplicates among facts, and contamination of training facts by test facts.

Facts are compared without blanks, punctuation and the marks that stand for masked names, as sets of
5-character shingles. MinHash with locality-sensitive hashing (Broder, 1997; the `rensa` library)
finds candidates, and their signatures tell how alike they are.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from rensa import RMinHash, RMinHashLSH

SHINGLE = 5  # characters
PERMUTATIONS = 128
BANDS = 32  # four rows each: pairs of similarity .6 meet with 99%
SEED = 7
CONTAMINATION_GRAM = 13  # characters that two independent tellings of a case don't share by chance

_MASKS = frozenset("某×XxＸ")


@dataclass(frozen=True, slots=True)
class Match:
    """A text that is dropped, the one it repeats, and how alike they are."""

    id: str
    of: str
    similarity: float
    rule: str


def normalise_for_comparison(text: str) -> str:
    """Letters and digits alone, in one width; masked names left out."""
    folded = unicodedata.normalize("NFKC", text)
    return "".join(c for c in folded if c.isalnum() and c not in _MASKS).lower()


class DuplicateFilter:
    """Tells which texts repeat an earlier one; the first is kept.

    `threshold` is the Jaccard similarity of shingles from which two texts are one. Memory is about
    a kilobyte a kept text, whatever its length. Raises ValueError on a threshold outside (0, 1].
    """

    def __init__(self, threshold: float = 0.6) -> None:
        self.threshold = _checked(threshold)
        self._index = RMinHashLSH(threshold, PERMUTATIONS, BANDS)
        self._exact: dict[bytes, str] = {}
        self._kept: list[tuple[str, RMinHash]] = []

    def match(self, identifier: str, text: str) -> Match | None:
        """The earlier text that this one repeats; None, and it is remembered, without one."""
        plain = normalise_for_comparison(text)
        digest = hashlib.sha256(plain.encode()).digest()
        if digest in self._exact:
            return Match(identifier, self._exact[digest], 1.0, "exact duplicate")
        signature = _sign(plain)
        candidates = (self._kept[key] for key in self._index.query(signature))
        near = [(signature.jaccard(other), of) for of, other in candidates]
        similarity, of = max(near, default=(0.0, ""))
        if similarity >= self.threshold:
            return Match(identifier, of, similarity, "near duplicate")
        self._exact[digest] = identifier
        self._index.insert(len(self._kept), signature)
        self._kept.append((identifier, signature))
        return None


class ContaminationFilter:
    """Tells which training texts give a test case away, from (id, text) pairs of the test sets.

    A training text is contaminated when it holds at least `threshold` of a test text's 13-grams, or
    the test text that share of its own: a fact cut short or told inside a longer one counts.
    Raises ValueError on a threshold outside (0, 1].
    """

    def __init__(self, test: Iterable[tuple[str, str]], threshold: float = 0.5) -> None:
        self.threshold = _checked(threshold)
        self._owners: dict[int, list[str]] = {}
        self._sizes: dict[str, int] = {}
        for identifier, text in test:
            grams = _grams(normalise_for_comparison(text))
            self._sizes[identifier] = len(grams)
            for gram in grams:
                self._owners.setdefault(gram, []).append(identifier)

    def match(self, identifier: str, text: str) -> Match | None:
        """The test text that this one gives away, the most contained; None without one."""
        grams = _grams(normalise_for_comparison(text))
        shared = Counter(owner for gram in grams for owner in self._owners.get(gram, ()))
        shares = {of: count / min(self._sizes[of], len(grams)) for of, count in shared.items()}
        of = max(shares, key=lambda owner: shares[owner], default="")
        if not of or shares[of] < self.threshold:
            return None
        return Match(identifier, of, shares[of], "test case")


def _checked(threshold: float) -> float:
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold}: use more than 0 and at most 1")
    return threshold


def _sign(plain: str) -> RMinHash:
    signature = RMinHash(PERMUTATIONS, SEED)
    last = max(1, len(plain) - SHINGLE + 1)
    signature.update([plain[i : i + SHINGLE] for i in range(last)])
    return signature


def _grams(plain: str) -> set[int]:
    """Hashes of the 13-grams; a shorter text is one gram."""
    last = max(1, len(plain) - CONTAMINATION_GRAM + 1)
    return {hash(plain[i : i + CONTAMINATION_GRAM]) for i in range(last)}
