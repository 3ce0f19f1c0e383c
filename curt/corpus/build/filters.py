"""The filters that look at many cases at once: repeats within a set, and test cases in training.

Each reads the table of records (`curt.corpus.build.record_table`) and drops from it; what shards
can do apart runs on the build's backend.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from curt.corpus.build.contamination import HeldOut
from curt.corpus.build.dedup import find_repeats
from curt.corpus.build.embeddings import (
    FIT_TEXTS,
    Vectors,
    find_alike,
    find_nearest,
    fit_embedder,
    load_embedder,
)
from curt.corpus.build.fingerprint import PERMUTATIONS, compare_figures, normalise_for_comparison
from curt.corpus.build.parallel import Backend, map_shards
from curt.corpus.build.record_table import KEPT, SPLITS, RecordTable, Removal
from curt.files import whole_file, write_atomic

LEAST_SHARED_FIGURES = 4
LEAST_SHARE_OF_FIGURES = 0.5
"""Of dates, amounts and counts: what two tellings of one case have in common at least."""
CHUNK = 1024  # training cases against all test cases at once


@dataclass(frozen=True, slots=True)
class BuildContext:
    """Folder of the intermediate files, and what shards run on."""

    folder: Path
    backend: Backend
    workers: int


@dataclass(frozen=True, slots=True)
class ContaminationTask:
    """Training cases of one prepared file against the saved index of test cases."""

    prepared: Path
    index: Path
    threshold: float
    out: Path


@dataclass(frozen=True, slots=True)
class EmbeddingTask:
    """Vectors for the kept cases of one prepared file."""

    prepared: Path
    model: str
    folder: Path
    out: Path


def drop_repeats(table: RecordTable, split: str, threshold: float, context: BuildContext) -> None:
    """Exact and near duplicates within a set: the first stays."""
    places = table.kept(split)
    if not len(places):
        return
    path = context.folder / f"{split}.signatures"
    with open(path, "wb") as file:
        for row in table.rows(["signature"], places):
            file.write(row["signature"])
    signatures = np.memmap(path, np.uint32, "r").reshape(len(places), PERMUTATIONS)
    found = find_repeats(signatures, threshold, table.group[places])
    pairs = [(int(places[r.index]), int(places[r.of]), r.similarity) for r in found]
    wanted = {place for later, earlier, _ in pairs for place in (later, earlier)}
    digests = dict(zip(sorted(wanted), table.rows(["digest"], wanted), strict=True))
    for later, earlier, similarity in pairs:
        exact = digests[later] == digests[earlier]
        rule = "exact duplicate" if exact else "near duplicate"
        table.drop(Removal(later, rule, similarity, earlier))
    path.unlink()


def drop_contaminated(table: RecordTable, threshold: float, context: BuildContext) -> None:
    """Training cases that share long grams with a case of test or dev."""
    held_out = _held_out_places(table)
    if not len(held_out):
        return
    texts = (
        (str(place), json.loads(row["case"])["fact"])
        for place, row in zip(held_out.tolist(), table.rows(["case"], held_out), strict=True)
    )
    index = context.folder / "held-out"
    HeldOut.build(texts).save(index)
    tasks = [
        ContaminationTask(file, index, threshold, context.folder / f"{file.stem}.contaminated.json")
        for file in table.files
    ]
    done = map_shards(
        match_contaminated,
        tasks,
        backend=context.backend,
        workers=context.workers,
        label="contamination",
    )
    for number, path in enumerate(done):
        for row, of, share in json.loads(path.read_text(encoding="utf-8")):
            place = table.place(number, row)
            if table.status[place] == KEPT:  # no repeat already
                table.drop(Removal(place, "test case", share, int(of)))


def match_contaminated(task: ContaminationTask) -> Path:
    """Write [row, place of the test case, share] for each contaminated training case."""
    if not task.out.is_file():
        import pyarrow.parquet as pq

        held_out = HeldOut.load(task.index)
        found = []
        table = pq.read_table(task.prepared, columns=["split", "status", "case"])
        for number, row in enumerate(table.to_pylist()):
            if (row["split"], row["status"]) != ("train", "kept"):
                continue
            match = held_out.match(json.loads(row["case"])["fact"], task.threshold)
            if match is not None:
                found.append([number, int(match[0]), match[1]])
        write_atomic(task.out, json.dumps(found))
    return task.out


def drop_alike(table: RecordTable, model: str, threshold: float, context: BuildContext) -> None:
    """Cases that tell another in other words, by their vectors and the figures in both."""
    sample = _sample(np.concatenate([table.kept(split) for split in SPLITS]))
    texts = [_plain(row) for row in table.rows(["case"], sample)]
    if len(texts) < 2:
        return
    fit_embedder(model, texts, context.folder)
    tasks = [
        EmbeddingTask(file, model, context.folder, context.folder / f"{file.stem}.vectors.npy")
        for file in table.files
    ]
    done = map_shards(
        embed_shard, tasks, backend=context.backend, workers=context.workers, label="embeddings"
    )
    for split in SPLITS:
        places = table.kept(split)
        if not len(places):
            continue
        known = _MappedColumns(table, places, done, context.folder / split)

        def same(
            later: int,
            earlier: int,
            places: npt.NDArray[np.int64] = places,
            known: _MappedColumns = known,
        ) -> bool:
            one, other = table.group[places[[later, earlier]]]
            return bool(one != other) and _confirmed(known.figures(later), known.figures(earlier))

        for repeat in find_alike(known.vectors, threshold, same):
            later, earlier = int(places[repeat.index]), int(places[repeat.of])
            table.drop(Removal(later, "other words", repeat.similarity, earlier))
    _drop_alike_held_out(table, threshold, done, context)


def embed_shard(task: EmbeddingTask) -> Path:
    """Write the vectors of a prepared file's rows; those of cases not kept are zero."""
    if not task.out.is_file():
        import pyarrow.parquet as pq

        embedder = load_embedder(task.model, task.folder)
        rows = pq.read_table(task.prepared, columns=["status", "case"]).to_pylist()
        kept = [number for number, row in enumerate(rows) if row["status"] == "kept"]
        vectors = embedder.embed([_plain(rows[number]) for number in kept])
        whole = np.zeros((len(rows), vectors.shape[1]), np.float32)
        whole[kept] = vectors
        with whole_file(task.out) as temporary, open(temporary, "wb") as file:
            np.save(file, whole)
    return task.out


