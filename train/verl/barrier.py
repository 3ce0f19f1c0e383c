"""Waiting for whole groups where completions come one at a time and in any order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class GroupBarrier(Generic[Item]):
    """Holds each completion back until its group is complete, then scores the group once."""

    def __init__(self, patience_s: float) -> None:
        """`patience_s`: how long to wait for the others of a group, in seconds."""
        self.patience_s = patience_s
        self._waiting: dict[Hashable, dict[int, tuple[Item, asyncio.Future[Any]]]] = {}

    async def submit(
        self,
        group: Hashable,
        place: int,
        item: Item,
        *,
        size: int,
        score: Callable[[Sequence[Item]], Sequence[Any]],
    ) -> Any:
        """The item's own result of `score`, which sees the whole group in order of place.

        Raises ValueError when two items come for one place, TimeoutError when the group stays
        incomplete (a sibling's generation failed), and whatever `score` raises, in every member.
        """
        members = self._waiting.setdefault(group, {})
        if place in members or not 0 <= place < size:
            raise ValueError(
                f"group {group!r} got place {place} of {size} twice, or there is no such place: "
                "one prompt must have one uid, and each of its completions a session of its own"
            )
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        members[place] = (item, future)
        if len(members) == size:
            del self._waiting[group]
            ordered = [members[index] for index in range(size)]
            await self._settle(ordered, score)
        try:
            return await asyncio.wait_for(asyncio.shield(future), self.patience_s)
        except TimeoutError:
            self._waiting.pop(group, None)
            raise TimeoutError(
                f"group {group!r} had {len(members)} of {size} completions after "
                f"{self.patience_s:g} s: the rest failed or went to another worker"
            ) from None

    @staticmethod
    async def _settle(
        ordered: Sequence[tuple[Item, asyncio.Future[Any]]],
        score: Callable[[Sequence[Item]], Sequence[Any]],
    ) -> None:
        """Score off the event loop: judges and parsing must not hold up the other groups."""
        try:
            results = await asyncio.to_thread(score, [item for item, _ in ordered])
        except Exception as error:
            for _, future in ordered:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(ordered, results, strict=True):
            if not future.done():
                future.set_result(result)
