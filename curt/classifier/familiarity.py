"""Whether a fact reads like those a classifier was trained on, by its characters and formulas.

Probabilities that were fitted on one kind of text do not hold for another: a classifier that was
trained on generated cases alone misreads a real theft and is as sure of it as of a generated one.
None of its own scores shows that. How surprising the characters are does: the mean negative log
likelihood of each character after the one before it,

    p(b | a) = (count(ab) + PRIOR · p(b)) / (count(a) + PRIOR)

with counts over the training facts, p(b) being smoothed by half a count for each of `ALPHABET`
characters. A fact is unfamiliar above a threshold, a high quantile of the development facts.

Other text may consist of common phrases too: a civil judgment shares most of its words with a
criminal one. What it lacks is the formulas of the genre, runs of three characters that many
training facts hold (被告人, 公诉机关 …). A fact without any of them has a lower threshold; it is
not unfamiliar outright, for people also type facts without formulas.

Digits are noise to all this, so figures have bounds of their own: the least and the greatest of
what training facts told as their largest figure of each unit.
"""

from __future__ import annotations

import io
import re
import unicodedata
from dataclasses import asdict, dataclass, field, fields

import numpy as np
import numpy.typing as npt

from curt.corpus.build.fingerprint import (
    Hashes,
    hash_grams,
    hash_grams_up_to,
    normalise_for_comparison,
)
from curt.dialogue import normalise_fact
from curt.law.figures import MEASURES, normalise_figures, read_figures, write_figure

PRIOR = 5.0  # weight of a character's general frequency, in sightings
MAX_CHARACTERS = 3000  # bounds the time of a request; what matters stands at a fact's ends
ALPHABET = 8000  # characters that are possible, so that unseen ones have a probability

# Which digits stand in a number is noise, how many is not; amounts are features of their own.
_FIGURES = re.compile("[1-9]")

LONGEST_GRAM = 3  # characters

Names = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.uint32]
Bounds = npt.NDArray[np.float64]
_HIGH_HALF = np.uint64(32)
_NEWER = ("formulas", "bare_threshold", "least", "greatest")  # that older files lack


@dataclass(frozen=True, slots=True)
class ReadFact:
    """A fact prepared once for this module and `curt.classifier.model`.

    `text` is from `read_text`, `plain` its letters and digits, and `grams` the hashes of its runs
    of one character, of two and so on up to `LONGEST_GRAM` or the length of the fact.
    """

    text: str
    plain: str
    grams: tuple[Hashes, ...]


@dataclass(frozen=True, slots=True)
class Familiarity:
    """Counts of characters (`ones`) and pairs (`twos`), by sorted hashes, and the thresholds.

    `formulas` are sorted names of runs of `LONGEST_GRAM` characters; a fact without any of them has
    `bare_threshold`. `least` and `greatest` bound the largest figure of each of `MEASURES`, NaN
    where no training fact has one. Files made before there were formulas or bounds hold none.
    """

    ones: Names
    one_counts: Counts
    twos: Names
    two_counts: Counts
    total: int
    threshold: float
    formulas: Names = field(default_factory=lambda: np.zeros(0, np.uint32))
    bare_threshold: float = np.inf
    least: Bounds = field(default_factory=lambda: np.zeros(0))
    greatest: Bounds = field(default_factory=lambda: np.zeros(0))

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
        read = read_fact(fact)
        surprise = self.surprise(read)
        if surprise > self.threshold:
            return True
        return surprise > self.bare_threshold and not self.holds_formula(read)

    def holds_formula(self, fact: str | ReadFact) -> bool:
        """Whether a fact holds one of the formulas of the training facts."""
        read = read_fact(fact)
        if not len(self.formulas) or len(read.grams) < LONGEST_GRAM:
            return False
        names = _name(read.grams[LONGEST_GRAM - 1])
        places = self.formulas.searchsorted(names)
        return bool((self.formulas.take(places, mode="clip") == names).any())

    def figures_beyond(self, fact: str | ReadFact) -> list[str]:
        """The largest figures of a fact outside what the training facts told: 80000000元."""
        largest = largest_figures(read_fact(fact).text)
        bounds = zip(MEASURES, self.least, self.greatest, strict=False)
        return [
            f"{write_figure(largest[unit])}{unit}"
            for unit, low, high in bounds
            if unit in largest and not low <= largest[unit] <= high
        ]

    def pack(self) -> bytes:
        """A compressed npz without pickles; `read` takes it back."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **asdict(self))
        return buffer.getvalue()

    @classmethod
    def read(cls, data: bytes) -> Familiarity:
        """Inverse of `pack`. Raises ValueError or KeyError on other bytes."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            values = {
                each.name: arrays[each.name]
                for each in fields(cls)
                if each.name in arrays or each.name not in _NEWER
            }
        return cls(**{name: each if each.ndim else each.item() for name, each in values.items()})


def read_fact(fact: str | ReadFact) -> ReadFact:
    """Prepare a raw fact; one that is prepared already is returned as it is."""
    if isinstance(fact, ReadFact):
        return fact
    text = read_text(fact)
    plain = read_letters(text)
    return ReadFact(text, plain, hash_grams_up_to(plain, LONGEST_GRAM) if plain else ())


def read_text(fact: str) -> str:
    """A fact with half-width characters and plain figures; of a very long one only the two ends."""
    plain = unicodedata.normalize("NFKC", normalise_fact(_clip(fact)))
    return _clip(normalise_figures(plain))


def largest_figures(text: str) -> dict[str, float]:
    """The largest figure of each of `MEASURES` that stands in a text from `read_text`."""
    largest: dict[str, float] = {}
    for figure in read_figures(text):
        if figure.unit in MEASURES:
            largest[figure.unit] = max(figure.value, largest.get(figure.unit, 0.0))
    return largest


def read_letters(text: str) -> str:
    """The letters and digits of a text from `read_text`, with every digit replaced by 0."""
    return _FIGURES.sub("0", normalise_for_comparison(text))


def read_plain(fact: str) -> str:
    """The `plain` text of a raw fact, whose grams are counted."""
    return read_letters(read_text(fact))


def name_grams(plain: str, size: int) -> Names:
    """A 32-bit name for each run of `size` characters; collisions are rare."""
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
