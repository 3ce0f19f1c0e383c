"""Warn while a GRPO run is under way when its logged metrics show that it goes wrong.

Penalised policies collapse in few ways: they stop exploring, never stop, give the estimator
groups without spread, or get worse while the reward rises, because wrong answers are paid.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

Sign = Literal[
    "entropy floor", "entropy loss", "no spread", "all truncated", "wrong paid", "accuracy lost"
]
LogRow = Mapping[str, Any]

# A policy that is always right has groups without spread; some penalties pay wrong by design.
ENDS_NO_RUN: frozenset[Sign] = frozenset({"no spread", "wrong paid"})


@dataclass(frozen=True, slots=True)
class CollapseLimits:
    """Thresholds of the signs. Single steps are noisy, so means over several are compared."""

    entropy_floor: float = 0.02
    """Least entropy of the policy, in nats a token."""
    entropy_share: float = 0.2
    """Least share of the entropy of the first `steps` steps."""
    zero_spread: float = 0.8
    """Largest share of groups whose rewards are all equal."""
    misranked: float = 0.05
    """Largest share of pairs of a group in which the wrong completion earns more."""
    steps: int = 5
    """Logged steps behind the means of entropy, spread and misranked pairs."""
    baseline: int = 20
    """Logged steps before a loss of accuracy can be told."""
    alarm: float = 8.0
    """Lost accuracy that counts, see `lost_accuracy`; docs/experiments.md has its false alarms."""


def find_signs(
    rows: Sequence[LogRow], limits: CollapseLimits, end: int | None = None
) -> dict[Sign, str]:
    """Signs that show at the newest of the first `end` rows (default: all), each with a message."""
    end = len(rows) if end is None else end
    steps = limits.steps

    def column(key: str, start: int, stop: int) -> list[float]:
        """Values of rows start to stop; empty when the run has no such rows or one lacks it."""
        if start < 0 or stop > end:
            return []
        values = [rows[i].get(key) for i in range(start, stop)]
        return [float(v) for v in values if v is not None] if None not in values else []

    signs: dict[Sign, str] = {}
    if entropies := column("entropy", end - steps, end):
        entropy = fmean(entropies)
        start = fmean(column("entropy", 0, steps) or entropies)
        if entropy < limits.entropy_floor:
            signs["entropy floor"] = (
                f"entropy {entropy:.3f} is under {limits.entropy_floor}: the policy hardly "
                "explores; lower the learning rate, raise the temperature or epsilon_high"
            )
        if entropy < limits.entropy_share * start:
            signs["entropy loss"] = (
                f"entropy {entropy:.3f} is under {limits.entropy_share:.0%} of its start, "
                f"{start:.3f}: lower the learning rate or raise epsilon_high"
            )
    if spreads := column("frac_reward_zero_std", end - steps, end):
        share = fmean(spreads)
        if share > limits.zero_spread:
            signs["no spread"] = (
                f"{share:.0%} of groups have equal rewards and teach nothing: choose harder "
                "prompts, more generations or a higher temperature"
            )
    if column("completions/clipped_ratio", end - 1, end) == [1.0]:
        signs["all truncated"] = (
            "every completion was cut at the limit: raise max_thinking_tokens or warm up longer"
        )
    # A step whose groups are all right or all wrong has no pairs.
    shares = [row["misranked"] for row in rows[max(0, end - steps) : end] if "misranked" in row]
    if end >= steps and shares and fmean(shares) > limits.misranked:
        signs["wrong paid"] = (
            f"in {fmean(shares):.0%} of pairs of a group the wrong completion earns more than the "
            "right one: lower the penalty's weight, or take one that ranks right answers first"
        )
    accuracies = column("exact", 0, end)
    if lost_accuracy(accuracies, limits) > limits.alarm:
        signs["accuracy lost"] = (
            f"exact accuracy {fmean(accuracies[-steps:]):.2f} after {fmean(accuracies):.2f} is no "
            "chance: lower the penalty's weight or the learning rate, or set a guard"
        )
    return signs


def lost_accuracy(accuracies: Sequence[float], limits: CollapseLimits) -> float:
    """How far the newest steps lie below the run's accuracy, in deviations of single steps.

    One-sided CUSUM (Page 1954): every step from `baseline` on adds (mean - accuracy) / deviation -
    0.5, with mean and deviation of the steps before it. At most twice `alarm`: an episode ends.
    """
    total = mean = squares = 0.0
    for count, accuracy in enumerate(accuracies):
        if count >= limits.baseline:
            deviation = max(math.sqrt(squares / (count - 1)), 0.01)  # logs may be constant
            below = (mean - accuracy) / deviation - 0.5
            total = min(max(total + below, 0.0), 2 * limits.alarm)
        change = accuracy - mean
        mean += change / (count + 1)
        squares += change * (accuracy - mean)
    return total


class CollapseWatch(TrainerCallback):
    """Logs a warning when a sign begins to show, and ends the run if asked to.

    It reads the trainer's own log history, which checkpoints keep: a resumed run neither repeats
    a warning nor forgets the entropy it started with.

    Attributes:
        counts: warnings so far in this process, by sign.
        stopped: whether this callback ended the run.
    """

    def __init__(self, limits: CollapseLimits | None = None, *, stop: bool = False) -> None:
        self.limits = limits or CollapseLimits()
        self.stop = stop
        self.counts: Counter[Sign] = Counter()
        self.stopped = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> TrainerControl:
        """Check the newest training step; rows of an evaluation or of the run's end don't count."""
        if not logs or "reward" not in logs:
            return control
        rows = [row for row in state.log_history if "reward" in row]
        before = find_signs(rows, self.limits, len(rows) - 1)
        for sign, message in find_signs(rows, self.limits).items():
            if sign in before:
                continue
            self.counts[sign] += 1
            if state.is_world_process_zero:
                logger.warning("step %d, %s: %s", state.global_step, sign, message)
            if self.stop and sign not in ENDS_NO_RUN:
                # Every process sees the same averaged logs, so all of them stop together.
                self.stopped = control.should_training_stop = control.should_save = True
        return control
