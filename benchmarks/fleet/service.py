"""How long a request takes in each part of a server, fitted from measured replies.

    prefill = p0 + p1 · characters        decode = c0 + c1 · thinking tokens

both times 1 + contention · (share of the time in which another request of the same machine was
under way), plus what the lines leave over. That remainder is not given a shape: those measured are
drawn again, in spells as they followed each other and with the times outside the worker of the
same request, so that stalls stay as rare, as long and as clustered as they were. Thinking lengths
are drawn from those measured under each stated budget.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain

import numpy as np
from pydantic import Field

from curt.config import FrozenModel
from curt.dialogue import MAX_ANSWER_TOKENS

ENOUGH = 20  # replies of one stated budget, to draw its thinking lengths from
ROUNDS = 3  # of the two fits in turn; the third changes them by well under 1%
STALLED_SHARE = 0.1  # at most: left out of the lines, and kept among the remainders
USUAL_SHARE = 0.98  # of the replies tell the contention; a stall overlaps whatever is about


class Sample(FrozenModel):
    """One measured reply of the model. Times in milliseconds.

    `front_ms` passed within the server and outside the worker, until a free worker had it included;
    `outside_ms` outside the server, lateness of the client included. `beside` is the share of the
    worker's time in which another request of the machine was with a worker.
    """

    chars: int = Field(ge=1)
    stated_budget: int = Field(ge=0)
    thinking_tokens: int = Field(ge=0)
    cut: bool
    readable: bool = True
    prefill_ms: float = Field(ge=0)
    decode_ms: float = Field(ge=0)
    front_ms: float = Field(ge=0)
    outside_ms: float = Field(ge=0)
    beside: float = Field(0.0, ge=0, le=1)


class Noise(FrozenModel):
    """What one reply took beyond the lines, and its time outside of the worker."""

    prefill_ms: float
    decode_ms: float
    front_ms: float
    outside_ms: float


class Thought(FrozenModel):
    """How one reply thought: None where it was cut, so that its own length is not known."""

    tokens: int | None
    readable: bool


class Service(FrozenModel):
    """Service times of one worker: what the simulation knows of model and machine."""

    prefill_base_ms: float = Field(ge=0)
    prefill_char_ms: float = Field(ge=0)
    answer_ms: float = Field(gt=0)
    token_ms: float = Field(gt=0)
    contention: float = Field(ge=0)
    tokens_per_char: float = Field(gt=0)
    max_fact_tokens: int = Field(ge=1)
    max_thinking_tokens: int = Field(ge=0)
    thoughts: Mapping[int, tuple[Thought, ...]]
    """By stated budget."""
    noises: tuple[Noise, ...] = Field(min_length=1)
    chars: tuple[int, ...] = Field(min_length=1)
    """Lengths of the facts, to draw from."""

    @property
    def answer_passes(self) -> int:
        """Steps of the model in an answer, the end of thinking left out, as the lines tell."""
        return max(1, min(MAX_ANSWER_TOKENS, round(self.answer_ms / self.token_ms) - 1))

    def prompt_tokens(self, chars: int) -> int:
        """Tokens of a fact once it is clipped."""
        return max(1, min(self.max_fact_tokens, round(chars * self.tokens_per_char)))

    def prefill_ms(self, chars: int, noise: Noise) -> float:
        """Reading a prompt on a machine with nothing else to do."""
        return max(0.05, self.prefill_base_ms + self.prefill_char_ms * chars + noise.prefill_ms)

    def decode_ms(self, thinking_tokens: int, noise: Noise) -> float:
        """Thinking and answering on a machine with nothing else to do."""
        expected = self.answer_ms + self.token_ms * thinking_tokens
        return max(0.2 * expected, expected + noise.decode_ms)

    def draw_thought(self, source: random.Random, stated_budget: int) -> Thought:
        """How long the model wants to think under a stated budget.

        Lengths measured under the nearest budget that is not smaller: never too few.
        """
        levels = self._levels
        level = next((each for each in levels if each >= stated_budget), levels[-1])
        return source.choice(self.thoughts[level])

    def mean_ms(self) -> float:
        """Of a whole request in a worker, under the widest budget and with nothing beside it."""
        lengths = [t.tokens or 0 for t in self.thoughts[self._levels[-1]]]
        chars = sum(self.chars) / len(self.chars)
        extra = sum(n.prefill_ms + n.decode_ms for n in self.noises) / len(self.noises)
        steady = self.prefill_base_ms + self.prefill_char_ms * chars + self.answer_ms
        return steady + self.token_ms * sum(lengths) / len(lengths) + extra

    @cached_property
    def _levels(self) -> list[int]:
        return sorted(self.thoughts)


def fit_service(
    samples: Sequence[Sample],
    *,
    tokens_per_char: float,
    max_fact_tokens: int,
    max_thinking_tokens: int,
) -> Service:
    """Service times from measured replies.

    Raises ValueError when there are too few, or when thinking lengths do not differ enough to
    tell what a token takes.
    """
    if len(samples) < ENOUGH:
        raise ValueError(f"{len(samples)} replies of the model: measure {ENOUGH} or more")
    chars = np.array([s.chars for s in samples], float)
    thinking = np.array([s.thinking_tokens for s in samples], float)
    if np.ptp(thinking) < 4:
        raise ValueError("all replies think equally long: ask with several deadlines")
    prefill = np.array([s.prefill_ms for s in samples])
    decode = np.array([s.decode_ms for s in samples])
    beside = np.array([s.beside for s in samples])
    contention = 0.0
    for _ in range(ROUNDS):
        slow = 1 + contention * beside
        p0, p1 = _usual_line(chars, prefill / slow)
        c0, c1 = _usual_line(thinking, decode / slow)
        expected = p0 + p1 * chars + c0 + c1 * thinking
        contention = _contention(beside, (prefill + decode) / expected)
    if c1 <= 0 or c0 <= 0:
        raise ValueError("longer thinking took no longer: measure more, on a quieter machine")
    slow = 1 + contention * beside
    noises = tuple(
        Noise(prefill_ms=p, decode_ms=d, front_ms=s.front_ms, outside_ms=s.outside_ms)
        for p, d, s in zip(
            (prefill / slow - p0 - p1 * chars).tolist(),
            (decode / slow - c0 - c1 * thinking).tolist(),
            samples,
            strict=True,
        )
    )
    return Service(
        prefill_base_ms=max(0.0, p0),
        prefill_char_ms=max(0.0, p1),
        answer_ms=c0,
        token_ms=c1,
        contention=contention,
        tokens_per_char=tokens_per_char,
        max_fact_tokens=max_fact_tokens,
        max_thinking_tokens=max_thinking_tokens,
        thoughts=_thoughts(samples),
        noises=noises,
        chars=tuple(s.chars for s in samples),
    )


def share_beside(own: tuple[float, float], others: Sequence[tuple[float, float]]) -> float:
    """Share of an interval that others overlap; `others` are ordered by start and may overlap."""
    start, end = own
    covered, reached = 0.0, start
    for other_start, other_end in others[: bisect_right(others, (end, end))]:
        low, high = max(reached, other_start), min(end, other_end)
        if high > low:
            covered += high - low
            reached = high
    return min(1.0, covered / (end - start)) if end > start else 0.0


def _thoughts(samples: Sequence[Sample]) -> dict[int, tuple[Thought, ...]]:
    """By stated budget, where there are enough; what is left over goes to the next wider one."""
    by_level: dict[int, tuple[Thought, ...]] = {}
    waiting: list[Thought] = []
    levels = sorted({s.stated_budget for s in samples})
    for level in levels:
        waiting += [
            Thought(tokens=None if s.cut else s.thinking_tokens, readable=s.readable)
            for s in samples
            if s.stated_budget == level
        ]
        if len(waiting) >= ENOUGH:
            by_level[level], waiting = tuple(waiting), []
    if waiting and by_level:  # the widest are too few: they join the ones below
        by_level[max(by_level)] += tuple(waiting)
    return by_level or {levels[-1]: tuple(chain(waiting))}


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Base and slope by least squares."""
    slope = float(np.cov(x, y, bias=True)[0, 1] / np.var(x)) if np.ptp(x) else 0.0
    return float(np.mean(y) - slope * np.mean(x)), slope


def _usual_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The same without the replies that took longest for their x: stalls must not tilt it."""
    base, slope = _line(x, y)
    left_over = y - base - slope * x
    usual = left_over <= np.quantile(left_over, 1 - STALLED_SHARE)
    return _line(x[usual], y[usual])


def _contention(beside: np.ndarray, slower: np.ndarray) -> float:
    """How much slower a worker is with another beside it, stalls left out; never below 0."""
    usual = slower <= np.quantile(slower, USUAL_SHARE)
    alone, slope = _line(beside[usual], slower[usual])
    return max(0.0, slope / alone) if alone > 0 else 0.0
