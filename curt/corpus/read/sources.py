"""Where records come from, cut into shards that can be read apart from each other.

A shard is a range of lines of a file or of rows of a table: small enough for a worker's memory,
and the unit in which a stopped build goes on.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from curt.corpus.case import Case
from curt.corpus.read.cail import read_records, take_columns
from curt.corpus.read.files import PARQUET, SAMPLE_BYTES, encoding_of, read_head, read_whole
from curt.corpus.read.judgments import read_document
from curt.corpus.read.records import RecordError

logger = logging.getLogger(__name__)

Kind = Literal["cail", "judgments", "cases"]
Form = Literal["lines", "whole", "mended", "parquet", "hub"]
Encoding = Literal["auto", "utf-8", "gb18030"]
_MENDED_KEYS = frozenset({"split", "kind", "file", "line", "part", "record"})


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows `first` to `first + count` of a file or data set; lines from byte `offset` on.

    `split` is None where each record's own hash decides it. `form` says how rows are stored:
    lines of text, a file to read as a whole, a quarantine file that was mended, Parquet, or a
    Hugging Face data set.
    """

    source: str
    kind: Kind
    form: Form
    split: str | None
    first: int
    count: int
    offset: int = 0
    encoding: str = "utf-8"
    columns: Mapping[str, str] = field(default_factory=dict)
    """The column that stands for a part of a case (`curt.corpus.read.cail.COLUMNS`)."""

    def to_json(self) -> dict[str, Any]:
        """Inverse of `Shard(**row)`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ReadRecord:
    """What one record gave; `case` or else the `reason` there is none, with the record itself."""

    source: str
    line: int
    part: int
    """Which defendant's from 1; 0 where the record could not be read at all."""
    kind: Kind
    split: str | None
    case: Case | None = None
    reason: str = ""
    record: str = ""


def cut_file(
    path: Path, kind: Kind, split: str | None, records: int, encoding: Encoding = "auto"
) -> list[Shard]:
    """Shards of a file of any form. Raises ValueError with the remedy where it can't be read."""
    if read_head(path).startswith(PARQUET):
        shards = cut_parquet(path, kind, split, records)
    elif (rows := read_whole(path)) is not None:
        shards = [Shard(str(path), kind, "whole", split, 0, len(rows))] if rows else []
    else:
        shards = _cut(path, kind, split, records, "lines", encoding)
    if not shards and kind != "cases":  # of our own sets one may be empty
        raise ValueError(f"{path} holds no record: give a file with one")
    return shards


def cut_mended(path: Path, lines: int) -> list[Shard]:
    """Shards of a quarantine file whose records were mended. Raises ValueError without it."""
    if not path.is_file():
        raise ValueError(f"no quarantine file {path}: give the one a build wrote")
    return _cut(path, "cail", None, lines, "mended", "utf-8")


def cut_parquet(path: Path, kind: Kind, split: str | None, rows: int) -> list[Shard]:
    """Shards of a Parquet file. Raises ValueError when it can't be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        total = pq.ParquetFile(path).metadata.num_rows
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from None
    return [
        Shard(str(path), kind, "parquet", split, first, min(rows, total - first))
        for first in range(0, total, rows)
    ]


def cut_hub(name: str, splits: Mapping[str, str], rows: int) -> list[Shard]:
    """Shards of a Hugging Face data set, a hub id or a local folder.

    `splits` maps our sets to its splits. It is fetched once and then memory-mapped. Raises
    ValueError when it can't be had.
    """
    shards = []
    for split, theirs in splits.items():
        total = len(_load_hub(name, theirs))
        shards += [
            Shard(f"{name}#{theirs}", "cail", "hub", split, first, min(rows, total - first))
            for first in range(0, total, rows)
        ]
    return shards


def read_shard(shard: Shard) -> Iterator[ReadRecord]:
    """What each record of a shard gives, in order: at least one outcome a record."""
    for line, raw in _raw_records(shard):
        if shard.form == "mended":
            yield from _read_mended(raw, shard, line)
            continue
        try:
            row = _decode(raw, shard)
        except RecordError as error:
            text = raw.decode("utf-8", "backslashreplace") if isinstance(raw, bytes) else ""
            yield ReadRecord(shard.source, line, 0, shard.kind, shard.split, None, str(error), text)
            continue
        yield from read_record(row, shard.kind, shard.source, line, shard.split)


def _decode(raw: Any, shard: Shard) -> Any:
    row = decode_line(raw, shard.encoding) if isinstance(raw, bytes) else raw
    if isinstance(row, dict):
        row |= {part: row.get(column) for part, column in shard.columns.items()}
        told = str(row.get("term")).strip().removesuffix(".0")
        if "年" in shard.columns.get("term", "") and told.isdecimal():
            row["term"] = f"{told}年"
    return row


def taken_columns(shard: Shard) -> dict[str, str]:
    """Which column of a shard's first record is taken for which part of a case."""
    with contextlib.suppress(RecordError, StopIteration):
        _, found = take_columns(_decode(next(_raw_records(shard))[1], shard))
        return {part: shard.columns.get(part, column) for part, column in found.items()}
    return {}


