from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.law.verdict import Term, Verdict
from curt.scores.reasoning import (
    check_arithmetic,
    check_conclusions,
    check_reasoning,
    count_steps,
    repetition_ratio,
)

THEFT = Verdict(("盗窃",), ("264",), Term("fixed", 9))
WORKED = "8万30+8=38；自首2；38×80%=30"


def test_reasoning_is_checked_in_two_parts():
    assert list(check_arithmetic(WORKED)) == [True, True, True]
    assert list(check_conclusions(WORKED, THEFT)) == [False]
    assert list(check_reasoning(WORKED, THEFT)) == [True, True, True, False]


@pytest.mark.parametrize(("text", "steps"), [("", 0), ("；。\n ", 0), ("一；二。三\n四;五", 5)])
def test_steps_are_what_stands_between_marks(text, steps):
    assert count_steps(text) == steps


@given(text=st.text(max_size=50))
def test_the_ratio_of_repetition_is_a_share(text):
    assert 0 <= repetition_ratio(text) < 1
