"""The highest rate that is kept, found in few steps; knows nothing of servers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

MAX_STEPS = 14
LOWEST = 0.2  # of the start; further down nothing is worth the time


async def find_highest(
    keeps: Callable[[float], Awaitable[bool]],
    start: float,
    *,
    factor: float = 1.4,
    precision: float = 0.06,
) -> float:
    """The highest rate tried that `keeps`, the next failing one at most `precision` above it.

    Goes up or down from `start` by `factor` until one rate is kept and a higher one is not, then
    halves the gap between them. 0 when none was kept down to a fifth of the start. Raises
    ValueError on a start that is not above 0 or a factor that is not above 1.
    """
    if start <= 0 or factor <= 1:
        raise ValueError(f"start {start}, factor {factor}: use above 0 and above 1")
    kept, broken, rate = 0.0, float("inf"), start
    for _ in range(MAX_STEPS):
        if await keeps(rate):
            kept = rate
        else:
            broken = rate
        if kept and broken <= kept * (1 + precision):
            break
        if kept and broken < float("inf"):
            rate = (kept * broken) ** 0.5
        else:
            rate = rate * factor if kept else rate / factor
        if rate < LOWEST * start:
            break
    return kept
