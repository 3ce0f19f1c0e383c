from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest

from train.runs.progress import ProgressBar, StopCleanly


@pytest.fixture
def stop():
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    callback = StopCleanly()
    callback.on_train_begin(None, None, None)
    yield callback
    for number, handler in kept.items():
        signal.signal(number, handler)


def make_control():
    return SimpleNamespace(should_save=False, should_training_stop=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(stop, number):
    before = stop.on_step_end(None, None, make_control())
    assert not before.should_training_stop
    os.kill(os.getpid(), number)
    after = stop.on_step_end(None, None, make_control())
    assert after.should_training_stop
    assert after.should_save
    assert stop.stopped


def test_a_second_ctrl_c_ends_it_at_once(stop):
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_the_bar_goes_on_from_a_resumed_step_and_shows_what_matters(capsys):
    bar = ProgressBar("GRPO")
    state = SimpleNamespace(max_steps=10, global_step=4, is_world_process_zero=True)
    bar.on_train_begin(None, state, None)
    bar.on_log(None, state, None, logs={"exact": 0.5, "thinking_tokens": "41.2", "other": 1.0})
    state.global_step = 5
    bar.on_step_end(None, state, None)
    bar.on_train_end(None, state, None)
    shown = capsys.readouterr().err
    assert "5/10" in shown
    assert "exact=0.5" in shown
    assert "think=41.2" in shown
    assert "other" not in shown
