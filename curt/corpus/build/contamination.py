"""Training texts that give a test case away, by the long grams that they share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from curt.corpus.build.dedup import check_threshold
from curt.corpus.build.fingerprint import Hashes, hash_grams, normalise_for_comparison

GRAM = 13  # characters that two independent tellings of a case don't share by chance


class HeldOut:
    """13-grams of every test text, sorted, with the text each stands in.

    Memory is 12 bytes a character of test text; a saved one is memory-mapped, so that workers on a
    machine share it.
    """

    def __init__(
        self,
        grams: Hashes,
        owners: npt.NDArray[np.int32],
        sizes: npt.NDArray[np.int64],
        ids: npt.NDArray[np.str_],
    ) -> None:
        self._grams, self._owners, self._sizes, self.ids = grams, owners, sizes, ids

    @classmethod
    def build(cls, texts: Iterable[tuple[str, str]]) -> HeldOut:
        """From (id, text) pairs of the test sets."""
        ids, grams = [], []
        for identifier, text in texts:
            ids.append(identifier)
            grams.append(_grams(text))
        sizes = np.array([len(g) for g in grams], np.int64)
        owners = np.repeat(np.arange(len(ids), dtype=np.int32), sizes)
        together = np.concatenate(grams) if grams else np.zeros(0, np.uint64)
        order = np.argsort(together, kind="stable")
        return cls(together[order], owners[order], sizes, np.array(ids, np.str_))

    def save(self, folder: Path) -> None:
        """Write the arrays into a folder; see `load`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("grams", "owners", "sizes"):
            np.save(folder / f"{name}.npy", getattr(self, f"_{name}"))
        np.save(folder / "ids.npy", self.ids)

    @classmethod
    def load(cls, folder: Path) -> HeldOut:
        """Inverse of `save`, memory-mapped."""
        names = ("grams", "owners", "sizes", "ids")
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names))

    def match(self, text: str, threshold: float = 0.5) -> tuple[str, float] | None:
        """The test text that this one gives away and the share that they have in common.

        A training text is contaminated when it holds at least `threshold` of a test text's
        13-grams, or the test text that share of its own: a fact cut short or told inside a longer
        one counts.
        Raises ValueError on a threshold outside (0, 1].
        """
        check_threshold(threshold)
        grams = _grams(text)
        starts = np.searchsorted(self._grams, grams, "left")
        counts = np.searchsorted(self._grams, grams, "right") - starts
        if not counts.any():
            return None
        # every place in the sorted grams that equals one of the text's
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        owners, shared = np.unique(
            self._owners[np.repeat(starts, counts) + within], return_counts=True
        )
        shares = shared / np.minimum(self._sizes[owners], len(grams))
        best = int(np.argmax(shares))
        if shares[best] < threshold:
            return None
        return str(self.ids[owners[best]]), float(shares[best])


def _grams(text: str) -> Hashes:
    return np.unique(hash_grams(normalise_for_comparison(text), GRAM))
