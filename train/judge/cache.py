"""Grades kept on disk, so that the same question is asked once."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path


class ReplyCache:
    """A table from a question's hash to the reply, in one SQLite file.

    Each call opens its own connection: several processes may share the file, and the object can be
    sent to another process. A reply is a bare grade, no text of a case.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._connect()) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")  # waits for other processes, a later lock may not
            connection.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)"
            )

    def read(self, keys: Iterable[str]) -> dict[str, str]:
        """Replies by key, of those that are there."""
        query = "SELECT key, reply FROM replies WHERE key IN (SELECT value FROM json_each(?))"
        with closing(self._connect()) as connection:
            return dict(connection.execute(query, [json.dumps(list(keys))]).fetchall())

    def write(self, replies: Mapping[str, str]) -> None:
        """Keep replies; one that is there already stays."""
        with closing(self._connect()) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?)", replies.items())

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=30)  # seconds another writer may take
