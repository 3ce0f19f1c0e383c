"""Logging set-up, called by entry points only: lines for people, or JSON for machines."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections import deque
from datetime import UTC, datetime
from json import JSONEncoder
from typing import Any

# What every record carries; anything beyond it was given with `extra=` and belongs in the line.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "color_message",
    "taskName",
}


_encode = JSONEncoder(ensure_ascii=False, default=str).encode


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the record's `extra` fields.

    An exception is written as its type and stack, never its message: the message of a
    validation error, for one, quotes what it refused, and facts are personal data.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Write one record as a line of JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info and record.exc_info[0]:
            line["error"] = record.exc_info[0].__name__
            line["stack"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(record.exc_info[2])
            ]
        return _encode(line)


class BackgroundHandler(logging.Handler):
    """Writes lines to a file descriptor from a thread of its own.

    Who logs never waits for who reads: while that one stalls, lines are kept up to a number, and
    those beyond it are dropped and counted in a line. What is left is written for a second at the
    end of the process.
    """

    def __init__(self, descriptor: int = 2, max_lines: int = 10_000) -> None:
        super().__init__()
        self._descriptor, self._max_lines = descriptor, max_lines
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._writing = False
        self._wake = threading.Event()
        threading.Thread(target=self._write_on, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record to be written."""
        if len(self._lines) >= self._max_lines:
            self._dropped += 1
            return
        try:
            self._lines.append(self.format(record))
        except Exception:
            self.handleError(record)
        self._wake.set()

    def close(self) -> None:
        """Leave the thread a second for what is left."""
        until_s = time.monotonic() + 1.0
        while (self._lines or self._writing) and time.monotonic() < until_s:
            time.sleep(0.01)
        super().close()

    def _write_on(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._lines:
                self._writing = True
                self._write(self._lines.popleft())
                if self._dropped:
                    text, self._dropped = f"{self._dropped} log lines were dropped", 0
                    record = {"name": __name__, "levelname": "WARNING", "msg": text}
                    self._write(self.format(logging.makeLogRecord(record)))
            self._writing = False

    def _write(self, line: str) -> None:
        data = line.encode(errors="backslashreplace") + b"\n"
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # nobody reads any more
                return


def configure_logging(json: bool = False, *, background: bool = False) -> None:
    """Log to standard error from INFO up; replaces whatever was configured before.

    Args:
        json: one JSON object a line, for servers; otherwise short lines for people.
        background: never wait for who reads the log; see `BackgroundHandler`.
    """
    handler = BackgroundHandler() if background else logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter()
        if json
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
