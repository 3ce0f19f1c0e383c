"""Deadlines into thinking tokens: what a machine's speed leaves for reasoning.

The speed is learned while serving. A calibration at worker start gives the shape (milliseconds
per prompt token, per decoded token); every request then updates an upper quantile of how much
slower than that the machine really is. Upper quantiles, because a mean promises a deadline it
misses half of the time; means beside them, because a queue of many takes the mean of each.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from curt.dialogue import MAX_ANSWER_TOKENS

QUANTILE = 0.95
WINDOW = 200  # observations
MAX_AGE_S = 30.0  # older observations tell of another load
FRESH_S = 0.05  # estimates this young are not made anew: at 100 requests a second it would add up
ENOUGH = 8  # observations from which the calibration is no longer needed
MIN_DECODED_TOKENS = 8  # below this a time per token is mostly noise


@dataclass(frozen=True, slots=True)
class Observation:
    """What one generation took.

    `decoded_tokens` counts the end of thinking too; `answer_tokens` is None where a deadline
    cut the answer, so that its length is not known.
    """

    fact_chars: int
    prompt_tokens: int
    prefill_ms: float
    decoded_tokens: int
    decode_ms: float
    answer_tokens: int | None

    @property
    def thinking_tokens(self) -> int | None:
        """Tokens before the end of thinking; None where the answer's length is not known."""
        if self.answer_tokens is None:
            return None
        return max(0, self.decoded_tokens - self.answer_tokens - 1)


@dataclass(frozen=True, slots=True)
class Line:
    """`base + slope · x`, never below zero and never falling."""

    base: float
    slope: float

    def at(self, x: float) -> float:
        """The value at `x`."""
        return max(0.0, self.base + self.slope * x)


@dataclass(frozen=True, slots=True)
class Estimates:
    """What the machine can be relied on to do at this moment, or what it does on average.

    `tokens_of_chars` gives prompt tokens for a fact's characters, `prefill_ms_of_tokens` the
    prefill of a prompt; `tpot_ms` is the time per output token, `answer_tokens` the length of
    an answer and `thinking_tokens` that of the thinking before it, as the model ended it.
    """

    tokens_of_chars: Line
    prefill_ms_of_tokens: Line
    tpot_ms: float
    answer_tokens: int
    thinking_tokens: float = 0.0

    def zero_thinking_ms(self, prompt_tokens: int) -> float:
        """The least a request takes: prefill, the end of thinking and the answer."""
        return self.prefill_ms_of_tokens.at(prompt_tokens) + (self.answer_tokens + 1) * self.tpot_ms


