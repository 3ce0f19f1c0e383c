"""Deadlines into thinking tokens: what a machine's speed leaves for reasoning.

The speed is learned while serving. A calibration at worker start gives the shape (milliseconds
per prompt token, per decoded token); every request then updates an upper quantile of how much
slower than that the machine really is. A promise to one request needs upper quantiles, as one
made on the mean is broken half of the time; the time that a queue of many takes needs means.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from curt.dialogue import MAX_ANSWER_TOKENS

QUANTILE = 0.95
WINDOW = 200  # observations
MAX_AGE_S = 30.0  # older observations tell of another load
FRESH_S = 0.05  # younger estimates are not made anew: at 100 requests a second it would add up
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
class SpeedLine:
    """`base + slope · x`, never below zero and never falling.

    `least` is what it counts as at least when something is compared with it: where it says almost
    nothing, a millisecond of noise would read as "ten times slower".
    """

    base: float
    slope: float
    least: float = 0.0

    def at(self, x: float) -> float:
        """The value at `x`."""
        return max(0.0, self.base + self.slope * x)

    def ratio(self, x: float, y: float) -> float:
        """How many times the line's value `y` is."""
        return y / max(self.at(x), self.least) if self.least > 0 else 1.0

    def times(self, scale: float) -> SpeedLine:
        """The line, that many times higher."""
        return SpeedLine(self.base * scale, self.slope * scale)


@dataclass(frozen=True, slots=True)
class Estimates:
    """What the machine can be relied on to do at this moment, or what it does on average.

    `tokens_of_chars` gives prompt tokens for a fact's characters, `prefill_ms_of_tokens` the
    prefill of a prompt; `tpot_ms` is the time per output token, `answer_tokens` the length of
    an answer and `thinking_tokens` that of the thinking before it, as the model ended it.
    """

    tokens_of_chars: SpeedLine
    prefill_ms_of_tokens: SpeedLine
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


class _Measured(NamedTuple):
    """An observation beside the calibration: None where it tells nothing of a figure."""

    tokens_ratio: float
    prefill_ratio: float
    tpot_ms: float | None
    answer_tokens: int | None
    thinking_tokens: int | None


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
        self._quantile, self._max_age_s = quantile, max_age_s
        self._calibration: deque[Observation] = deque(maxlen=32)
        self._tokens_of_chars = self._prefill_ms_of_tokens = SpeedLine(0.0, 0.0)  # as calibrated
        self._recent: deque[tuple[float, Observation]] = deque(maxlen=WINDOW)
        # Measured once, not anew for each of the estimates they are part of.
        self._recent_measured: deque[_Measured] = deque(maxlen=WINDOW)
        self._cached: tuple[Estimates, Estimates] | None = None  # upper quantile and mean
        self._cached_until_s = self._fresh_until_s = -math.inf
        self._learned = False  # something since the cached were made
        self.calibrate(calibration)

    def calibrate(self, observations: Iterable[Observation]) -> None:
        """Add calibration runs, as of one more worker."""
        self._calibration.extend(observations)
        self._measure_anew()

    def observe(self, observation: Observation, now_s: float) -> None:
        """Learn from a completed generation at the monotonic instant `now_s`."""
        self._recent.append((now_s, observation))
        self._recent_measured.append(self._measure(observation))
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
        return self._at(now_s)[0]

    def average(self, now_s: float) -> Estimates:
        """What is to be expected of many at `now_s`. Raises ValueError before any calibration."""
        return self._at(now_s)[1]

    def as_calibrated(self) -> Estimates:
        """What the machine did on average before there was a load, by the calibration alone."""
        return self._summarise([self._measure(each) for each in self._calibration], fmean)

    def _measure_anew(self) -> None:
        self._cached = None
        if self._calibration:
            self._tokens_of_chars = fit_line(
                [(each.fact_chars, each.prompt_tokens) for each in self._calibration]
            )
            self._prefill_ms_of_tokens = fit_line(
                [(each.prompt_tokens, each.prefill_ms) for each in self._calibration]
            )
        self._recent_measured.clear()
        self._recent_measured.extend(self._measure(each) for _, each in self._recent)

    def _measure(self, seen: Observation) -> _Measured:
        told = seen.decoded_tokens >= MIN_DECODED_TOKENS
        return _Measured(
            self._tokens_of_chars.ratio(seen.fact_chars, seen.prompt_tokens),
            self._prefill_ms_of_tokens.ratio(seen.prompt_tokens, seen.prefill_ms),
            seen.decode_ms / seen.decoded_tokens if told else None,
            seen.answer_tokens,
            seen.thinking_tokens,
        )

    def _at(self, now_s: float) -> tuple[Estimates, Estimates]:
        if not self._calibration:
            raise ValueError("no estimate without a calibration: call calibrate() first")
        stale = now_s >= self._cached_until_s or (self._learned and now_s >= self._fresh_until_s)
        if self._cached is None or stale:
            while self._recent and now_s - self._recent[0][0] >= self._max_age_s:
                self._recent.popleft()
                self._recent_measured.popleft()
            seen = list(self._recent_measured)
            if len(seen) < ENOUGH:
                seen = [*map(self._measure, self._calibration), *seen]
            upper = self._summarise(seen, lambda values: upper_quantile(values, self._quantile))
            self._cached = upper, self._summarise(seen, fmean)
            self._learned, self._fresh_until_s = False, now_s + FRESH_S
            oldest_s = self._recent[0][0] if self._recent else math.inf
            self._cached_until_s = oldest_s + self._max_age_s
        return self._cached

    def _summarise(
        self, seen: Sequence[_Measured], summary: Callable[[Sequence[float]], float]
    ) -> Estimates:
        """Estimates from each figure's `summary` over what was seen."""
        tpots = [each.tpot_ms for each in seen if each.tpot_ms is not None]
        # Where all were too short to tell, the calibration has to do.
        tpots = tpots or [
            each.decode_ms / each.decoded_tokens
            for each in self._calibration
            if each.decoded_tokens > 0
        ]
        answers = [each.answer_tokens for each in seen if each.answer_tokens is not None]
        thoughts = [each.thinking_tokens for each in seen if each.thinking_tokens is not None]
        answer_tokens = math.ceil(summary(answers or [MAX_ANSWER_TOKENS]))
        return Estimates(
            tokens_of_chars=self._tokens_of_chars.times(summary([e.tokens_ratio for e in seen])),
            prefill_ms_of_tokens=self._prefill_ms_of_tokens.times(
                summary([each.prefill_ratio for each in seen])
            ),
            tpot_ms=summary(tpots),
            answer_tokens=min(MAX_ANSWER_TOKENS, answer_tokens),
            thinking_tokens=summary(thoughts or [0]),
        )


def fit_line(points: Sequence[tuple[float, float]]) -> SpeedLine:
    """Least squares through `points`, with a slope of at least zero.

    Where all x are the same, a line through the origin: a guess that errs on long prompts' side.
    It counts as half the mean of the points at least.
    """
    count = len(points)
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    least = mean_y / 2
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if spread == 0:
        return SpeedLine(0.0, mean_y / mean_x, least) if mean_x else SpeedLine(mean_y, 0.0, least)
    slope = max(0.0, sum((x - mean_x) * (y - mean_y) for x, y in points) / spread)
    return SpeedLine(mean_y - slope * mean_x, slope, least)


def upper_quantile(values: Sequence[float], quantile: float) -> float:
    """The smallest of `values` that at least the share `quantile` of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(quantile * len(ordered)) - 1)]