def read_record(
    row: Any, kind: Kind, source: str, line: int, split: str | None
) -> Iterator[ReadRecord]:
    """The outcomes of one decoded record."""
    text = json.dumps(row, ensure_ascii=False, default=str)
    try:
        results = list(_READERS[kind](row))
    except RecordError as error:
        yield ReadRecord(source, line, 0, kind, split, None, str(error), text)
        return
    for part, result in enumerate(results, start=1):
        if isinstance(result, Case):
            yield ReadRecord(source, line, part, kind, split or split_of(result), result)
        else:
            yield ReadRecord(source, line, part, kind, split, None, str(result), text)


def decode_line(line: bytes, encoding: str) -> Any:
    """The value of a line of JSON. Raises RecordError with the reason it has none."""
    try:
        return json.loads(line.removeprefix(codecs.BOM_UTF8).decode(encoding))
    except UnicodeDecodeError:
        raise RecordError("not UTF-8" if encoding == "utf-8" else "not GB18030") from None
    except (ValueError, RecursionError):
        raise RecordError("not JSON") from None


def split_of(case: Case) -> str:
    """Set of a case by the hash in its id: a tenth each for test and dev."""
    share = int(case.id.split("-")[1], 16) / 16**16
    return "test" if share < 0.1 else "dev" if share < 0.2 else "train"


def _cut(
    path: Path, kind: Kind, split: str | None, lines: int, form: Form, encoding: str
) -> list[Shard]:
    if encoding == "auto":
        with open(path, "rb") as file:
            encoding = encoding_of(file.readlines(SAMPLE_BYTES))
    shards = []
    offset = number = 0
    with open(path, "rb") as file:
        while block := list(islice(file, lines)):
            shards.append(Shard(str(path), kind, form, split, number, len(block), offset, encoding))
            number += len(block)
            offset += sum(map(len, block))
    return shards


def _raw_records(shard: Shard) -> Iterator[tuple[int, Any]]:
    """Records with their line, from 1; blank lines are none."""
    if shard.form in ("lines", "mended"):
        with open(shard.source, "rb") as file:
            file.seek(shard.offset)
            for number, line in enumerate(islice(file, shard.count), start=shard.first + 1):
                if line.strip():
                    yield number, line
        return
    if shard.form == "whole":
        for number, row in enumerate(read_whole(Path(shard.source)) or (), start=1):
            if not isinstance(row, bytes) or row.strip():
                yield number, row
        return
    if shard.form == "hub":
        name, _, split = shard.source.rpartition("#")
        rows: Sequence[Any] = _load_hub(name, split)
        for index in range(shard.first, shard.first + shard.count):
            yield index + 1, rows[index]
        return
    import pyarrow.parquet as pq

    number = 0
    stop = shard.first + shard.count
    for batch in pq.ParquetFile(shard.source).iter_batches(1024):
        if number < stop and number + len(batch) > shard.first:
            for index, row in enumerate(batch.to_pylist(), start=number):
                if shard.first <= index < stop:
                    yield index + 1, row
        number += len(batch)


def _read_mended(raw: Any, shard: Shard, line: int) -> Iterator[ReadRecord]:
    """The part of a record that was set aside, read again under its own file and line."""
    try:
        row = decode_line(raw, "utf-8")
    except RecordError:
        row = None
    if not isinstance(row, dict) or not row.keys() >= _MENDED_KEYS:
        raise ValueError(
            f"{shard.source}:{line} is no line of a quarantine file: keep its keys and mend the "
            "text of `record` alone"
        )
    origin = (row["file"], row["line"])
    try:
        value = decode_line(str(row["record"]).encode("utf-8", "surrogatepass"), "utf-8")
    except RecordError as error:
        kind, split, text = row["kind"], row["split"], row["record"]
        yield ReadRecord(*origin, row["part"], kind, split, None, str(error), text)
        return
    for outcome in read_record(value, row["kind"], *origin, row["split"]):
        # Other defendants of a judgment were read before.
        if row["part"] in (0, outcome.part):
            yield outcome


def _read_case(row: Any) -> Iterator[Case]:
    try:
        # our Parquet tables hold the whole case in one column
        yield Case.from_json(json.loads(row["case"]) if "case" in row else row)
    except (KeyError, TypeError, ValueError):
        raise RecordError("not a case") from None


_READERS: Mapping[str, Callable[[Any], Iterator[Case | RecordError]]] = {
    "cail": read_records,
    "judgments": read_document,
    "cases": _read_case,
}


def _load_hub(name: str, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"the data set {name} with the split {split} can't be had ({error}): give a hub id, or "
            "a folder with one Parquet or JSON file a split"
        ) from None
