"""A progress bar with the main metrics, and a Ctrl-C that saves a checkpoint first."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from train.runs.processes import any_process

SHOWN = {
    "loss": "loss",
    "exact": "exact",
    "thinking_tokens": "think",
    "reward": "reward",
    "entropy": "entropy",
    "penalty_weight": "weight",
    "eval_correct": "dev",
}


class ProgressBar(TrainerCallback):
    """One bar over optimiser steps with the newest metrics behind it."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.bar: tqdm[Any] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.description,
            unit="step",
            mininterval=1,
            dynamic_ncols=True,
            disable=not state.is_world_process_zero,
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        assert self.bar is not None
        self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if self.bar is not None and logs:
            shown = {label: logs[key] for key, label in SHOWN.items() if logs.get(key) is not None}
            self.bar.set_postfix({k: f"{float(v):.3g}" for k, v in shown.items()})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        assert self.bar is not None
        self.bar.close()


class StopCleanly(TrainerCallback):
    """The first Ctrl-C or SIGTERM ends the run after the current step, with a checkpoint.

    A second signal ends the run at once, but not under a launcher: it passes every signal on, so
    one Ctrl-C in a terminal reaches a process twice. The launcher kills processes that take longer
    than half a minute.
    """

    def __init__(self) -> None:
        self.asked = False  # by a signal to this process
        self.stopped = False  # agreed by all
        self.previous: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self._stop)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.asked and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
        self.asked = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        # A signal reaches processes at different moments; they must agree on the last step.
        self.stopped = any_process(self.asked)
        if self.stopped:
            control.should_save = True
            control.should_training_stop = True
        return control
