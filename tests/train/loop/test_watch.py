from __future__ import annotations

import logging
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import DefaultFlowCallback, TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler

from train.loop.watch import CollapseLimits, CollapseWatch, find_signs, lost_accuracy

DEMO = [
    0.26, 0.60, 0.25, 0.52, 0.41, 0.41, 0.49, 0.51, 0.31, 0.66, 0.62, 0.70, 0.82, 0.62, 0.52,
    0.47, 0.38, 0.51, 0.62, 0.50, 0.39, 0.43, 0.45, 0.36, 0.35, 0.46, 0.61, 0.73, 0.44, 0.64,
    0.34, 0.65, 0.56, 0.56, 0.64, 0.35, 0.73, 0.47, 0.68, 0.44, 0.43, 0.57, 0.51, 0.56, 0.45,
    0.43, 0.32, 0.46, 0.70, 0.34, 0.35, 0.64, 0.40, 0.49, 0.54, 0.49, 0.64, 0.17, 0.64, 0.59,
]  # fmt: skip
SHORT = CollapseLimits(steps=2, baseline=4)


def row(step, **changes):
    """A healthy logged step."""
    return {
        "step": step,
        "reward": 0.7,
        "exact": 0.6,
        "thinking_tokens": 60.0,
        "entropy": 0.4,
        "frac_reward_zero_std": 0.3,
        "completions/clipped_ratio": 0.02,
        "misranked": 0.0,
        **{key.replace("clipped", "completions/clipped"): v for key, v in changes.items()},
    }


def run_of(count, **columns):
    """Rows whose named columns follow the given values; the last value stays."""
    return [
        row(step, **{key: values[min(step, len(values)) - 1] for key, values in columns.items()})
        for step in range(1, count + 1)
    ]


def find_collapse(rows, limits=None):
    """Step, sign and message of the first step of every episode of a sign."""
    limits = limits or CollapseLimits()
    episodes, before = [], {}
    for end in range(1, len(rows) + 1):
        now = find_signs(rows, limits, end)
        step = rows[end - 1]["step"]
        episodes += [(step, sign, said) for sign, said in now.items() if sign not in before]
        before = now
    return episodes


def found(rows, limits=SHORT):
    return [(step, sign) for step, sign, _ in find_collapse(rows, limits)]


def test_a_healthy_run_shows_no_sign():
    assert found(run_of(60)) == []
    assert find_collapse(run_of(60)) == []


def test_a_run_that_learns_and_shortens_shows_no_sign():
    rows = [
        row(
            s, reward=0.5 + s / 200, exact=0.5 + s / 400, thinking_tokens=80 - s / 2, entropy=20 / s
        )
        for s in range(40, 100)
    ]
    assert find_collapse(rows) == []


def test_entropy_under_the_floor():
    rows = run_of(8, entropy=[0.05, 0.05, 0.05, 0.015])
    assert found(rows) == [(5, "entropy floor")]  # the mean of two, .015, at step 5


def test_entropy_far_under_its_start():
    rows = run_of(8, entropy=[1.0, 1.0, 0.5, 0.1])
    assert found(rows) == [(5, "entropy loss")]


def test_one_step_without_entropy_is_no_sign():
    assert found(run_of(8, entropy=[0.4, 0.4, 0.0, 0.4])) == []


def test_groups_without_spread():
    rows = run_of(8, frac_reward_zero_std=[0.5, 1.0, 0.5, 1.0, 1.0, 0.5])
    assert found(rows) == [(5, "no spread")]


def test_every_completion_truncated():
    assert found(run_of(6, clipped_ratio=[0.9, 0.98, 1.0])) == [(3, "all truncated")]


def test_wrong_answers_that_earn_more_than_right_ones():
    rows = run_of(8, misranked=[0.0, 0.06, 0.06])
    assert found(rows) == [(3, "wrong paid")]
    for step in rows:
        del step["misranked"]  # all right or all wrong
    assert found(rows) == []


def noisy_steps(rng, accuracy, count, groups=8):
    """Accuracies of steps of `groups` groups of as many, on prompts of all difficulties."""
    return [
        fmean(
            rng.random() < chance
            for chance in (rng.betavariate(2 * accuracy, 2 - 2 * accuracy) for _ in range(groups))
            for _ in range(groups)
        )
        for _ in range(count)
    ]


def run_with(accuracies, **columns):
    rows = run_of(len(accuracies), **columns)
    return [logged | {"exact": exact} for logged, exact in zip(rows, accuracies, strict=True)]


@pytest.mark.parametrize("seed", range(20))
def test_a_planted_collapse_is_told_within_ten_steps(seed):
    """Accuracy falls by half at step 41 while the reward rises."""
    rng = random.Random(seed)
    accuracies = noisy_steps(rng, 0.65, 40) + noisy_steps(rng, 0.32, 10)
    ((step, sign, message),) = find_collapse(run_with(accuracies, reward=[0.5] * 40 + [0.8]))
    assert (sign, 40 < step <= 50) == ("accuracy lost", True)
    assert "exact accuracy 0." in message


def test_most_healthy_runs_give_no_alarm():
    """Unchanging and rising accuracy, 64 completions a step, thinking that shortens."""
    alarmed = 0
    for seed in range(20):
        rng = random.Random(seed)
        steady = noisy_steps(rng, 0.65, 200)
        rising = [noisy_steps(rng, 0.55 + step / 2000, 1)[0] for step in range(200)]
        for accuracies in (steady, rising):
            alarmed += bool(find_signs(run_with(accuracies), CollapseLimits(), 200))
            alarmed += lost_accuracy(accuracies, CollapseLimits()) > CollapseLimits().alarm
    assert alarmed <= 1


