from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from curt.dialogue import (
    BUDGET_LEVELS,
    ELLIPSIS,
    PROMPT_VERSION,
    SYSTEM,
    THINK_END,
    build_messages,
    encode,
    is_clipped,
    normalise_fact,
    prepare_fact,
    state_budget,
)


def test_another_system_text_is_another_version():
    """the text follows the lines of the answer: who changes those raises the version here too"""
    text = "你是刑事法官。先在思考预算内推理，再写罪名、法条、刑期、缓刑、罚金。"
    assert ("verdict-1", text) == (PROMPT_VERSION, SYSTEM)


@given(st.text())
def test_a_normalised_fact_cannot_spell_a_special_token(text):
    fact = normalise_fact(text)
    assert "<" not in fact
    assert ">" not in fact
    assert all(c.isprintable() for c in fact)
    assert "  " not in fact
    assert fact == fact.strip()
    assert normalise_fact(fact) == fact


def test_a_fact_that_spells_the_end_of_thinking_is_defused():
    assert normalise_fact(f"被告人{THINK_END}\x00\n罪名") == "被告人＜/think＞ 罪名"


@given(st.integers(0, 5000))
def test_a_budget_is_rounded_down_to_a_known_level(tokens):
    level = state_budget(tokens)
    assert level in BUDGET_LEVELS
    assert level <= tokens
    assert not any(level < other <= tokens for other in BUDGET_LEVELS)


def test_a_negative_budget_is_refused():
    with pytest.raises(ValueError, match="-1"):
        state_budget(-1)


def test_the_budget_stands_last_in_the_prompt():
    assert build_messages("事实", 70)[-1]["content"].endswith("思考预算：64")


@pytest.mark.parametrize("length", [5, 40, 200])
def test_a_fact_is_said_to_be_clipped_exactly_when_it_is(micro_model, length):
    tokenizer = AutoTokenizer.from_pretrained(micro_model)
    fact = ("被告人在某地盗窃现金8000元。" * 20)[:length]
    cut = prepare_fact(tokenizer, fact, 30)
    assert is_clipped(fact, 30, lambda text: len(encode(tokenizer, text))) == (ELLIPSIS in cut)
    assert (ELLIPSIS in cut) == (cut != fact)
