"""Forecasts from the measured speed of the workers: a job's duration and thinking budget."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Sequence

from curt.artifact import Manifest
from curt.engines.budget import ENOUGH, SpeedEstimator, allowed_thinking_tokens
from curt.engines.protocol import Generation
from serve.pool.job import Job
from serve.pool.schedule import TARGET_UTILISATION, Demand, shared_room_s
from serve.pool.shares import Shares


class Forecast:
    """Estimates learned from the workers, applied to one model's jobs."""

    def __init__(self, manifest: Manifest, margin_ms: float) -> None:
        """`margin_ms` of every deadline is kept back for the front."""
        self.estimator = SpeedEstimator()
        self._manifest = manifest
        self._margin_ms = margin_ms
        self.shares = Shares()
        self._unhurried: deque[int] = deque(maxlen=200)  # thinking tokens where all were allowed
        self.usual_thinking = 0
        """Thinking tokens that half of the requests take where they may take all that the model
        was trained on; 0 until enough were seen."""

    def note_thinking(self, generation: Generation, allowed: int) -> None:
        """Learn how much the model thinks, from a request that was allowed all there is.

        Others tell of the load or of their clients, who could make a little seem usual.
        """
        if allowed >= self._manifest.max_thinking_tokens and generation.finish == "stop":
            self._unhurried.append(generation.thinking_tokens)

    def refresh(self) -> None:
        """Compute the estimates now, so that the next request finds them made."""
        now_s = time.monotonic()
        self.estimator.estimates(now_s)
        self.estimator.average(now_s)
        if len(self._unhurried) >= ENOUGH:
            self.usual_thinking = math.ceil(statistics.median(self._unhurried))

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

    def least_possible_s(self, prompt_tokens: int) -> float:
        """The time a job takes on an idle machine with zero thinking: it can't be done sooner."""
        work_ms = self.estimator.as_calibrated().zero_thinking_ms(prompt_tokens)
        return (work_ms + self._margin_ms) / 1e3

    def allow_thinking(
        self,
        job: Job,
        demand: Demand,
        prompt_tokens: int,
        waiting: Sequence[Demand],
        workers: int,
        now_s: float,
    ) -> int:
        """Thinking tokens for a job about to run, given the jobs that wait behind it."""
        usual_s = self.hold_s(demand, self._manifest.max_thinking_tokens, now_s)
        shared_s = shared_room_s(
            now_s,
            demand,
            waiting,
            workers,
            self.shares.per_s(job.client, now_s),
            usual_s,
            self.shares.allot(job, TARGET_UTILISATION * workers, usual_s, now_s),
        )
        alone = self.allow_alone(demand, prompt_tokens, now_s)
        return int(min(alone, shared_s * 1e3 / self.estimator.average(now_s).tpot_ms))

    def allow_alone(self, demand: Demand, prompt_tokens: int, now_s: float) -> int:
        """Thinking tokens that its own deadline leaves to a job that starts now."""
        estimates = self.estimator.estimates(now_s)
        allowed = allowed_thinking_tokens(
            (demand.deadline_s - now_s) * 1e3,
            prompt_tokens,
            estimates.answer_tokens,
            estimates,
            self._margin_ms,
            self._manifest.max_thinking_tokens,
        )
        return allowed or 0  # None where it was admitted with hardly any time to spare

    def hold_s(self, demand: Demand, allowed: int, now_s: float) -> float:
        """How long a job that may think `allowed` tokens is expected to hold a worker.

        The model may end its thinking before the limit, so it is expected to think no longer than
        it does on average.
        """
        average = self.estimator.average(now_s)
        return demand.work_s + min(allowed, average.thinking_tokens) * average.tpot_ms / 1e3
