"""What was said of answers, a line each, on the disk when `append` returns.

Files are fsynced, rotated by size, and mended on open: a half-written last line is cut off.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cachetools import LRUCache

from curt.files import fsync_folder
from serve.errors import OverloadedError

logger = logging.getLogger(__name__)

FEEDBACK = "feedback.jsonl"
SCHEMA = 1
MAX_LINES_AN_ANSWER = 20  # a client that changes its mind more often is a broken one


class TooManyChangesError(OverloadedError):
    """One answer was judged over and over."""

    status = 429


class AppendLog:
    """One writer's append-only file of lines; full ones become `{stem}-000001.jsonl` and so on.

    Nothing is ever deleted. Safe to use from several threads.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        """`max_bytes`: size beyond which a new file is begun. Raises OSError."""
        self.path = path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._size = 0
        self._open()

    def append(self, line: bytes) -> None:
        """Add a line, which must hold no line feed, and wait until the disk has it.

        Raises OSError when it can't be written; the file then ends where it did before.
        """
        data = line + b"\n"
        with self._lock:
            if self._descriptor is None:
                self._open()
            if self._size and self._size + len(data) > self._max_bytes:
                self._rotate()
            assert self._descriptor is not None
            try:
                write_all(self._descriptor, data)
                os.fsync(self._descriptor)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, self._size)
                self._shut()  # the next append opens and mends it
                raise
            self._size += len(data)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._shut()

    def _open(self) -> None:
        is_new = not self.path.exists()
        if not is_new:
            mend(self.path)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._size = os.fstat(self._descriptor).st_size
        if is_new:
            fsync_folder(self.path.parent)

    def _rotate(self) -> None:
        self._shut()
        numbers = [_number_of(path) for path in log_files(self.path)]
        full = self.path.with_name(f"{self.path.stem}-{max(numbers) + 1:06d}{self.path.suffix}")
        self.path.rename(full)
        self._open()

    def _shut(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class FeedbackLog:
    """The lines of all feedback in `folder`, which belongs to one server.

    Of the `max_known` answers judged last it knows what was said last, and how often.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = 64 * 2**20,
        max_known: int = 10_000,
        since_s: float = 0.0,
    ) -> None:
        """`since_s`: Unix time before which files need not be read.

        Raises ValueError when another server holds the folder.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._hold = hold_folder(folder)
        self._lock = threading.Lock()
        self._known: LRUCache[str, tuple[str, int]] = LRUCache(max_known)
        self._log = AppendLog(folder / FEEDBACK, max_bytes)
        for path in log_files(folder / FEEDBACK):
            if path.stat().st_mtime >= since_s:
                for row in read_feedback(path):
                    self._note(row["answer"]["answer_id"], _digest(row))

    def record(self, row: dict[str, Any]) -> bool:
        """Keep a row; False when it says what the last one of its answer said.

        Raises OSError when it can't be written, TooManyChangesError after a score of changes.
        """
        answer_id, digest = row["answer"]["answer_id"], _digest(row)
        with self._lock:  # the disk is slow, but two clients must not judge one answer at once
            last, count = self._known.get(answer_id, ("", 0))
            if digest == last:
                return False
            if count >= MAX_LINES_AN_ANSWER:
                raise TooManyChangesError(
                    "too_many_changes",
                    f"this answer was judged {count} times: what was said last stays",
                    86_400,
                )
            self._log.append(json.dumps(row, ensure_ascii=False).encode())
            self._note(answer_id, digest)
        return True

    def close(self) -> None:
        """Let go of the files and the folder."""
        self._log.close()
        os.close(self._hold)

    def _note(self, answer_id: str, digest: str) -> None:
        self._known[answer_id] = (digest, self._known.get(answer_id, ("", 0))[1] + 1)


def log_files(path: Path) -> list[Path]:
    """The files of a log in the order they were written, the one still written last."""
    pattern = re.compile(rf"{re.escape(path.stem)}-\d{{6,}}{re.escape(path.suffix)}")
    full = [other for other in path.parent.iterdir() if pattern.fullmatch(other.name)]
    return sorted(full, key=_number_of) + ([path] if path.exists() else [])


def read_lines(path: Path) -> Iterator[bytes]:
    """The whole lines of a file, without line feeds; a half-written last one is left out."""
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line[:-1]


def mend(path: Path) -> int:
    """Cut a half-written last line off and return its size: its client never got a reply."""
    data = path.read_bytes()
    lost = len(data) - (data.rfind(b"\n") + 1)
    if lost:
        with open(path, "rb+") as file:
            file.truncate(len(data) - lost)
            os.fsync(file.fileno())
        logger.warning("%s: cut off a half-written line of %d bytes", path.name, lost)
    return lost


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a file that only this server's user may read. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        write_all(descriptor, line + b"\n")
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte; a full disk may take only some of them at first."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_feedback(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of one file in order; lines that are none are left out and counted in the log."""
    unreadable = 0
    for line in read_lines(path):
        try:
            row = json.loads(line)
            known = row["schema"] == SCHEMA and isinstance(row["answer"]["answer_id"], str)
        except (ValueError, KeyError, TypeError):
            known = False
        if known:
            yield row
        else:
            unreadable += 1
    if unreadable:
        logger.warning("%s: %d lines can't be read", path.name, unreadable)


def _number_of(path: Path) -> int:
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdigit() else 0


def _digest(row: dict[str, Any]) -> str:
    said = [row.get(name) for name in ("verdict", "correction", "comment", "user")]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]


def hold_folder(folder: Path) -> int:
    """Lock a folder until the descriptor returned is closed. Raises ValueError if it is in use."""
    descriptor = os.open(folder / ".lock", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ValueError(
            f"{folder} is in use by another server: give each a folder of its own"
        ) from None
    return descriptor
