"""Forecasts from the measured speed of the workers: a job's duration and thinking budget."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence

from curt.artifact import Manifest
from curt.engines.budget import SpeedEstimator, allowed_thinking_tokens
from serve.pool.schedule import Demand, shared_room_s

ARRIVAL_WINDOW_S = 5.0


class Forecast:
    """Estimates learned from the workers, applied to one model's jobs."""

    def __init__(self, manifest: Manifest, margin_ms: float) -> None:
        """`margin_ms` of every deadline is kept back for the front."""
        self.estimator = SpeedEstimator()
        self._manifest = manifest
        self._margin_ms = margin_ms
        self._arrivals: deque[float] = deque(maxlen=10_000)

    def note_arrival(self, now_s: float) -> None:
        """Count a request, admitted or not."""
        self._arrivals.append(now_s)

    def refresh(self) -> None:
        """Compute the estimates now, so that the next request finds them made."""
        now_s = time.monotonic()
        self.estimator.estimates(now_s)
        self.estimator.average(now_s)

    def prompt_tokens(self, fact_chars: int, now_s: float) -> int:
        """A cautious estimate of a prompt's length from its characters: no tokenizer runs here."""
        line = self.estimator.estimates(now_s).tokens_of_chars
        clipped = math.ceil(max(0.0, line.base)) + self._manifest.max_fact_tokens
        return min(math.ceil(line.at(fact_chars)), clipped)

    def demand(self, deadline_s: float, prompt_tokens: int, now_s: float) -> Demand:
        """The time a job needs with zero thinking, by a cautious estimate and on average."""
        least_ms = self.estimator.estimates(now_s).zero_thinking_ms(prompt_tokens)
        work_ms = self.estimator.average(now_s).zero_thinking_ms(prompt_tokens)
        return Demand(deadline_s, (least_ms + self._margin_ms) / 1e3, work_ms / 1e3)

    def allow_thinking(
        self,
        demand: Demand,
        prompt_tokens: int,
        waiting: Sequence[Demand],
        workers: int,
        now_s: float,
    ) -> int:
        """Thinking tokens for a job about to run, given the jobs that wait behind it."""
        estimates = self.estimator.estimates(now_s)
        usual_s = self.hold_s(demand, self._manifest.max_thinking_tokens, now_s)
        arrivals_per_s = self._arrivals_per_s(now_s)
        shared_s = shared_room_s(now_s, demand, waiting, workers, arrivals_per_s, usual_s)
        allowed = allowed_thinking_tokens(
            (demand.deadline_s - now_s) * 1e3,
            prompt_tokens,
            estimates.answer_tokens,
            estimates,
            self._margin_ms,
            self._manifest.max_thinking_tokens,
        )
        if allowed is None:  # admitted with hardly any time to spare
            return 0
        return int(min(allowed, shared_s * 1e3 / self.estimator.average(now_s).tpot_ms))

    def hold_s(self, demand: Demand, allowed: int, now_s: float) -> float:
        """How long a job that may think `allowed` tokens is expected to hold a worker.

        The model may end its thinking before the limit, so it is expected to think no longer than
        it does on average.
        """
        average = self.estimator.average(now_s)
        return demand.work_s + min(allowed, average.thinking_tokens) * average.tpot_ms / 1e3

    def _arrivals_per_s(self, now_s: float) -> float:
        while self._arrivals and self._arrivals[0] < now_s - ARRIVAL_WINDOW_S:
            self._arrivals.popleft()
        # n arrivals have n - 1 intervals between them.
        return max(0, len(self._arrivals) - 1) / ARRIVAL_WINDOW_S
