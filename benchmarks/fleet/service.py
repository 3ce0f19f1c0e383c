"""How long a request takes in each part of a server, from measured replies.

A simulated request is a measured reply drawn again: its fact's length, thinking, prefill, decode
and time outside the worker. Where it may think less than the reply did, its decode is shorter by
the time per token, the slope of the line  decode = answer + token · thinking tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from benchmarks.client import Exchange
from curt.config import FrozenModel
from curt.dialogue import MAX_ANSWER_TOKENS

ENOUGH = 20  # replies that a fit needs


class Sample(FrozenModel):
    """One measured reply of the model. Times in milliseconds.

    `outside_ms` is what the client waited without the request being queued or with a worker.
    """

    chars: int = Field(ge=1)
    thinking_tokens: int = Field(ge=0)
    prefill_ms: float = Field(ge=0)
    decode_ms: float = Field(gt=0)
    outside_ms: float = Field(ge=0)


class Service(FrozenModel):
    """Service times of one worker: all that the simulation knows of model and machine."""

    answer_ms: float = Field(gt=0)
    token_ms: float = Field(gt=0)
    max_thinking_tokens: int = Field(ge=0)
    samples: tuple[Sample, ...] = Field(min_length=1)

    @property
    def answer_tokens(self) -> int:
        """Tokens of an answer, without the end of thinking, as the fitted line implies."""
        return max(1, min(MAX_ANSWER_TOKENS, round(self.answer_ms / self.token_ms) - 1))

    @property
    def mean_ms(self) -> float:
        """Mean time of a request in a worker, its thinking not cut."""
        return sum(s.prefill_ms + s.decode_ms for s in self.samples) / len(self.samples)

    def decode_ms(self, sample: Sample, thinking_tokens: int) -> float:
        """Time to think and answer where the sample's thinking ends after so many tokens."""
        saved_ms = self.token_ms * (sample.thinking_tokens - thinking_tokens)
        return max(0.2 * sample.decode_ms, sample.decode_ms - saved_ms)


def read_samples(exchanges: Sequence[Exchange], facts: Sequence[str]) -> list[Sample]:
    """What whole answers took. One that a deadline cut does not tell how long it would have been.

    The n-th request was about the n-th fact, begun again at the end of the list.
    """
    samples = []
    for exchange in exchanges:
        reply = exchange.answer
        if not exchange.by_model or reply["thinking"]["cut"]:
            continue
        times = reply["timings_ms"]
        known_ms = times["queue"] + times["prefill"] + times["decode"]
        samples.append(
            Sample(
                chars=len(facts[exchange.index % len(facts)]),
                thinking_tokens=reply["thinking"]["tokens"],
                prefill_ms=times["prefill"],
                decode_ms=times["decode"],
                outside_ms=max(0.0, exchange.latency_ms - known_ms),
            )
        )
    return samples


def fit_service(samples: Sequence[Sample], max_thinking_tokens: int) -> Service:
    """Service times from measured replies; Theil and Sen's line, which stalls do not tilt.

    Raises ValueError when there are too few replies, or when they do not tell what a token takes.
    """
    from scipy.stats import theilslopes

    if len(samples) < ENOUGH:
        raise ValueError(f"{len(samples)} replies of the model: measure {ENOUGH} or more")
    thinking = [s.thinking_tokens for s in samples]
    if max(thinking) - min(thinking) < 4:
        raise ValueError("all replies think equally long: ask about more cases")
    token_ms, answer_ms, *_ = theilslopes([s.decode_ms for s in samples], thinking, method="joint")
    if token_ms <= 0 or answer_ms <= 0:
        raise ValueError("longer thinking took no longer: measure more, on a quieter machine")
    return Service(
        answer_ms=float(answer_ms),
        token_ms=float(token_ms),
        max_thinking_tokens=max_thinking_tokens,
        samples=tuple(samples),
    )
