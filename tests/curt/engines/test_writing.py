"""The loop of thinking and answer, over tokens that a test picks."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.dialogue import THINK_END, LeftOut, Prompt
from curt.engines.protocol import GenerationStep, Request
from curt.engines.writing import LONGEST_RUN, Writing

EOS = 9


class Letters:
    """A tokenizer whose token n is the n-th letter."""

    def decode(self, ids: list[int]) -> str:
        return "".join(map(self.push, ids))

    def stream(self) -> Letters:
        return self

    def push(self, token: int) -> str:
        return chr(ord("a") + token)


def begin(
    thinking: int = 8,
    answer: int = 4,
    deadline_s: float | None = None,
    tell_text: bool = True,
) -> Writing:
    request = Request("fact", 8, thinking, answer, deadline_s, tell_text)
    return Writing(
        request,
        Letters(),
        prompt=Prompt([7, 8, 9], LeftOut(5, 1)),
        thinking_limit=thinking,
        close_id=5,
        eos_ids=[EOS],
    )


def prefers_one() -> npt.NDArray[np.float32]:
    return np.eye(1, EOS + 1, 1, dtype=np.float32)[0]


def follow(writing: Writing, wanted: Sequence[int]) -> list[GenerationStep]:
    """What is told of a model that prefers `wanted`, then token 1, unless that is banned."""
    preferred = iter(wanted)
    steps = []
    while not writing.must_stop():
        token = writing.choose(next(preferred, 1), prefers_one)
        step = writing.take(token)
        if step:
            steps.append(step)
    return [*steps, writing.end(0.0, 0.0)]


@pytest.mark.parametrize("thinking", [0, 1, 8])
def test_thinking_and_answer_end_at_their_limits(thinking: int) -> None:
    writing = begin(thinking, 4)
    last = follow(writing, [2] * 40)[-1].generation
    assert last
    assert last.text == "c" * thinking + THINK_END + "cccc"
    assert (last.thinking_tokens, last.answer_tokens) == (thinking, 4)
    assert (last.thinking_cut, last.finish, last.prompt_tokens) == (True, "length", 3)


def test_a_model_that_ends_by_itself_is_left_alone() -> None:
    writing = begin()
    steps = follow(writing, [2, 5, 3, 4, EOS])
    assert [step.phase for step in steps] == ["thinking", "close", "answer", "answer", "end"]
    last = steps[-1].generation
    assert last
    assert "".join(step.text for step in steps) == last.text == f"c{THINK_END}de"
    assert (last.thinking_cut, last.finish) == (False, "stop")


def test_only_thinking_that_the_limit_closed_counts_as_cut() -> None:
    at_the_limit, by_itself, answered = begin(3), begin(3), begin(6, 2)
    follow(at_the_limit, [2] * 20)
    follow(by_itself, [2, 2, 2, 5, 3, 3, 3, 3])
    follow(answered, [2, 5, 3, 3, 3, 3, 3])  # the answer's limit falls on the thinking's
    assert (at_the_limit.cut, by_itself.cut, answered.cut) == (True, False, False)


def test_a_turn_cannot_end_before_its_thinking_does() -> None:
    writing = begin(3)
    follow(writing, [2, EOS, EOS, EOS, 3, EOS])
    assert writing.thinking == [2, 1, 1]
    assert writing.finish == "stop"


@given(
    wanted=st.lists(st.integers(1, EOS), max_size=30),
    thinking=st.integers(0, 12),
    answer=st.integers(1, 6),
)
def test_limits_hold_whatever_the_model_prefers(
    wanted: list[int], thinking: int, answer: int
) -> None:
    writing = begin(thinking, answer)
    follow(writing, wanted)
    assert writing.closed
    assert len(writing.thinking) <= thinking
    assert len(writing.answer) <= answer
    assert EOS not in [*writing.thinking, *writing.answer]
    assert writing.finish == ("length" if len(writing.answer) == answer else "stop")


@pytest.mark.parametrize(("run", "cut"), [(3, False), (LONGEST_RUN, False), (40, True)])
def test_thinking_that_is_one_token_over_and_over_ends(run: int, cut: bool) -> None:
    generation = follow(begin(thinking=60), [2, *[3] * run, 5, 6, EOS])[-1].generation
    assert generation
    kept = "d" * min(run, LONGEST_RUN)
    assert generation.text == "c" + kept + THINK_END + ("dddd" if cut else "g")
    assert generation.thinking_cut == cut


def test_thinking_ends_once() -> None:
    *_, end = follow(begin(), [2, 5, 3, 5, EOS])
    assert end.generation
    assert end.generation.text == "c" + THINK_END + "db"


def test_the_end_of_thinking_is_what_the_model_reads_in_place_of_what_it_picked() -> None:
    writing = begin(1)
    writing.take(2)
    assert writing.last_token == 2
    writing.take(3)
    assert (writing.last_token, writing.closed, writing.cut) == (5, True, True)


def test_a_deadline_keeps_what_is_written_and_no_finished_answer_misses_it() -> None:
    late = begin(deadline_s=time.monotonic() - 1)
    assert late.must_stop()
    assert follow(late, [])[-1].generation
    assert late.finish == "deadline"
    early = begin(0, 1, deadline_s=time.monotonic() + 60)
    early.close(cut=True)
    early.take(2)
    assert early.must_stop()
    assert early.finish == "length"


def test_text_that_nobody_wants_is_not_told() -> None:
    steps = follow(begin(tell_text=False), [2, 5, 3, EOS])
    assert [step.text for step in steps] == ["", THINK_END, "", ""]
    assert steps[-1].generation
    assert steps[-1].generation.text == f"c{THINK_END}d"
