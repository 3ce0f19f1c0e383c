"""Warn while a GRPO run is under way when its logged metrics show that it goes wrong.

Penalised policies collapse in few ways: they stop exploring, stop thinking, never stop, give the
estimator groups without spread, or raise the reward while getting worse.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

Sign = Literal[
    "entropy floor", "entropy loss", "no spread", "all truncated", "no thinking", "reward astray"
]
LogRow = Mapping[str, Any]

# Groups without spread waste steps, and a policy that is always right has them too.
HARMLESS: frozenset[Sign] = frozenset({"no spread"})


@dataclass(frozen=True, slots=True)
class CollapseLimits:
    """Thresholds of the signs. Single steps are noisy, so means over several are compared."""

    entropy_floor: float = 0.02
    """Least entropy of the policy, in nats a token."""
    entropy_share: float = 0.2
    """Least share of the entropy of the first `steps` steps."""
    zero_spread: float = 0.8
    """Largest share of groups whose rewards are all equal."""
    thinking_tokens: float = 1.0
    """Thinking shorter than this counts as none."""
    accuracy_fall: float = 0.1
    """Fall of exact accuracy, between the halves of the window, that counts as one."""
    reward_rise: float = 0.02
    """Rise of the reward, between the halves of the window, that counts as one."""
    steps: int = 5
    """Logged steps behind the means of entropy, spread and thinking tokens."""
    window: int = 40
    """Logged steps whose halves are compared. Simulated with 64 completions a step, unchanging
    accuracy falls by 0.1 between halves of 20 in one run of 200 steps out of ten, and by 0.05 in
    nearly every one."""


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

    def rise(key: str) -> float:
        """Mean of the window's newer half minus that of its older one; 0 before a whole window."""
        middle = end - limits.window // 2
        older = column(key, end - limits.window, middle)
        newer = column(key, middle, end)
        return fmean(newer) - fmean(older) if older and newer else 0.0

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
    fall = -rise("exact")
    lengths = column("thinking_tokens", end - steps, end)
    if lengths and fmean(lengths) < limits.thinking_tokens and fall > limits.accuracy_fall:
        signs["no thinking"] = (
            f"thinking fell to {fmean(lengths):.1f} tokens and exact accuracy by {fall:.2f}: "
            "lower the penalty's weight or guard it"
        )
    gain = rise("reward")
    if gain > limits.reward_rise and fall > limits.accuracy_fall:
        signs["reward astray"] = (
            f"the reward rose by {gain:.2f} while exact accuracy fell by {fall:.2f} within "
            f"{limits.window} steps: the penalty or a partial reward outweighs being right"
        )
    return signs


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
            if self.stop and sign not in HARMLESS:
                # Every process sees the same averaged logs, so all of them stop together.
                self.stopped = control.should_training_stop = control.should_save = True
        return control
