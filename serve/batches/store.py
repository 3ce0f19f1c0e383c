"""The files of batches, a folder each: whole or absent, and results that are only ever added to.

    batch.json      whose it is, how many cases, when it came
    input.jsonl     the cases as they came
    results.jsonl   a line a case, in the same order
    cancelled       is there where its owner has ended it

Facts stand in them, so nobody but the server's own user may read them.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from curt.files import whole_folder, write_atomic
from serve.edge.context import PREDICT_PATH
from serve.errors import RequestError
from serve.feedback.log import hold_folder, read_lines

ABOUT, INPUT, RESULTS, CANCELLED = "batch.json", "input.jsonl", "results.jsonl", "cancelled"
PATHS = (PREDICT_PATH, "/v1/chat/completions")


class UnusableBatchError(RequestError):
    """There is no case in it, too many, or a line that is none."""

    status = 422


def read_line(data: bytes) -> tuple[str, dict[str, Any], str | None]:
    """Where a case is asked, its body, and its owner's id of it.

    A line is a body of /predict, or one of OpenAI's batch files. Raises UnusableBatchError, which
    says without a word of the line what is wrong with it.
    """
    try:
        row = json.loads(data)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise UnusableBatchError("invalid_line", "is no JSON object: send one case a line")
    wrapped = row if "body" in row else {"url": PREDICT_PATH, "body": row}
    path, body, name = wrapped.get("url"), wrapped["body"], wrapped.get("custom_id")
    if not (path in PATHS and isinstance(body, dict) and isinstance(name, str | None)):
        message = f"needs an object as body, a text as custom_id, and as url {' or '.join(PATHS)}"
        raise UnusableBatchError("invalid_line", message)
    if body.get("stream"):
        message = "asks for a stream, which no batch can give: leave it out"
        raise UnusableBatchError("invalid_line", message)
    return str(path), body, name


@dataclass(slots=True, eq=False)
class Batch:
    """A batch that is kept: of its `total` cases `done` have a result, `failed` no status 200.

    `owner` is the id of an API key, None where keys are off; `size` the bytes of all results.
    """

    folder: Path
    owner: str | None
    total: int
    created_s: float
    done: int = 0
    failed: int = 0
    size: int = 0

    @property
    def state(self) -> str:
        """Whether every case has a result, or its owner has ended it before."""
        if self.done == self.total:
            return "completed"
        return "cancelled" if (self.folder / CANCELLED).exists() else "in_progress"

    def cases(self) -> Iterator[tuple[int, tuple[str, dict[str, Any], str | None]]]:
        """The cases without a result, each with its place from 0. Raises OSError."""
        with open(self.folder / INPUT, "rb") as file:
            for index, data in enumerate(line for line in file if line.strip()):
                if index >= self.done:
                    yield index, read_line(data)

    def note(self, result: bytes) -> None:
        """Count a result that is on the disk."""
        self.done, self.size = self.done + 1, self.size + len(result) + 1
        self.failed += json.loads(result)["response"]["status_code"] != 200


class BatchStore:
    """The batches in a folder, which belongs to one server."""

    def __init__(self, folder: Path, max_cases: int, retention_s: float) -> None:
        """`retention_s`: after it came, a batch is deleted, done or not.

        Raises ValueError when another server holds the folder, OSError when it can't be read.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder, self.retention_s, self._max_cases = folder, retention_s, max_cases
        self._hold = hold_folder(folder)
        for torn in folder.glob(".batch_*"):  # by a kill, while it came
            shutil.rmtree(torn)
        self.batches = {path.name: _load(path) for path in folder.glob("batch_*")}

    def count(self, lines: IO[bytes]) -> int:
        """The cases of a file. Raises UnusableBatchError that names the first line that is none."""
        total = 0
        names: set[str | None] = set()
        for number, data in enumerate(lines, start=1):
            if not data.strip():
                continue
            total += 1
            try:
                name = read_line(data)[2]
                if name in names:
                    raise UnusableBatchError("invalid_line", "repeats an earlier custom_id")
                if total > self._max_cases:
                    message = f"is one too many: send {self._max_cases} cases or fewer at once"
                    raise UnusableBatchError("too_many_cases", message)
            except UnusableBatchError as fault:
                fault.message = f"line {number} {fault.message}"
                raise
            names |= {name} - {None}
        if not total:
            raise UnusableBatchError("no_case", "the batch is empty: send one case a line")
        return total

    def add(self, lines: IO[bytes], owner: str | None, total: int) -> Batch:
        """Keep a batch of so many cases. Raises OSError."""
        target = self.folder / f"batch_{secrets.token_hex(16)}"
        about = {"owner": owner, "total": total, "created_s": time.time()}
        lines.seek(0)
        with whole_folder(target) as folder:
            private = os.open(folder / INPUT, os.O_WRONLY | os.O_CREAT, 0o600)
            with open(private, "wb") as file:
                shutil.copyfileobj(lines, file)
            write_atomic(folder / ABOUT, json.dumps(about))
        self.batches[target.name] = batch = _load(target)
        return batch

    def close(self) -> None:
        """Let another server have the folder."""
        os.close(self._hold)

    def remove(self, batch: Batch) -> None:
        """Delete everything of a batch."""
        self.batches.pop(batch.folder.name, None)
        shutil.rmtree(batch.folder, ignore_errors=True)


def _load(folder: Path) -> Batch:
    batch = Batch(folder, **json.loads((folder / ABOUT).read_bytes()))
    if (folder / RESULTS).exists():
        for line in read_lines(folder / RESULTS):
            batch.note(line)
    return batch
