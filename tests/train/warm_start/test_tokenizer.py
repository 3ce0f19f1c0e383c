from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.generate.generator import generate_cases
from curt.dialogue import THINK_END, Prompts, render_completion
from train.warm_start.tokenizer import corpus_texts, train_tokenizer

CASES = list(generate_cases(40, seed=2))
TOKENIZER = train_tokenizer(corpus_texts(CASES), 700)


def encode(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back_as_it_was(text):
    assert TOKENIZER.decode(encode(text)) == text


def test_digits_are_tokens_of_their_own():
    assert len(encode("8472")) == 4
    assert TOKENIZER.convert_ids_to_tokens(encode("12")) == ["1", "2"]


def test_the_vocabulary_keeps_its_bound():
    assert len(TOKENIZER) <= 700


def test_the_end_of_thinking_is_one_token_that_decoding_keeps():
    ids = encode(f"想{THINK_END}罪名")
    assert ids.count(TOKENIZER.convert_tokens_to_ids(THINK_END)) == 1
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == f"想{THINK_END}罪名"


def test_the_end_of_the_turn_is_special_and_dropped_on_request():
    ids = [*encode("想"), TOKENIZER.eos_token_id]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "想"


@pytest.mark.parametrize("case", CASES[:5], ids=lambda c: c.id)
def test_prompt_and_completion_tokenise_apart_as_they_do_together(case):
    """Training joins ids, generation goes on from the prompt's: both must mean the same text."""
    prompt = Prompts(TOKENIZER, None).text(case.fact, 64)
    completion = render_completion(case.reasonings["terse"], case.verdict)
    assert encode(prompt) + encode(completion) == encode(prompt + completion)
