"""What became of every record of a build, over the files that workers wrote.

A few bytes an outcome stay in memory; everything else is read from the files when it is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("test", "dev", "train")
"""In the order in which they are filtered: training cases must not hold what the others do."""
READING = "reading"
"""Where records are counted that belong to no set yet."""
KEPT, DROPPED, QUARANTINED = range(3)
_STATUS = {"kept": KEPT, "dropped": DROPPED, "quarantined": QUARANTINED}
_SPLITS = (READING, *SPLITS)
ROWS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Removal:
    """A case dropped because of another; both by their place in the table."""

    index: int
    rule: str
    similarity: float
    of: int


class RecordTable:
    """Outcomes of all shards, numbered in order."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        self.dropped: dict[str, Counter[str]] = {name: Counter() for name in _SPLITS}
        self.quarantined: dict[str, Counter[str]] = {name: Counter() for name in _SPLITS}
        self.records = 0
        status, split, group, ends = [], [], [], [0]
        for file in self.files:
            lines = set()
            for row in _rows(file, ("status", "split", "group", "reason", "source", "line")):
                name = row["split"] or READING
                status.append(_STATUS[row["status"]])
                split.append(_SPLITS.index(name))
                group.append(row["group"] or 0)
                lines.add((row["source"], row["line"]))
                if status[-1] == DROPPED:
                    self.dropped[name][row["reason"]] += 1
                elif status[-1] == QUARANTINED:
                    self.quarantined[name][row["reason"].partition(":")[0]] += 1
            self.records += len(lines)
            ends.append(len(status))
        self._ends = ends
        self.status = np.array(status, np.uint8)
        self._split = np.array(split, np.uint8)
        self.group = np.array(group, np.uint64)
        self.removals: list[Removal] = []

    def kept(self, split: str) -> npt.NDArray[np.int64]:
        """Places of a set's cases that are still kept, ascending."""
        return np.flatnonzero((self._split == _SPLITS.index(split)) & (self.status == KEPT))

    def drop(self, removal: Removal) -> None:
        """Drop a case that is still kept."""
        assert self.status[removal.index] == KEPT
        self.status[removal.index] = DROPPED
        self.dropped[_SPLITS[self._split[removal.index]]][removal.rule] += 1
        self.removals.append(removal)

    def split_name(self, index: int) -> str:
        """Set of an outcome."""
        name: str = _SPLITS[self._split[index]]
        return name

    def rows(
        self, columns: Sequence[str], wanted: Collection[int] | npt.NDArray[np.int64]
    ) -> Iterator[dict[str, Any]]:
        """Rows with these columns at the wanted places, in order, a file in memory at a time."""
        places = np.unique(np.fromiter(wanted, np.int64, len(wanted)))
        for number, file in enumerate(self.files):
            first, last = self._ends[number : number + 2]
            inside = places[np.searchsorted(places, first) : np.searchsorted(places, last)] - first
            if len(inside):
                yield from _rows(file, columns, inside)

    def place(self, file: int, row: int) -> int:
        """Place in the table of a row of a file."""
        return self._ends[file] + row

    def count(self) -> dict[str, Any]:
        """Counts by set and reason; asserts that every outcome is in exactly one of them."""
        kept = {split: len(self.kept(split)) for split in SPLITS}
        dropped = {name: dict(counts) for name, counts in self.dropped.items() if counts}
        set_aside = {name: dict(counts) for name, counts in self.quarantined.items() if counts}
        total = sum(kept.values())
        total += sum(sum(counts.values()) for counts in dropped.values())
        total += sum(sum(counts.values()) for counts in set_aside.values())
        assert total == len(self.status), (total, len(self.status))
        return {
            "records": self.records,
            "outcomes": len(self.status),
            "counts": kept,
            "dropped": dropped,
            "quarantined": set_aside,
        }


def _rows(
    file: Path, columns: Sequence[str], wanted: npt.NDArray[np.int64] | None = None
) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    start = 0
    for batch in pq.ParquetFile(file).iter_batches(ROWS_AT_ONCE, columns=list(columns)):
        if wanted is not None:
            low, high = np.searchsorted(wanted, (start, start + len(batch)))
            start += len(batch)
            batch = batch.take(wanted[low:high] - (start - len(batch)))
        yield from batch.to_pylist()
