from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from train.runs.shares import cut_batch


@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 8), st.integers(1, 64))
def test_any_cut_keeps_the_step_and_whole_groups(groups, size, processes, micro_batch):
    assume(groups % processes == 0)
    share = groups // processes * size
    assume(share % min(share, micro_batch) == 0)
    one_pass, passes = cut_batch(
        groups, size, processes=processes, micro_batch=micro_batch, what="prompts"
    )
    assert one_pass <= micro_batch
    assert one_pass * passes * processes == groups * size
    assert one_pass * passes % size == 0


def test_without_a_limit_a_share_goes_through_at_once():
    assert cut_batch(8, 4, processes=2, micro_batch=None, what="prompts") == (16, 1)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="prompts = 6 does not divide among 4 processes"):
        cut_batch(6, 4, processes=4, micro_batch=None, what="prompts")


def test_passes_that_do_not_divide_a_share_are_refused():
    with pytest.raises(ValueError, match="micro_batch 3 does not divide a process's share of 16"):
        cut_batch(8, 4, processes=2, micro_batch=3, what="prompts")
