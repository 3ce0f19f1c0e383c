from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from curt.dialogue import (
    BUDGET_LEVELS,
    GRAMMAR_VERSION,
    PROMPT_VERSION,
    SYSTEM,
    THINK_END,
    THINK_START,
    Prompts,
    build_messages,
    encode,
    normalise_fact,
    state_budget,
)
from curt.dialogue.answer import describe_grammar


def test_another_system_text_is_another_version():
    """the text follows the lines of the answer: who changes those raises the version here too"""
    text = "你是刑事法官。先在思考预算内推理，再写罪名、法条、刑期、缓刑、罚金。"
    assert ("verdict-4", text) == (PROMPT_VERSION, SYSTEM)


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


@pytest.fixture(scope="module")
def tokenizer(micro_model):
    return AutoTokenizer.from_pretrained(micro_model)


@pytest.mark.parametrize("length", [5, 40, 200])
def test_a_prompt_says_whether_it_lacks_anything_of_the_fact(tokenizer, length):
    fact = ("被告人在某地盗窃现金8000元。" * 20)[:length]
    prompts = Prompts(tokenizer, 30)
    prompt = prompts.encode(fact, 16)
    excerpt = prompts.excerpt(fact)
    assert prompt.left_out == excerpt.left_out
    assert bool(prompt.left_out) == (excerpt.text != fact)
    assert bool(prompt.left_out) == (len(encode(tokenizer, fact)) > 30)
    assert prompt.ids == encode(tokenizer, prompts.text(fact, 16))


def test_candidates_stand_on_a_line_of_their_own_before_the_fact():
    content = build_messages("事实", 16, "参考：盗窃8")[-1]["content"]
    assert content == "参考：盗窃8\n事实\n思考预算：16"
    assert build_messages("事实", 16)[-1]["content"] == "事实\n思考预算：16"


def test_the_reader_is_asked_unless_candidates_are_given(tokenizer):
    asked = []

    def reader(fact):
        asked.append(fact)
        return "参考：读者9"

    prompts = Prompts(tokenizer, 30, reader)
    long = "被告人盗窃。" * 50
    assert "参考：读者9\n" in prompts.text(long, 16)
    assert asked == [long]  # the whole fact, not its excerpt
    assert "参考：别的7\n" in prompts.text(long, 16, "参考：别的7")
    assert prompts.encode(long, 16, "参考：别的7").candidates == "参考：别的7"
    assert "参考" not in prompts.text(long, 16, "")
    assert "参考" not in Prompts(tokenizer, 30).text(long, 16)
    assert asked == [long]


def test_a_model_that_does_not_know_the_grammar_is_told_it(tokenizer):
    plain, telling = (
        Prompts(tokenizer, 200, version=version) for version in (PROMPT_VERSION, GRAMMAR_VERSION)
    )
    system, user = telling.messages("某甲盗窃。", 16)
    assert system["content"] == f"{SYSTEM}\n{describe_grammar()}"
    assert user == plain.messages("某甲盗窃。", 16)[1]
    assert telling.text("某甲盗窃。", 16).endswith(THINK_START)
    with pytest.raises(ValueError, match="prompt verdict-0"):
        build_messages("事实", 16, version="verdict-0")


def test_another_description_of_the_grammar_is_another_version():
    digest = hashlib.sha256(describe_grammar().encode()).hexdigest()[:12]
    assert ("verdict-4+grammar-1", digest) == (GRAMMAR_VERSION, "b9ab517ddc51")