def allowed_thinking_tokens(
    remaining_ms: float,
    prompt_tokens: int,
    answer_tokens: int,
    estimates: Estimates,
    margin_ms: float,
    cap: int,
) -> int | None:
    """How many thinking tokens fit before the deadline.

    (remaining − prefill(prompt tokens) − answer tokens × TPOT − margin) / TPOT, with one token
    more than the answer for the end of thinking; at most `cap`. None when the deadline can't be
    met even with zero thinking. Raises ValueError on negative lengths or a TPOT that is not
    positive.
    """
    if prompt_tokens < 0 or answer_tokens < 0 or cap < 0:
        raise ValueError(
            f"{prompt_tokens} prompt, {answer_tokens} answer, cap {cap} tokens: use 0 or more"
        )
    if not estimates.tpot_ms > 0:
        raise ValueError(f"a TPOT of {estimates.tpot_ms} ms: calibrate the engine first")
    spare_ms = (
        remaining_ms
        - margin_ms
        - estimates.prefill_ms_of_tokens.at(prompt_tokens)
        - (answer_tokens + 1) * estimates.tpot_ms
    )
    if not spare_ms >= 0:  # a NaN is hopeless too
        return None
    return int(min(cap, spare_ms // estimates.tpot_ms))


class SpeedEstimator:
    """Learns `Estimates` from a calibration and from every request after it."""

    def __init__(
        self,
        calibration: Iterable[Observation] = (),
        *,
        quantile: float = QUANTILE,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        """Start from calibration runs of at least two prompt lengths."""
        if not 0 < quantile <= 1:
            raise ValueError(f"quantile {quantile}: use above 0, up to 1")
        self._quantile = quantile
        self._max_age_s = max_age_s
        self._calibration: deque[Observation] = deque(maxlen=32)
        self._shape: _Shape | None = None  # of the calibration
        self._recent: deque[tuple[float, Observation]] = deque(maxlen=WINDOW)
        self._measured: deque[_Measured] = deque(maxlen=WINDOW)  # of each of `_recent`
        self._cached: dict[float | None, Estimates] = {}
        self._cached_until_s = -math.inf
        self._fresh_until_s = -math.inf
        self._learned = False  # something since the cached were made
        self.calibrate(calibration)

    def calibrate(self, observations: Iterable[Observation]) -> None:
        """Add calibration runs, as of one more worker."""
        self._calibration.extend(observations)
        self._measure_anew()

    def observe(self, observation: Observation, now_s: float) -> None:
        """Learn from a completed generation at the monotonic instant `now_s`."""
        self._recent.append((now_s, observation))
        if self._shape is not None:
            self._measured.append(self._shape.measure(observation))
        self._learned = True

    def begin_again(self, observations: Iterable[Observation], now_s: float) -> None:
        """Forget what was seen before these: the machine has changed since."""
        self._recent = deque(((now_s, each) for each in observations), maxlen=WINDOW)
        self._measure_anew()

    def quiet_s(self, now_s: float) -> float:
        """Seconds since the last observation; infinite when there was none."""
        return now_s - self._recent[-1][0] if self._recent else math.inf

    def estimates(self, now_s: float) -> Estimates:
        """The estimates to rely on at `now_s`. Raises ValueError before any calibration."""
        return self._at(self._quantile, now_s)

    def average(self, now_s: float) -> Estimates:
        """What is to be expected of many at `now_s`. Raises ValueError before any calibration."""
        return self._at(None, now_s)

    def _measure_anew(self) -> None:
        self._cached.clear()
        self._measured.clear()
        if self._calibration:
            self._shape = _Shape.of(self._calibration)
            self._measured.extend(self._shape.measure(each) for _, each in self._recent)

    def _at(self, quantile: float | None, now_s: float) -> Estimates:
        if not self._calibration:
            raise ValueError("no estimate without a calibration: call calibrate() first")
        if now_s >= self._cached_until_s or (self._learned and now_s >= self._fresh_until_s):
            self._cached.clear()
        if not self._cached:  # both at once: who wants one wants the other
            self._learned, self._fresh_until_s = False, now_s + FRESH_S
            self._cached = self._estimate(now_s)
            oldest = self._recent[0][0] if self._recent else math.inf
            self._cached_until_s = oldest + self._max_age_s
        return self._cached[quantile]

    def _estimate(self, now_s: float) -> dict[float | None, Estimates]:
        while self._recent and now_s - self._recent[0][0] >= self._max_age_s:
            self._recent.popleft()
            self._measured.popleft()
        shape = self._shape
        assert shape is not None  # `_at` has seen to it
        seen: Sequence[_Measured] = self._measured
        if len(seen) < ENOUGH:
            seen = [*shape.own, *seen]
        chars, prefills, tpots, answers, thoughts = zip(*seen, strict=True)
        decoded = [tpot for tpot in tpots if tpot is not None] or shape.tpots
        ended = [tokens for tokens in answers if tokens is not None] or [MAX_ANSWER_TOKENS]
        thought = [tokens for tokens in thoughts if tokens is not None] or [0]
        return {
            quantile: Estimates(
                tokens_of_chars=shape.tokens_of_chars.times(mean_or_upper(chars, quantile)),
                prefill_ms_of_tokens=shape.prefill_ms.times(mean_or_upper(prefills, quantile)),
                tpot_ms=mean_or_upper(decoded, quantile),
                answer_tokens=min(MAX_ANSWER_TOKENS, math.ceil(mean_or_upper(ended, quantile))),
                thinking_tokens=mean_or_upper(thought, quantile),
            )
            for quantile in (self._quantile, None)
        }


_Measured = tuple[float, float, float | None, int | None, int | None]
"""Of an observation: how far its prompt and its prefill are from the calibration's lines, and its
time per token, answer and thinking tokens where they tell anything."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """A calibration's lines, its own observations and their times per token.

    An observation is measured against it once, and not at each of the estimates it is part of.
    """

    tokens_of_chars: ScaledLine
    prefill_ms: ScaledLine
    own: tuple[_Measured, ...]
    tpots: tuple[float, ...]

    @classmethod
    def of(cls, calibration: Sequence[Observation]) -> _Shape:
        tokens = ScaledLine.through([(o.fact_chars, o.prompt_tokens) for o in calibration])
        prefill = ScaledLine.through([(o.prompt_tokens, o.prefill_ms) for o in calibration])
        tpots = [o.decode_ms / o.decoded_tokens for o in calibration if o.decoded_tokens > 0]
        bare = cls(tokens, prefill, (), tuple(tpots))
        return replace(bare, own=tuple(bare.measure(each) for each in calibration))

    def measure(self, seen: Observation) -> _Measured:
        told = seen.decoded_tokens >= MIN_DECODED_TOKENS
        return (
            self.tokens_of_chars.ratio(seen.fact_chars, seen.prompt_tokens),
            self.prefill_ms.ratio(seen.prompt_tokens, seen.prefill_ms),
            seen.decode_ms / seen.decoded_tokens if told else None,
            seen.answer_tokens,
            seen.thinking_tokens,
        )


@dataclass(frozen=True, slots=True)
class ScaledLine:
    """A line, and how much more than it tells was seen: `floor` is the least it counts as."""

    line: Line
    floor: float

    @classmethod
    def through(cls, shape: Sequence[tuple[float, float]]) -> ScaledLine:
        """The line through some points."""
        # Where the line says almost nothing, a millisecond of noise would read as "ten times
        # slower" and scale the long prompts too: never divide by less than half the usual.
        return cls(fit_line(shape), sum(y for _, y in shape) / len(shape) / 2)

    def ratio(self, x: float, y: float) -> float:
        """How much more than the line's is `y`."""
        return y / max(self.line.at(x), self.floor) if self.floor > 0 else 1.0

    def times(self, scale: float) -> Line:
        """The line, that much higher."""
        return Line(self.line.base * scale, self.line.slope * scale)


def mean_or_upper(values: Sequence[float], quantile: float | None) -> float:
    """The mean of `values` where `quantile` is None, else that upper quantile."""
    return fmean(values) if quantile is None else upper_quantile(values, quantile)


def fit_line(points: Sequence[tuple[float, float]]) -> Line:
    """Least squares through `points`, with a slope of at least zero.

    Where all x are the same, a line through the origin: a guess that errs on long prompts' side.
    """
    count = len(points)
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if spread == 0:
        return Line(0.0, mean_y / mean_x) if mean_x else Line(mean_y, 0.0)
    slope = max(0.0, sum((x - mean_x) * (y - mean_y) for x, y in points) / spread)
    return Line(mean_y - slope * mean_x, slope)


def upper_quantile(values: Sequence[float], quantile: float) -> float:
    """The smallest of `values` that at least the share `quantile` of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(quantile * len(ordered)) - 1)]
