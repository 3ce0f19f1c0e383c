"""The last steps of the declared calculus: what circumstances make of a base of months."""

from __future__ import annotations

from collections.abc import Iterable

RATIO_FLOOR = -60  # percent; what circumstances may take from a term at most


def sum_ratios(ratios: Iterable[int]) -> int:
    """What circumstances move a term by, in percent, kept from `RATIO_FLOOR` up."""
    return max(RATIO_FLOOR, sum(ratios))


def scale_months(base: int, ratio: int) -> int:
    """`base` months moved by `ratio` percent, rounded half up."""
    return (base * (100 + ratio) + 50) // 100
