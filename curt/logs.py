"""Logging set-up, called by entry points only: lines for people, or JSON for machines."""

from __future__ import annotations

import logging
import sys
import traceback
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


def configure_logging(json: bool = False) -> None:
    """Log to standard error from INFO up; replaces whatever was configured before.

    Args:
        json: one JSON object a line, for servers; otherwise short lines for people.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter()
        if json
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