def _drop_alike_held_out(
    table: RecordTable, threshold: float, vector_files: list[Path], context: BuildContext
) -> None:
    held_out, train = _held_out_places(table), table.kept("train")
    if not len(held_out) or not len(train):
        return
    tests = _MappedColumns(table, held_out, vector_files, context.folder / "tests")
    known = _MappedColumns(table, train, vector_files, context.folder / "train")
    for start in range(0, len(train), CHUNK):
        nearest, cosine = find_nearest(known.vectors[start : start + CHUNK], tests.vectors)
        for number in np.flatnonzero(cosine >= threshold).tolist():
            of = int(nearest[number])
            if _confirmed(known.figures(start + number), tests.figures(of)):
                place, similarity = int(train[start + number]), float(cosine[number])
                rule = "test case in other words"
                table.drop(Removal(place, rule, similarity, int(held_out[of])))


def _confirmed(figures: npt.NDArray[np.uint64], others: npt.NDArray[np.uint64]) -> bool:
    shared, share = compare_figures(figures, others)
    return shared >= LEAST_SHARED_FIGURES and share >= LEAST_SHARE_OF_FIGURES


class _MappedColumns:
    """Vectors and figures of some places, memory-mapped so that they need not fit in memory."""

    def __init__(
        self,
        table: RecordTable,
        places: npt.NDArray[np.int64],
        vector_files: list[Path],
        name: Path,
    ) -> None:
        width = np.load(vector_files[0], mmap_mode="r").shape[1]
        shape = (max(1, len(places)), width)
        vectors = np.memmap(name.with_suffix(".vectors"), np.float32, "w+", shape=shape)
        start = 0
        for number, file in enumerate(vector_files):
            first, last = table.place(number, 0), table.place(number + 1, 0)
            inside = places[np.searchsorted(places, first) : np.searchsorted(places, last)]
            vectors[start : start + len(inside)] = np.load(file, mmap_mode="r")[inside - first]
            start += len(inside)
        self.vectors: Vectors = vectors[: len(places)]
        self._ends = [0]
        with open(name.with_suffix(".figures"), "wb") as sink:
            sink.write(bytes(8))  # a file of no bytes can't be mapped
            for row in table.rows(["figures"], places):
                self._ends.append(self._ends[-1] + sink.write(row["figures"]) // 8)
        self._figures = np.memmap(name.with_suffix(".figures"), np.uint64, "r")[1:]

    def figures(self, index: int) -> npt.NDArray[np.uint64]:
        return self._figures[self._ends[index] : self._ends[index + 1]]


def _held_out_places(table: RecordTable) -> npt.NDArray[np.int64]:
    return np.sort(np.concatenate([table.kept("test"), table.kept("dev")]))


def _sample(places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """At most FIT_TEXTS places, evenly spread."""
    places = np.sort(places)
    return places[:: max(1, -(-len(places) // FIT_TEXTS))]


def _plain(row: dict[str, Any]) -> str:
    return normalise_for_comparison(json.loads(row["case"])["fact"])
