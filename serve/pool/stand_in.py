"""A classifier's verdict that stands in where the model gives none in time.

It runs in the front, in about half a millisecond, because it is needed exactly when no worker has
the time. Its answers are flagged as degraded and count as misses.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from curt.engines.protocol import Generation
from serve.pool.job import Job
from serve.served import DegradedReason, Served

if TYPE_CHECKING:
    from curt.classifier.model import Prediction

LEAST_S = 0.004  # for classifier, reply and socket; requests with less time left are refused

# The reason of a refusal, and why the answer that replaces it is degraded, as clients read it.
REASONS: dict[str, DegradedReason] = {
    "deadline_too_short": "deadline",
    "overrun": "deadline",
    "queue_full": "overloaded",
    "overloaded": "overloaded",
    "expired": "overloaded",
    "worker_died": "worker_failed",
    "engine_error": "worker_failed",
}
NOTHING = Generation(
    text="",
    prompt_tokens=0,
    thinking_tokens=0,
    answer_tokens=0,
    thinking_cut=False,
    finish="deadline",
    prefill_ms=0.0,
    decode_ms=0.0,
)


class VerdictSource(Protocol):
    """What is needed of `curt.classifier.model.Classifier`."""

    def predict(self, fact: str) -> Prediction:
        """A verdict; raises ValueError on a fact without a letter or digit."""
        ...


class StandIn:
    """Answers in the model's place, if there is a classifier."""

    def __init__(self, classifier: VerdictSource | None) -> None:
        self._classifier = classifier

    @property
    def present(self) -> bool:
        """Whether there is a classifier."""
        return self._classifier is not None

    def replace(self, job: Job, reason: str) -> Served | None:
        """The classifier's answer to a job that would be refused for `reason`.

        None without a classifier, and for a reason that is not about one job (draining, starting).
        """
        now_s = time.monotonic()
        answer = self._predict(job.fact) if reason in REASONS else None
        if answer is None:
            return None
        return Served(
            NOTHING,
            thinking_allowed=0,
            stated_budget=0,
            queue_ms=(now_s - job.arrived_s) * 1e3,
            fallback=answer,
            unserved=REASONS[reason],
        )

    def complete(self, job: Job, served: Served) -> Served:
        """Add the classifier's verdict to an answer without a full one of the model.

        However late it is: a reply is sent in any case.
        """
        if served.degraded_reason is None:
            return served
        return replace(served, fallback=self._predict(job.fact))

    def _predict(self, fact: str) -> Prediction | None:
        if self._classifier is None:
            return None
        try:
            return self._classifier.predict(fact)
        except ValueError:  # a fact without a letter or digit
            return None
