"""Bytes kept in process: the least recently used go first, none outlives its lifetime."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

ENTRY_OVERHEAD_BYTES = 250  # of the dict's slot, the tuple, the float and both objects' headers


class Lru:
    """Bytes by name, within a limit in bytes; the least recently used go first."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ValueError on a limit below zero."""
        if max_bytes < 0:
            raise ValueError(f"a cache of {max_bytes} bytes: use 0 or more")
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self.used_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str) -> bytes | None:
        """The value of a name, or None where there is none or its lifetime is over."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        if entry[0] <= self._clock():
            self.drop(name)
            return None
        self._entries.move_to_end(name)
        return entry[1]

    def put(self, name: str, value: bytes, ttl_s: float) -> None:
        """Keep a value for `ttl_s` seconds, unless it is larger than the whole cache."""
        self.drop(name)
        size = _size(name, value)
        if size > self._max_bytes or ttl_s <= 0:
            return
        now_s = self._clock()
        self._entries[name] = (now_s + ttl_s, value)
        self.used_bytes += size
        while self.used_bytes > self._max_bytes or self._oldest_is_over(now_s):
            self.drop(next(iter(self._entries)))

    def drop(self, name: str) -> None:
        """Forget a name, if it is known."""
        entry = self._entries.pop(name, None)
        if entry is not None:
            self.used_bytes -= _size(name, entry[1])

    def _oldest_is_over(self, now_s: float) -> bool:
        return bool(self._entries) and next(iter(self._entries.values()))[0] <= now_s


def _size(name: str, value: bytes) -> int:
    return len(name) + len(value) + ENTRY_OVERHEAD_BYTES
