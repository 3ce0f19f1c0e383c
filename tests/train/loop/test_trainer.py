from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.loop.advantages import estimate
from train.loop.trainer import choose_groups, estimate_chosen, join_batches, keep_groups, keep_rows


def test_groups_with_something_to_learn_come_first_in_order():
    advantages = [[0.0, 0.0], [1.0, -1.0], [0.0, 0.0], [0.5, -0.5]]
    assert choose_groups(advantages, 2) == {1, 3}
    assert choose_groups(advantages, 1) == {1}


def test_groups_without_spread_fill_up_when_there_are_not_enough():
    assert choose_groups([[0.0, 0.0], [1.0, -1.0], [0.0, 0.0]], 2) == {0, 1}


@given(st.lists(st.sampled_from([0.0, 0.3]), min_size=1, max_size=8), st.integers(1, 8))
def test_as_many_groups_as_wanted_or_all(advantages, wanted):
    assert len(choose_groups([[a] for a in advantages], wanted)) == min(wanted, len(advantages))


def test_a_batch_is_scaled_by_what_is_trained_on():
    """The third group, left out, spreads a hundred times as far."""
    rewards = [[1.0, 0.0], [0.5, 0.5], [100.0, 0.0]]
    advantages, kept = estimate_chosen(rewards, partial(estimate, "whitened"), 1)
    assert kept == {0}
    assert advantages == [estimate("whitened", rewards[:1])[0], [0.0, 0.0], [0.0, 0.0]]
    assert advantages[0][0] == pytest.approx(0.707, abs=1e-3)


def test_every_per_completion_tensor_keeps_the_same_rows():
    batch = {
        "completion_ids": torch.arange(8).view(4, 2),
        "advantages": torch.arange(4.0),
        "num_items_in_batch": torch.tensor(8),
    }
    kept = keep_rows(batch, [0, 3])
    assert kept["completion_ids"].tolist() == [[0, 1], [6, 7]]
    assert kept["advantages"].tolist() == [0.0, 3.0]
    assert kept["num_items_in_batch"].item() == 8


def test_a_process_keeps_its_chosen_groups_or_one_that_weighs_nothing():
    batch = {"completion_ids": torch.arange(8).view(4, 2), "completion_mask": torch.ones(4, 2)}
    assert keep_groups(batch, {1}, 2)["completion_ids"].tolist() == [[4, 5], [6, 7]]
    assert keep_groups(batch, {-1, 0, 5}, 2)["completion_ids"].tolist() == [[0, 1], [2, 3]]
    idle = keep_groups(batch, {-1, 2}, 2)
    assert idle["completion_ids"].tolist() == [[0, 1], [2, 3]]
    assert not idle["completion_mask"].any()


def test_batches_of_several_rounds_become_one():
    def batch(prompt, completion):
        rows = {"prompt_ids": [prompt], "completion_ids": [completion]}
        masks = {"completion_mask": [[1] * len(completion)], "prompt_mask": [[1] * len(prompt)]}
        tensors = {key: torch.tensor(value) for key, value in {**rows, **masks}.items()}
        return {**tensors, "num_items_in_batch": torch.tensor(len(completion))}

    joined = join_batches([batch([1, 2], [3, 4, 5]), batch([6], [7])], pad_id=9)
    assert joined["prompt_ids"].tolist() == [[1, 2], [9, 6]]
    assert joined["prompt_mask"].tolist() == [[1, 1], [0, 1]]
    assert joined["completion_ids"].tolist() == [[3, 4, 5], [7, 9, 9]]
    assert joined["completion_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
