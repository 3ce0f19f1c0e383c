from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.classifier.candidates import known_charges
from curt.dialogue import answer_pattern, parse_answer, render_answer
from curt.engines.grammar import AnswerGrammar
from curt.engines.tokenizer import PromptTokenizer
from curt.law.statutes import CHARGES
from curt.law.verdict import COUNTED_KINDS, MAX_MONTHS, Term, TermKind, Verdict


@st.composite
def terms(draw: st.DrawFn) -> Term:
    kind: TermKind = draw(st.sampled_from(get_args(TermKind)))
    months = draw(st.integers(1, MAX_MONTHS[kind])) if kind in COUNTED_KINDS else 0
    return Term(kind, months, draw(st.integers(0, 60)))


VERDICTS = st.builds(
    Verdict,
    charges=st.lists(st.sampled_from(sorted(CHARGES)), min_size=1, max_size=3, unique=True).map(
        tuple
    ),
    articles=st.lists(
        st.sampled_from(("264", "266", "133之一", "67", "300")), min_size=1, max_size=4, unique=True
    ).map(tuple),
    term=terms(),
    fine_yuan=st.integers(0, 10**8),
)


@pytest.fixture(scope="module")
def tokenizer(micro_model: Path) -> PromptTokenizer:
    return PromptTokenizer(micro_model)


@pytest.fixture(scope="module")
def vocab_tokens(micro_model: Path) -> int:
    import json

    return int(json.loads((micro_model / "config.json").read_text())["vocab_size"])


@pytest.fixture(scope="module")
def grammar(micro_model: Path, tokenizer: PromptTokenizer, vocab_tokens: int) -> AnswerGrammar:
    (end,) = tokenizer.encode("<|im_end|>")
    return AnswerGrammar(micro_model, vocab_tokens, [end])


def one_hot(token: int, width: int) -> np.ndarray:
    logits = np.zeros(width, np.float32)
    logits[token] = 1.0
    return logits


@given(verdict=VERDICTS)
def test_every_answer_we_write_is_in_the_grammar(verdict: Verdict) -> None:
    assert re.fullmatch(answer_pattern(), render_answer(verdict))


@given(verdict=VERDICTS)
def test_an_answer_of_the_grammar_passes_unchanged(
    grammar: AnswerGrammar, tokenizer: PromptTokenizer, vocab_tokens: int, verdict: Verdict
) -> None:
    ids = tokenizer.encode(render_answer(verdict) + "<|im_end|>")
    answer = grammar.begin()
    assert [answer.pick(one_hot(token, vocab_tokens)) for token in ids] == ids


@given(
    seed=st.integers(0, 2**32 - 1),
    charges=st.lists(st.sampled_from(sorted(CHARGES)), max_size=3, unique=True),
)
def test_whatever_the_logits_what_ends_can_be_read_and_names_only_the_charges_given(
    grammar: AnswerGrammar,
    tokenizer: PromptTokenizer,
    vocab_tokens: int,
    seed: int,
    charges: list[str],
) -> None:
    draw = np.random.default_rng(seed)
    (end,) = tokenizer.encode("<|im_end|>")
    answer, ids = grammar.begin(tuple(charges)), []
    for _ in range(400):
        logits = draw.standard_normal(vocab_tokens).astype(np.float32)
        logits[end] += 3.0
        token = answer.pick(logits)
        if token == end:
            break
        ids.append(token)
    else:
        raise AssertionError("no answer of the grammar is that long")
    verdict = parse_answer(tokenizer.decode(ids))
    assert isinstance(verdict, Verdict)
    assert not charges or set(verdict.charges) <= set(charges)


def test_an_answer_names_a_charge_of_its_line_in_place_of_one_that_begins_alike(
    grammar: AnswerGrammar, tokenizer: PromptTokenizer, vocab_tokens: int
) -> None:
    wanted = "罪名：聚众哄抢\n法条："
    answer, ids = grammar.begin(known_charges("参考：聚众斗殴9寻衅滋事1；292；12个月")), []
    for token in [*tokenizer.encode(wanted), *[0] * 40]:
        ids.append(answer.pick(one_hot(token, vocab_tokens)))
    line = tokenizer.decode(ids).splitlines()[0]
    assert line in ("罪名：聚众斗殴", "罪名：聚众斗殴；寻衅滋事")
    free = grammar.begin()
    assert all(free.take(token) for token in tokenizer.encode(wanted))


def test_the_end_is_refused_until_the_answer_is_whole(
    grammar: AnswerGrammar, tokenizer: PromptTokenizer, vocab_tokens: int
) -> None:
    (end,) = tokenizer.encode("<|im_end|>")
    answer = grammar.begin()
    assert answer.pick(one_hot(end, vocab_tokens)) != end
