"""Case files: one JSON object a line (`.jsonl`), or the same in a Parquet table (`.parquet`).

Both are read and written as streams. A Parquet row holds what is asked for most in columns of its
own (id, fact, charges, articles, term, months, fine) and the whole case as JSON beside them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from curt.corpus.case import Case
from curt.files import whole_file

ROWS_AT_ONCE = 1000


def write_cases(path: Path, cases: Iterable[Case]) -> int:
    """Write cases atomically, as the file's ending says, and return how many there were."""
    texts = (json.dumps(case.to_json(), ensure_ascii=False) for case in cases)
    with open_case_file(path) as write:
        return sum(map(write, texts))


@contextlib.contextmanager
def open_case_file(path: Path) -> Iterator[Callable[[str], int]]:
    """Yield a function that appends a case, given as `Case.to_json` in text, and returns 1.

    The file is there when the block has succeeded, and not before. Raises ValueError on an ending
    other than .jsonl and .parquet.
    """
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{path}: case files end in .jsonl or .parquet")
    writer = _write_lines if path.suffix == ".jsonl" else _write_parquet
    with whole_file(path) as temporary, writer(temporary) as write:
        yield write


def read_cases(path: Path, limit: int | None = None) -> Iterator[Case]:
    """Yield up to `limit` cases of a file.

    Raises ValueError naming file and line when a line is no case: these files are our own
    output, so a bad line means a damaged file, not dirty data.
    """
    if not path.is_file():
        raise ValueError(f"no case file {path}: make one with `python -m curt.corpus build`")
    lines = _read_parquet(path) if path.suffix == ".parquet" else _read_lines(path)
    for number, line in enumerate(islice(lines, limit), start=1):
        try:
            case = Case.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}:{number} is no case ({type(error).__name__}): make the corpus again"
            ) from error
        yield case


def find_cases(folder: Path, split: str) -> Path:
    """A split's file in a corpus folder, in either format; the .jsonl path where there is none."""
    lines, table = folder / f"{split}.jsonl", folder / f"{split}.parquet"
    return table if table.is_file() and not lines.is_file() else lines


def _read_lines(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8") as file:
        try:
            yield from file
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is damaged ({error}): make the corpus again") from None


def _read_parquet(path: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
        if "case" not in table.schema_arrow.names:
            raise ValueError(f"{path} has no column `case`: make one with `curt.corpus build`")
        for batch in table.iter_batches(ROWS_AT_ONCE, columns=["case"]):
            yield from batch.column(0).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path} is damaged ({error}): make the corpus again") from None


@contextlib.contextmanager
def _write_lines(path: Path) -> Iterator[Callable[[str], int]]:
    with open(path, "w", encoding="utf-8") as file:

        def write(text: str) -> int:
            file.write(f"{text}\n")
            return 1

        yield write


@contextlib.contextmanager
def _write_parquet(path: Path) -> Iterator[Callable[[str], int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, texts = pa.string(), pa.list_(pa.string())
    schema = pa.schema(
        {"id": text, "source": text, "fact": text, "charges": texts, "articles": texts,
         "term": text, "months": pa.int32(), "probation_months": pa.int32(),
         "fine_yuan": pa.int64(), "case": text}
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()

        def write(text: str) -> int:
            rows.append(_to_row(text))
            if len(rows) == ROWS_AT_ONCE:
                flush()
            return 1

        yield write
        flush()


def _to_row(text: str) -> dict[str, Any]:
    case = json.loads(text)
    verdict = case["verdict"]
    term = verdict["term"]
    return {
        **{name: case[name] for name in ("id", "source", "fact")},
        **{name: verdict[name] for name in ("charges", "articles", "fine_yuan")},
        "term": term["kind"],
        "months": term["months"],
        "probation_months": term["probation_months"],
        "case": text,
    }
