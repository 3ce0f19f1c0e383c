"""Files that are either whole or absent: temp file, fsync, rename."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROWS_AT_ONCE = 1000  # of a Parquet table that is read as a stream


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; the file written there takes the place of `path` in one step.

    A reader, an error or a crash sees the old file or the new, never half.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file as `whole_file` does."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable UTF-8 JSON, atomically."""
    write_atomic(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `target` when the block succeeds.

    On an error or a kill the old `target`, if any, stays as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        previous = target.with_name(f".{target.name}.{os.getpid()}.old")
        if target.exists():
            os.replace(target, previous)
        os.replace(temporary, target)
        fsync_folder(target.parent)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON Lines file. Raises ValueError naming a line that is none."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number} is no JSON: give a whole file") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number} is no JSON object: give one a line")
            yield row


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet table (`.parquet`) or else of a JSON Lines file.

    Raises ValueError naming the file where it is neither.
    """
    if path.suffix != ".parquet":
        yield from read_json_lines(path)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(path).iter_batches(ROWS_AT_ONCE):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} can't be read ({error}): give a whole file") from error


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], **options: Any) -> None:
    """Write rows so that `read_rows` reads them, atomically.

    In a Parquet table, columns that some rows lack are empty there; `options` are as in
    `write_parquet`.
    """
    if path.suffix != ".parquet":
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    import pyarrow as pa

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    write_parquet(path, pa.table(columns), **options)


def write_parquet(path: Path, table: Any, **options: Any) -> None:
    """Write a pyarrow table atomically; `options` are those of `pyarrow.parquet.write_table`."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    write_atomic(path, buffer.getvalue())


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def close_run(run: Path) -> None:
    """Drop what only a resume needs, once the model folder is written."""
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (run / "config.json").unlink()
    if not any(run.iterdir()):
        run.rmdir()
