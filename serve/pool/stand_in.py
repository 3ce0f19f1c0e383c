"""The last rung of the deadline ladder: a classifier's verdict where the model's does not come.

It runs in the front, in about half a millisecond, because it is wanted exactly when no worker has
the time. What it gives is flagged as degraded and counts as a miss.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from curt.engines.protocol import Generation
from serve.pool.job import Job
from serve.served import DegradedReason, Served

if TYPE_CHECKING:
    from curt.classifier.model import Prediction

LEAST_S = 0.004  # classifier, reply and socket: who comes with less is refused

# Why the model did not answer, as clients read it, by the reason of the refusal it replaces.
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


class Classifier(Protocol):
    """What is needed of `curt.classifier.model.Classifier`."""

    def predict(self, fact: str) -> Prediction:
        """A verdict; raises ValueError on a fact without a letter or digit."""
        ...


class LastRung:
    """Answers for the model, where a classifier is at hand."""

    def __init__(self, classifier: Classifier | None) -> None:
        self._classifier = classifier

    @property
    def present(self) -> bool:
        """Whether there is a classifier."""
        return self._classifier is not None

    def replace(self, job: Job, reason: str) -> Served | None:
        """An answer to a job the model gives none to, or None where there can't be one.

        There is none without a classifier, nor for a reason that is not about one job (draining,
        starting).
        """
        now_s = time.monotonic()
        answer = self._predict(job.fact) if reason in REASONS else None
        if answer is None:
            return None
        return Served(
            NOTHING,
            thinking_allowed=0,
            stated_budget=0,
            fact_clipped=False,
            queue_ms=(now_s - job.arrived_s) * 1e3,
            fallback=answer,
            unserved=REASONS[reason],
        )

    def complete(self, job: Job, served: Served) -> Served:
        """The same answer, with the classifier's verdict where the model's can't be read.

        However late: a reply goes out in any case.
        """
        if served.degraded_reason is None:
            return served
        return served.with_fallback(self._predict(job.fact))

    def _predict(self, fact: str) -> Prediction | None:
        if self._classifier is None:
            return None
        try:
            return self._classifier.predict(fact)
        except ValueError:  # a fact without a letter or digit has no verdict from here either
            return None
