"""Lines that are on the disk when `append` returns: fsynced, rotated by size, mended on open."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from curt.files import fsync_folder

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 65_536


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
    """Cut a half-written last line off and return its bytes: no one was told that it was kept."""
    with open(path, "rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        keep = 0
        while end > 0:
            start = max(0, end - _BLOCK_BYTES)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                keep = start + found + 1
                break
            end = start
        if keep < size:
            file.truncate(keep)
            os.fsync(file.fileno())
            logger.warning("%s: cut off a half-written line of %d bytes", path.name, size - keep)
    return size - keep


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte; a full disk may take only some of them at first."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _number_of(path: Path) -> int:
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdigit() else 0
