"""Branches see the text they share and themselves; what a model makes of it is in test_loss.py."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from train.branches import branch_mask, pack_branches


def test_packing_worked_by_hand():
    packed = pack_branches([[5, 6], [5]], [[[7, 8, 9], [], [3, 4]], [[7]]], pad_id=0)
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9, 3, 4], [5, 7, 0, 0, 0, 0, 0]]
    assert packed.position_ids[0].tolist() == [0, 1, 2, 3, 4, 2, 3]
    assert packed.starts == [[2, 5, 5], [8]]
    sees = packed.attention_mask[0, 0].int().tolist()
    assert sees[4] == [1, 1, 1, 1, 1, 0, 0]
    assert sees[6] == [1, 1, 0, 0, 0, 1, 1]


@given(branches=st.lists(st.integers(-1, 4), min_size=1, max_size=12))
def test_a_token_sees_the_facts_and_its_own_branch_and_no_future(branches):
    mask = branch_mask(torch.tensor([branches]))[0, 0]
    for query, own in enumerate(branches):
        assert mask[query, query]  # never an empty row, whose softmax is not a number
        for key, other in enumerate(branches):
            assert bool(mask[query, key]) == (key <= query and other in (own, 0))
