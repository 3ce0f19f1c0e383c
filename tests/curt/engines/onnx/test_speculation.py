from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.dialogue import THINK_END, Prompt, parse_answer
from curt.engines.onnx.graph import LIKELIEST_WINDOW
from curt.engines.onnx.speculation import (
    LEAST_CHANCE,
    MOST_GUESSED,
    HabitTable,
    PhraseTable,
    Speculation,
    StatutePhrases,
    answer_phrases,
    last_run,
)
from curt.engines.protocol import Request
from curt.engines.tokenizer import PromptTokenizer
from curt.engines.writing import Writing
from curt.law.verdict import Verdict

IDS = st.lists(st.integers(0, 5), max_size=12)


@pytest.fixture(scope="module")
def tokenizer(micro_model: Path) -> PromptTokenizer:
    return PromptTokenizer(micro_model)


@pytest.fixture(scope="module")
def phrases(tokenizer: PromptTokenizer) -> StatutePhrases:
    return StatutePhrases(tokenizer.encode)


def guess(phrases: StatutePhrases, tokenizer: PromptTokenizer, thinking: str, answer: str) -> str:
    ids = tokenizer.encode(THINK_END + answer)
    return tokenizer.decode(list(phrases.after(ids, tokenizer.encode(thinking))))


def test_a_phrase_goes_on_as_far_as_all_agree() -> None:
    table = PhraseTable([[1, 2, 3, 4], [1, 2, 3, 5]])
    assert table.after([1]) == (2, 3)
    assert table.after([9, 2]) == (3,)
    assert table.after([3]) == ()
    assert table.after([]) == ()


def test_the_longest_end_of_the_text_decides() -> None:
    table = PhraseTable([[1, 2, 3], [7, 2, 4]])
    assert table.after([2]) == ()
    assert table.after([1, 2]) == (3,)
    assert table.after([7, 2]) == (4,)


def test_a_figure_tells_something_only_in_a_whole_key() -> None:
    table = PhraseTable([[5, 6, 1, 9]], figures=[1])
    assert table.after([1]) == table.after([6, 1]) == ()
    assert table.after([5, 6, 1]) == (9,)


@given(phrases=st.lists(IDS, max_size=4), text=IDS)
def test_a_guess_stands_in_every_phrase_that_holds_the_key(
    phrases: list[list[int]], text: list[int]
) -> None:
    rest = list(PhraseTable(phrases).after(text))
    if rest:
        assert any(
            text[-1:] == phrase[i - 1 : i] and phrase[i : i + len(rest)] == rest
            for phrase in phrases
            for i in range(1, len(phrase))
        )


@given(ids=IDS)
def test_the_last_run_is_a_stretch_of_figures_with_none_after_it(ids: list[int]) -> None:
    figures = frozenset({1, 2})
    run = list(last_run(ids, figures))
    assert set(run) <= figures
    after = list(ids)
    while after and after[-1] not in figures:
        after.pop()
    assert after[len(after) - len(run) :] == run
    assert not after[: len(after) - len(run)] or after[-len(run) - 1] not in figures


def test_every_phrase_but_the_last_can_become_an_answer() -> None:
    *beginnings, joint = answer_phrases()
    assert len(beginnings) > 200
    for text in beginnings:
        answer = f"{text.removeprefix(THINK_END)}2{joint}1000元"
        assert isinstance(parse_answer(answer), Verdict), text


def test_an_answer_is_guessed_line_by_line(
    phrases: StatutePhrases, tokenizer: PromptTokenizer
) -> None:
    assert guess(phrases, tokenizer, "", "").startswith("罪名")
    after_charge = guess(phrases, tokenizer, "", "罪名：盗窃\n")
    assert after_charge.startswith("法条：")
    assert "法条：264\n刑期：有期徒刑".startswith(after_charge)


def test_the_last_figure_of_the_reasoning_is_the_guess_for_the_months(
    phrases: StatutePhrases, tokenizer: PromptTokenizer
) -> None:
    answer = "罪名：盗窃\n法条：264\n刑期：有期徒刑"
    with_figure = guess(phrases, tokenizer, "5+9=14，取14个月。", answer)
    assert with_figure.startswith("14")
    assert guess(phrases, tokenizer, "未见数额。", answer) == ""


@pytest.mark.parametrize("room", [99, 2, 1])
def test_a_guess_has_a_bound(tokenizer: PromptTokenizer, tmp_path: Path, room: int) -> None:
    [close] = tokenizer.encode(THINK_END)
    speculation = Speculation(tmp_path, tokenizer.encode, close, [])
    charge = tokenizer.encode("罪名：盗窃\n")
    request = Request("fact", 0, 0, answer_limit=len(charge) + room)
    writing = Writing(
        request, tokenizer, prompt=Prompt([1]), thinking_limit=0, close_id=close, eos_ids=[]
    )
    writing.close(cut=True)
    for token in charge:
        writing.take(token)
    guess = speculation.after(writing, closed=True)
    assert 0 < len(guess) <= min(room, MOST_GUESSED)


def test_chances_multiply_along_a_guess() -> None:
    right = 0.8
    nexts = {(i,): (i + 1, right) for i in range(30)}
    guesses = HabitTable(nexts, []).after([0], 99)
    assert right ** len(guesses) >= LEAST_CHANCE > right ** (len(guesses) + 1)
    certain = HabitTable({(i,): (i + 1, 1.0) for i in range(30)}, []).after([0], 99)
    assert len(certain) == LIKELIEST_WINDOW - 1
