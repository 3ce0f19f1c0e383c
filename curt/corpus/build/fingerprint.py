"""What two tellings of a case are compared by: their grams of characters, hashed.

Blanks, punctuation and the marks that stand for masked names are left out first. Hashes are the
same in every process and on every machine, so that shards of a corpus may be read anywhere.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from rensa import RMinHash

Hashes = npt.NDArray[np.uint64]
Signatures = npt.NDArray[np.uint32]

SHINGLE = 5  # characters
PERMUTATIONS = 128
SEED = 7

_LEFT_OUT = re.compile(r"[\W_某×XxＸ]+")  # all but letters and digits, and the masks
_FIGURE = re.compile(r"(?:[0-9]+|[零〇一二三四五六七八九十百千万亿]{2,}).?")  # with its unit
_BASE = np.uint64(0x9E3779B97F4A7C15)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def normalise_for_comparison(text: str) -> str:
    """Letters and digits alone, in one width; masked names left out."""
    return _LEFT_OUT.sub("", unicodedata.normalize("NFKC", text)).lower()


def digest_text(plain: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.sha256(plain.encode()).digest()[:16]


def hash_grams(plain: str, size: int) -> Hashes:
    """A hash for each run of `size` characters; a shorter text is one gram.

    A polynomial over the code points, mixed by the finaliser of SplitMix64 (Steele, Lea and Flood,
    2014). Shape (max(1, characters - size + 1),).
    """
    codes = _codes_of(plain)
    size = min(size, len(codes))
    count = len(codes) - size + 1
    hashes = np.full(count, size, np.uint64)
    for offset in range(size):
        hashes = hashes * _BASE + codes[offset : offset + count]
    return _mix(hashes)


def hash_grams_up_to(plain: str, largest: int) -> tuple[Hashes, ...]:
    """`hash_grams` for the sizes 1, 2 … `largest`, as far as the text has so many characters.

    Each size is worked out from the one before it, and all are mixed at once.
    """
    codes = _codes_of(plain)
    sums = [codes]
    for size in range(2, min(largest, len(codes)) + 1):
        sums.append(sums[-1][:-1] * _BASE + codes[size - 1 :])
    mixed = _mix(np.concatenate([each + _first_term(i) for i, each in enumerate(sums, 1)]))
    ends = list(itertools.accumulate(map(len, sums)))
    return tuple(mixed[low:high] for low, high in zip([0, *ends], ends, strict=False))


@cache
def _first_term(size: int) -> np.uint64:
    """The size stands in front of the polynomial: size · BASE^size."""
    return np.uint64(size * int(_BASE) ** size % 2**64)


def _codes_of(plain: str) -> Hashes:
    return np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)


def _mix(hashes: Hashes) -> Hashes:
    hashes = (hashes ^ (hashes >> _SHIFTS[0])) * _FACTORS[0]
    hashes = (hashes ^ (hashes >> _SHIFTS[1])) * _FACTORS[1]
    return hashes ^ (hashes >> _SHIFTS[2])


def sign_texts(plain: Sequence[str]) -> Signatures:
    """MinHash signatures (Broder, 1997; the `rensa` library) of the texts' sets of 5-grams.

    Shape (texts, 128); the share of equal entries estimates the Jaccard similarity of two texts.
    """
    if not plain:
        return np.zeros((0, PERMUTATIONS), np.uint32)
    grams = [hash_grams(text, SHINGLE) for text in plain]
    ends = np.cumsum([0, *map(len, grams)], dtype=np.uint64)
    rows = RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate(grams), ends, PERMUTATIONS, SEED
    ).to_rows()
    return np.asarray(rows, np.uint32)


def hash_figures(plain: str) -> Hashes:
    """Hashes of the dates, amounts and counts with their units (6月, 23日), each once, sorted."""
    figures = {digest_text(figure)[:8] for figure in _FIGURE.findall(plain)}
    return np.unique(np.frombuffer(b"".join(sorted(figures)), np.uint64))


def compare_figures(first: Hashes, second: Hashes) -> tuple[int, float]:
    """How many figures two sets share, and their Jaccard similarity; 0 where both are empty."""
    together = len(np.union1d(first, second))
    shared = len(first) + len(second) - together
    return shared, shared / together if together else 0.0
