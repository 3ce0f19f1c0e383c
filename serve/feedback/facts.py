"""Facts kept for training, only where the operator asked for it, and only for a time.

Facts are personal data. They are in a file of their own, `facts.jsonl`, and nowhere else; a row
past its retention is deleted by writing the file again without it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curt.files import fsync_folder
from serve.feedback.log import append_line, mend, read_lines

FACTS = "facts.jsonl"


class FactFile:
    """An append-only file with a retention and a bound on its size. For one thread."""

    def __init__(self, folder: Path, retention_s: float, max_bytes: int = 256 * 2**20) -> None:
        """Opens what an earlier run left and drops copies that it could not finish."""
        self.path = folder / FACTS
        self.retention_s = retention_s
        self._max_bytes = max_bytes
        for copy in folder.glob(f".{FACTS}.*.tmp"):
            copy.unlink()
        if self.path.exists():
            mend(self.path)

    def append(self, row: dict[str, Any]) -> None:
        """Keep a row, whose `at_s` is the Unix time it was made; the oldest make room for it."""
        line = json.dumps(row, ensure_ascii=False).encode()
        if self._size() + len(line) >= self._max_bytes:
            self._write_again(self._newest(self._max_bytes // 2))
        append_line(self.path, line)

    def sweep(self, now_s: float) -> int:
        """Delete the rows past their retention and return how many there were."""
        if not self.path.exists():
            return 0
        limit_s = now_s - self.retention_s
        first = next(read_lines(self.path), None)
        if first is not None and _time_of(first) > limit_s:  # rows are in order of time
            return 0
        before = sum(1 for _ in read_lines(self.path))
        kept = self._write_again(line for line in read_lines(self.path) if _time_of(line) > limit_s)
        return before - kept

    def _write_again(self, lines: Iterator[bytes]) -> int:
        """Replace the file by these lines in one step; an empty one goes altogether."""
        copy = self.path.with_name(f".{FACTS}.{os.getpid()}.tmp")
        count = 0
        try:
            descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb") as file:
                for line in lines:
                    file.write(line + b"\n")
                    count += 1
                file.flush()
                os.fsync(descriptor)
            if count:
                os.replace(copy, self.path)
            else:
                self.path.unlink()
            fsync_folder(self.path.parent)
        finally:
            copy.unlink(missing_ok=True)
        return count

    def _newest(self, max_bytes: int) -> Iterator[bytes]:
        spare = self._size() - max_bytes
        for line in read_lines(self.path):
            spare -= len(line) + 1
            if spare < 0:
                yield line

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0


def _time_of(line: bytes) -> float:
    """When a row was made; one that can't be read counts as expired, so that it is deleted."""
    try:
        return float(json.loads(line)["at_s"])
    except (ValueError, KeyError, TypeError):
        return float("-inf")
