"""Whether a fact reads like those a classifier was trained on: a small model of its characters.

Probabilities that were fitted on some kind of text say nothing of another. A classifier that saw
generated cases alone calls a real theft something else and is as sure of it as of its own; no
score of its own tells. What does is how surprising the characters are: the mean negative log
likelihood of each character after the one before it,

    p(b | a) = (count(ab) + PRIOR · p(b)) / (count(a) + PRIOR)

over the training facts, p(b) being smoothed by half a count for each of `ALPHABET` characters. A
fact above the threshold, a high quantile of the development facts' own, is unfamiliar. The reverse
does not hold: generated text may be made of common phrases throughout.
"""

from __future__ import annotations

import io
import unicodedata
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curt.corpus.fingerprint import hash_grams, normalise_for_comparison

PRIOR = 5.0  # how many sightings of a character its general frequency weighs against
MAX_CHARACTERS = 3000  # bounds the time of a request; sentences stand at the ends of a fact
ALPHABET = 8000  # characters there may be, for those never seen

# Runs of digits are noise, their length is not; what a number counts is read apart.
_DIGITS = str.maketrans("123456789", "000000000")

Names = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Familiarity:
    """Counts of characters (`ones`) and pairs (`twos`), by sorted hashes, and the threshold."""

    ones: Names
    one_counts: Counts
    twos: Names
    two_counts: Counts
    total: int
    threshold: float

    def surprise(self, fact: str) -> float:
        """Mean nats a character of a raw fact costs; 0.0 where it has no two letters or digits."""
        plain = read_plain(fact)
        if len(plain) < 2:
            return 0.0
        ones = _count(name_grams(plain, 1), self.ones, self.one_counts)
        twos = _count(name_grams(plain, 2), self.twos, self.two_counts)
        alone = (ones[1:] + 0.5) / (self.total + 0.5 * ALPHABET)
        return float(-np.log((twos + PRIOR * alone) / (ones[:-1] + PRIOR)).mean())

    def is_unfamiliar(self, fact: str) -> bool:
        """Whether a raw fact is more surprising than nearly all of those it was fitted on."""
        return self.surprise(fact) > self.threshold

    def pack(self) -> bytes:
        """A compressed npz without pickles; `read` takes it back."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            ones=self.ones,
            one_counts=self.one_counts,
            twos=self.twos,
            two_counts=self.two_counts,
            total=np.int64(self.total),
            threshold=np.float64(self.threshold),
        )
        return buffer.getvalue()

    @classmethod
    def read(cls, data: bytes) -> Familiarity:
        """Inverse of `pack`. Raises ValueError or KeyError on other bytes."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return cls(
                arrays["ones"],
                arrays["one_counts"],
                arrays["twos"],
                arrays["two_counts"],
                int(arrays["total"]),
                float(arrays["threshold"]),
            )


def read_text(fact: str) -> str:
    """A fact in one width; of a very long one the two ends."""
    return _clip(unicodedata.normalize("NFKC", _clip(fact)))


def read_letters(text: str) -> str:
    """The letters and digits of a text from `read_text`; every figure but 0 is a 0."""
    return normalise_for_comparison(text).translate(_DIGITS)


def read_plain(fact: str) -> str:
    """A fact's letters and digits, as grams are taken of them."""
    return read_letters(read_text(fact))


def name_grams(plain: str, size: int) -> Names:
    """32 bits that stand for each run of `size` characters; two share one by a rare accident."""
    return (hash_grams(plain, size) >> np.uint64(32)).astype(np.uint32)


def _count(names: Names, known: Names, counts: Counts) -> npt.NDArray[np.float64]:
    places = np.minimum(np.searchsorted(known, names), len(known) - 1)
    return np.where(known[places] == names, counts[places], 0).astype(np.float64)


def _clip(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    head = MAX_CHARACTERS * 2 // 3
    return text[:head] + text[head - MAX_CHARACTERS :]