def test_a_fall_of_nine_points_is_told_in_large_batches():
    told = 0
    for seed in range(10):
        rng = random.Random(seed)
        accuracies = noisy_steps(rng, 0.65, 40, 16) + noisy_steps(rng, 0.56, 40, 16)
        told += any(step > 40 for step, _ in found(run_with(accuracies), CollapseLimits()))
    assert told >= 7


def test_accuracy_that_comes_back_ends_the_episode():
    accuracies = [0.6, 0.64] * 10 + [0.3] * 6 + [0.6, 0.64] * 20
    signs = found(run_with(accuracies), CollapseLimits())
    assert signs == [(21, "accuracy lost")]
    assert find_signs(run_with(accuracies), CollapseLimits()) == {}


def test_demos_own_log_shows_no_sign():
    """Exact accuracies of a whole run of the demo, 80 completions a step."""
    assert find_collapse(run_with(DEMO)) == []


def test_an_episode_is_warned_of_once_and_a_new_one_again():
    clipped = [1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 0.2]
    assert found(run_of(9, clipped_ratio=clipped)) == [(1, "all truncated"), (5, "all truncated")]


def test_messages_name_the_figure_and_a_remedy():
    ((_, _, message),) = find_collapse(run_of(8, entropy=[0.05, 0.05, 0.05, 0.015]), SHORT)
    assert "0.015 is under 0.02" in message
    assert "learning rate" in message


def test_a_metric_that_is_not_logged_shows_nothing():
    rows = [{"step": s, "reward": 0.5} for s in range(1, 60)]
    rows += [{"step": s, "reward": 0.5, "entropy": None} for s in range(60, 70)]
    assert find_collapse(rows) == []


shares = st.floats(0, 1)


@given(
    st.lists(st.tuples(shares, shares, st.floats(0, 3), shares, st.sampled_from([0.5, 1.0]))),
    st.integers(0, 40),
)
def test_what_was_found_so_far_does_not_change_later(values, cut):
    rows = [
        row(i, reward=r, exact=e, thinking_tokens=t, entropy=h, clipped_ratio=c)
        for i, (r, e, t, h, c) in enumerate(values, 1)
    ]
    early, whole = found(rows[:cut]), found(rows)
    assert early == [w for w in whole if w[0] <= cut]
    assert len(set(whole)) == len(whole)


def drive(callback, rows, state=None):
    """Log rows as transformers' Trainer does: through its handler, after keeping them."""
    handler = CallbackHandler([DefaultFlowCallback(), callback], None, None, None, None)
    state = state or TrainerState()
    state.is_world_process_zero = True
    control = TrainerControl()
    for logged in rows:
        state.global_step = logged["step"]
        state.log_history.append(dict(logged))
        control = handler.on_log(
            None, state, control, {k: v for k, v in logged.items() if k != "step"}
        )
        if control.should_training_stop:
            break
    return state, control


@pytest.fixture(autouse=True)
def warnings_only(caplog):
    caplog.set_level(logging.WARNING)


def collapsing_run():
    return run_of(12, entropy=[0.4, 0.4, 0.4, 0.1, 0.05, 0.01], clipped_ratio=[0.1] * 8 + [1.0])


def test_the_callback_warns_as_the_detector_finds(caplog):
    callback = CollapseWatch(SHORT)
    state, control = drive(callback, collapsing_run())
    expected = found(collapsing_run())
    assert [sign for _, sign in expected] == ["entropy loss", "entropy floor", "all truncated"]
    assert callback.counts == {sign: 1 for _, sign in expected}
    said = [record.getMessage() for record in caplog.records]
    assert [m.split(":")[0] for m in said] == [f"step {s}, {sign}" for s, sign in expected]
    assert state.global_step == 12
    assert not control.should_training_stop
    assert not callback.stopped


def test_the_callback_ends_the_run_with_a_checkpoint_when_asked_to():
    callback = CollapseWatch(SHORT, stop=True)
    state, control = drive(callback, collapsing_run())
    assert state.global_step == found(collapsing_run())[0][0]
    assert control.should_training_stop
    assert control.should_save
    assert callback.stopped


def test_groups_without_spread_end_no_run():
    callback = CollapseWatch(SHORT, stop=True)
    _, control = drive(callback, run_of(8, frac_reward_zero_std=[0.5, 1.0]))
    assert callback.counts == {"no spread": 1}
    assert not control.should_training_stop


def test_a_resumed_run_neither_repeats_nor_forgets(tmp_path):
    rows = collapsing_run()
    first, second = CollapseWatch(SHORT), CollapseWatch(SHORT)
    state, _ = drive(first, rows[:7])
    state.save_to_json(tmp_path / "trainer_state.json")
    drive(second, rows[7:], TrainerState.load_from_json(tmp_path / "trainer_state.json"))
    assert first.counts == {"entropy loss": 1, "entropy floor": 1}
    assert second.counts == {"all truncated": 1}


def test_rows_of_an_evaluation_and_of_the_end_do_not_count():
    callback = CollapseWatch(SHORT)
    rows = run_of(6, clipped_ratio=[1.0])
    between = {"step": 3, "eval_reward": 0.5, "eval_entropy": 0.0}
    drive(callback, [*rows[:3], between, *rows[3:], {"step": 6, "train_runtime": 9.0}])
    assert callback.counts == {"all truncated": 1}


def test_other_processes_count_without_a_word(caplog):
    callback = CollapseWatch(SHORT)
    state = TrainerState(is_world_process_zero=False, global_step=1, log_history=run_of(1))
    state.log_history[0]["completions/clipped_ratio"] = 1.0
    callback.on_log(None, state, TrainerControl(), logs={"reward": 0.7})
    assert callback.counts == {"all truncated": 1}
    assert not caplog.records
