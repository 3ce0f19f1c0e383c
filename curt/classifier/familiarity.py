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
import re
import unicodedata
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curt.corpus.build.fingerprint import (
    Hashes,
    hash_grams,
    hash_grams_up_to,
    normalise_for_comparison,
)

PRIOR = 5.0  # how many sightings of a character its general frequency weighs against
MAX_CHARACTERS = 3000  # bounds the time of a request; sentences stand at the ends of a fact
ALPHABET = 8000  # characters there may be, for those never seen

# Runs of digits are noise, their length is not; what a number counts is read apart.
_FIGURES = re.compile("[1-9]")

LONGEST_GRAM = 3  # characters

Names = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.uint32]
_HIGH_HALF = np.uint64(32)


@dataclass(frozen=True, slots=True)
class ReadFact:
    """A fact as everything here and in `curt.classifier.model` looks at it, worked out once.

    `text` is from `read_text`, `plain` its letters and digits, and `grams` the hashes of the runs
    of one character, of two and so on up to `LONGEST_GRAM`, as far as there are so many.
    """

    text: str
    plain: str
    grams: tuple[Hashes, ...]


@dataclass(frozen=True, slots=True)
class Familiarity:
    """Counts of characters (`ones`) and pairs (`twos`), by sorted hashes, and the threshold."""

    ones: Names
    one_counts: Counts
    twos: Names
    two_counts: Counts
    total: int
    threshold: float

    def surprise(self, fact: str | ReadFact) -> float:
        """Mean nats a character of a fact costs; 0.0 where it has no two letters or digits."""
        read = read_fact(fact)
        if len(read.plain) < 2:
            return 0.0
        ones = _count(_name(read.grams[0]), self.ones, self.one_counts)
        twos = _count(_name(read.grams[1]), self.twos, self.two_counts)
        alone = (ones[1:] + 0.5) / (self.total + 0.5 * ALPHABET)
        return float(-np.log((twos + PRIOR * alone) / (ones[:-1] + PRIOR)).mean())

    def is_unfamiliar(self, fact: str | ReadFact) -> bool:
        """Whether a fact is more surprising than nearly all of those it was fitted on."""
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


def read_fact(fact: str | ReadFact) -> ReadFact:
    """A raw fact as classifiers look at it; one that was read before as it is."""
    if isinstance(fact, ReadFact):
        return fact
    text = read_text(fact)
    plain = read_letters(text)
    return ReadFact(text, plain, hash_grams_up_to(plain, LONGEST_GRAM) if plain else ())


def read_text(fact: str) -> str:
    """A fact in one width; of a very long one the two ends."""
    return _clip(unicodedata.normalize("NFKC", _clip(fact)))


def read_letters(text: str) -> str:
    """The letters and digits of a text from `read_text`; every figure but 0 is a 0."""
    return _FIGURES.sub("0", normalise_for_comparison(text))


def read_plain(fact: str) -> str:
    """A fact's letters and digits, as grams are taken of them."""
    return read_letters(read_text(fact))


def name_grams(plain: str, size: int) -> Names:
    """32 bits that stand for each run of `size` characters; two share one by a rare accident."""
    return _name(hash_grams(plain, size))


def _name(hashes: Hashes) -> Names:
    return (hashes >> _HIGH_HALF).astype(np.uint32)


def _count(names: Names, known: Names, counts: Counts) -> npt.NDArray[np.float64]:
    places = known.searchsorted(names)
    found = known.take(places, mode="clip") == names
    counted: npt.NDArray[np.float64] = counts.take(places, mode="clip") * found.astype(np.float64)
    return counted


def _clip(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    head = MAX_CHARACTERS * 2 // 3
    return text[:head] + text[head - MAX_CHARACTERS :]
