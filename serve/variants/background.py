"""Work that goes on beside requests, and what happened lately."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

logger = logging.getLogger(__name__)

EVENTS_KEPT = 100


class Background:
    """Tasks that nobody awaits: held until they end, their errors logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin some work."""
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._ended)

    async def settled(self) -> None:
        """Wait until none is under way."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def stop(self) -> None:
        """Cancel all of it and wait for its end."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error("a change of variants failed", exc_info=error)


class History:
    """The newest events, each with its time."""

    def __init__(self) -> None:
        self._events: deque[dict[str, str]] = deque(maxlen=EVENTS_KEPT)

    def remember(self, name: str, event: str) -> None:
        """Add an event about a variant."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._events.append({"at": at, "variant": name, "event": event})

    def to_list(self) -> list[dict[str, str]]:
        """The events, the oldest first."""
        return list(self._events)
