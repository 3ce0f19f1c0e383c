"""What the term of a charge starts from, read out of a fact: quantities, or a grade of harm.

Some charges are graded by quantity (8600+4700=13300元), others by what came of the act (轻伤二级).
Which of the figures of a fact count is judged by the characters around each; a grade is judged by
the runs of characters that tell the grades of the charge apart.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from curt.law.figures import Figure, read_figures, write_figure

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

HASHES = 1 << 14
LEFT, RIGHT = 14, 8  # characters around a figure
MOST_PARTS = 6
CLASSES = ("other", "part", "total")
"""What a figure may be: beside the matter, a quantity that counts, the told sum of several."""
_OTHER, _PART, _TOTAL = range(3)


@dataclass(frozen=True, slots=True)
class Grades:
    """The grades of one charge: a linear score for each over the hints that a text holds."""

    names: tuple[str, ...]
    hints: tuple[str, ...]
    """Runs of characters."""
    weights: Floats
    """Intercepts first: (1 + hints, grades)."""

    def choose(self, text: str) -> str:
        """The grade that scores best."""
        scores = self.weights[0] + sum(
            weights
            for hint, weights in zip(self.hints, self.weights[1:], strict=True)
            if hint in text
        )
        return self.names[int(scores.argmax())]


@dataclass(frozen=True, slots=True)
class HarmReader:
    """Reads the harm of a charge; charges of neither `units` nor `grades` have none that it knows.

    `weights` score a figure's hashed features for each of `CLASSES`: (`HASHES`, 3).
    """

    units: Mapping[str, str] = field(default_factory=dict)
    weights: Floats = field(default_factory=lambda: np.zeros((HASHES, 3), np.float32))
    grades: Mapping[str, Grades] = field(default_factory=dict)

    def read(self, text: str, charge: str) -> str:
        """The harm as `Case.harm` tells it, of a text of `familiarity.read_text`; may be empty."""
        if unit := self.units.get(charge):
            chosen = self._choose_figures(text, unit)
            return write_sum(chosen) + unit if chosen else ""
        grades = self.grades.get(charge)
        return grades.choose(text) if grades else ""

    def _choose_figures(self, text: str, unit: str) -> list[float]:
        figures = [figure for figure in read_figures(text) if figure.unit == unit]
        if not figures:
            return []
        scores = np.array(
            [self.weights[hash_figure(text, figures, i)].sum(axis=0) for i in range(len(figures))]
        )
        kinds = scores.argmax(axis=1)
        values = [figure.value for figure in figures]
        parts = list(dict.fromkeys(v for v, kind in zip(values, kinds, strict=True) if kind))
        totals = [v for v, kind in zip(values, kinds, strict=True) if kind == _TOTAL]
        if totals:
            return [totals[-1]]
        if not parts:  # a charge that is graded by quantity has one
            return [values[int((scores[:, _PART] - scores[:, _OTHER]).argmax())]]
        largest = max(parts)
        is_sum = len(parts) > 2 and abs(2 * largest - sum(parts)) < 1e-6
        return [largest] if is_sum or len(parts) > MOST_PARTS else parts

    def pack(self) -> bytes:
        """A compressed npz without pickles; `unpack` takes it back."""
        arrays: dict[str, Any] = {
            "charges": np.array(list(self.units) or [""]),
            "units": np.array(list(self.units.values()) or [""]),
            "weights": self.weights.astype(np.float16),
            "graded": np.array(list(self.grades) or [""]),
        }
        for place, one in enumerate(self.grades.values()):
            arrays[f"names_{place}"] = np.array(one.names)
            arrays[f"hints_{place}"] = np.array(one.hints or [""])
            arrays[f"weights_{place}"] = one.weights.astype(np.float16)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> HarmReader:
        """Inverse of `pack`. Raises ValueError or KeyError on other bytes."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            charges, units, graded = (
                [str(name) for name in arrays[key] if name]
                for key in ("charges", "units", "graded")
            )
            grades = {
                charge: Grades(
                    tuple(str(name) for name in arrays[f"names_{place}"]),
                    tuple(str(hint) for hint in arrays[f"hints_{place}"] if hint),
                    arrays[f"weights_{place}"].astype(np.float32),
                )
                for place, charge in enumerate(graded)
            }
            weights = arrays["weights"].astype(np.float32)
        return cls(dict(zip(charges, units, strict=True)), weights, grades)


def hash_figure(text: str, figures: Sequence[Figure], place: int) -> Integers:
    """The hashed features of one of the figures, all of one unit, that stand in a text."""
    names = (crc32(name.encode()) % HASHES for name in _describe(text, figures, place))
    return np.fromiter(names, np.int64)


def write_sum(values: Sequence[float]) -> str:
    """7600+4100=11700, or one value by itself."""
    told = "+".join(map(write_figure, values))
    return f"{told}={write_figure(round(sum(values), 6))}" if len(values) > 1 else told


def split_sum(harm: str, unit: str) -> tuple[list[float], float] | None:
    """The parts and the sum of a harm written by `write_sum` and its unit; None for a grade."""
    if not unit or not harm.endswith(unit):
        return None
    told, _, total = harm.removesuffix(unit).rpartition("=")
    parts = [float(part) for part in (told or total).split("+")]
    return parts, float(total)


def _describe(text: str, figures: Sequence[Figure], place: int) -> Iterator[str]:
    figure = figures[place]
    left = text[max(0, figure.start - LEFT) : figure.start]
    right = text[figure.end : figure.end + RIGHT]
    yield "bias"
    yield f"unit {figure.unit}"
    for size in range(1, 7):
        yield f"l{size} {left[-size:]}"
        if size < 5:
            yield f"r{size} {right[:size]}"
    yield from _grams("L", left)
    yield from _grams("R", right)
    clause = max(text.rfind(mark, 0, figure.start) for mark in "，。；：")
    yield from _grams("C", text[clause + 1 : figure.start][-LEFT:])
    sentence = max(text.rfind(mark, 0, figure.start) for mark in "。；")
    yield from _grams("S", text[sentence + 1 : figure.start][:6])
    values = [one.value for one in figures]
    before = values[:place]
    sums = accumulate(reversed(before))
    yield f"sum {any(abs(total - figure.value) < 1e-6 for total in list(sums)[1:])}"
    yield f"largest {figure.value == max(values)}"
    yield f"first {place == 0} of {min(len(values), 4)}"
    yield f"again {figure.value in before}"
    yield f"place {10 * figure.start // max(1, len(text))}"


def _grams(side: str, text: str) -> Iterable[str]:
    for size in (2, 3):
        for start in range(len(text) - size + 1):
            yield f"{side}{text[start : start + size]}"
