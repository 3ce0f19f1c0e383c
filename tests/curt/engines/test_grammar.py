from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.dialogue import answer_pattern, parse_answer, render_answer
from curt.engines.grammar import AnswerGrammar
from curt.engines.tokenizer import PromptTokenizer
from curt.law.statutes import CHARGES
from curt.law.verdict import COUNTED_KINDS, MAX_MONTHS, Term, TermKind, Verdict
from tests.micro import FACTS

pytest.importorskip("llguidance")


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
    return AnswerGrammar((micro_model / "tokenizer.json").read_text(), vocab_tokens, [end])


@pytest.fixture(scope="module")
def token_bytes(micro_model: Path, vocab_tokens: int) -> list[bytes]:
    import llguidance

    cut = llguidance.LLTokenizer((micro_model / "tokenizer.json").read_text(), vocab_tokens)
    return [b"" if cut.is_special_token(t) else cut.decode_bytes([t]) for t in range(vocab_tokens)]


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


@given(verdict=VERDICTS)
def test_what_is_foreseen_is_what_the_tokenizer_writes(
    grammar: AnswerGrammar, tokenizer: PromptTokenizer, verdict: Verdict
) -> None:
    ids = tokenizer.encode(render_answer(verdict))
    answer, place, foreseen = grammar.begin(), 0, 0
    while place < len(ids):
        ahead = answer.foresee()
        assert ids[place : place + len(ahead)] == ahead
        foreseen += len(ahead)
        for token in ahead or ids[place : place + 1]:
            assert answer.take(token)
            place += 1
    assert foreseen > 5
    assert answer.foresee() == [] or not verdict.fine_yuan


@given(verdict=VERDICTS, seed=st.integers(0, 2**32 - 1))
def test_jumps_write_the_same_text_however_the_tokens_between_are_cut(
    grammar: AnswerGrammar, token_bytes: list[bytes], verdict: Verdict, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    left = render_answer(verdict).encode()
    answer = grammar.begin()
    while left:
        ahead = answer.foresee()
        if not ahead:  # any token that goes on with the text, also part of a character
            fitting = [t for t, text in enumerate(token_bytes) if text and left.startswith(text)]
            ahead = [int(draw.choice(fitting))]
        for token in ahead:
            assert left.startswith(token_bytes[token])
            assert answer.take(token)
            left = left[len(token_bytes[token]) :]


@given(seed=st.integers(0, 2**32 - 1))
def test_whatever_the_logits_what_ends_can_be_read(
    grammar: AnswerGrammar, tokenizer: PromptTokenizer, vocab_tokens: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    (end,) = tokenizer.encode("<|im_end|>")
    answer, ids = grammar.begin(), []
    for _ in range(400):
        logits = draw.standard_normal(vocab_tokens).astype(np.float32)
        logits[end] += 3.0
        token = answer.pick(logits)
        if token == end:
            break
        ids.append(token)
    else:
        raise AssertionError("no answer of the grammar is that long")
    assert isinstance(parse_answer(tokenizer.decode(ids)), Verdict)


def test_the_end_is_refused_until_the_answer_is_whole(
    grammar: AnswerGrammar, tokenizer: PromptTokenizer, vocab_tokens: int
) -> None:
    (end,) = tokenizer.encode("<|im_end|>")
    answer = grammar.begin()
    assert answer.pick(one_hot(end, vocab_tokens)) != end


@pytest.mark.slow
def test_a_model_that_talks_nonsense_answers_readably_where_it_is_guided(
    micro_model: Path, tmp_path: Path
) -> None:
    from curt.dialogue import parse_completion
    from curt.engines.onnx.engine import OrtEngine
    from curt.engines.protocol import Request
    from tests.compress.onnx.exports import export, make_untied_model

    folder = export(make_untied_model(tmp_path / "model", micro_model), tmp_path / "ort")
    requests = [Request(fact, 0, limit, answer_limit=300) for fact in FACTS for limit in (0, 4, 8)]
    free = OrtEngine(folder).generate(requests)
    guided = OrtEngine(folder, guided=True).generate(requests)
    assert not any(isinstance(parse_completion(g.text).verdict, Verdict) for g in free)
    assert guided[0].text.startswith("</think>罪名：")
    ended = [g for g in guided if g.finish == "stop"]
    assert ended
    assert all(isinstance(parse_completion(g.text).verdict, Verdict) for g in ended)
