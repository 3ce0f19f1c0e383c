from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.dialogue.excerpt import ELLIPSIS, LeftOut, make_excerpt, split_sentences

HEADER = "某市人民检察院指控，被告人张某，男，汉族，初中文化，无业，户籍地某市。"
ACT = "2020年3月5日，张某入户窃取现金8000元。"
EVIDENCE = "上述事实，有证人证言、书证、辨认笔录等证据证实，足以予以认定。"
CONFESSION = "张某自动投案，如实供述，取得谅解。"
FACT = HEADER + ACT + EVIDENCE + CONFESSION


def by_character(text):
    return [(place, place + 1) for place in range(len(text))]


def by_pairs(text):
    """Tokens that straddle the seams between sentences."""
    return [(place, min(place + 2, len(text))) for place in range(0, len(text), 2)]


def test_what_a_court_needs_is_kept_and_the_rest_counted():
    excerpt = make_excerpt(FACT, len(ACT) + len(CONFESSION) + 8, by_character)
    assert excerpt.text == ELLIPSIS + ACT + ELLIPSIS + CONFESSION
    assert excerpt.left_out == LeftOut(len(HEADER) + len(EVIDENCE), 2)


def test_a_long_sentence_loses_clauses_rather_than_all():
    sentence = "，".join(f"第{n}天被告人在家中休息并没有外出做任何事情" for n in range(9))
    fact = f"{sentence}，后其窃得他人手机一部价值3200元并予以变卖得款后用于日常挥霍，{sentence}。"
    excerpt = make_excerpt(fact, 80, by_character)
    assert "窃得他人手机一部价值3200元" in excerpt.text
    assert excerpt.left_out.sentences == 1


def test_a_part_that_is_too_long_alone_keeps_its_ends():
    fact = "盗" + "甲" * 300 + "窃"
    excerpt = make_excerpt(fact, 30, by_character)
    assert excerpt.text.startswith("盗甲")
    assert excerpt.text.endswith("甲窃")
    assert ELLIPSIS in excerpt.text


@pytest.mark.parametrize(
    ("fact", "sentences"),
    [
        ("甲盗窃。乙抢劫。", ["甲盗窃。", "乙抢劫。"]),
        ("甲说：“别动！”后逃走", ["甲说：“别动！”", "后逃走"]),
        ("查明1、甲窃3.5元，2、乙抢劫。", ["查明", "1、甲窃3.5元，", "2、乙抢劫。"]),
        ("2014年7、8月份甲盗窃。", ["2014年7、8月份甲盗窃。"]),
        ("甲于（1）家中；（2）店内盗窃", ["甲于", "（1）家中；", "（2）店内盗窃"]),
    ],
)
def test_sentences_end_where_a_reader_ends_them(fact, sentences):
    found = [fact[start:end] for start, end in split_sentences(fact)]
    assert found == sentences


TEXTS = st.text("甲乙盗窃。；，！”1、23元（）证据自首", max_size=300)


@given(TEXTS, st.integers(12, 120), st.sampled_from([by_character, by_pairs]))
def test_an_excerpt_fits_keeps_the_order_and_counts_what_it_lacks(fact, limit, find_tokens):
    excerpt = make_excerpt(fact, limit, find_tokens)
    assert excerpt == make_excerpt(fact, limit, find_tokens)
    assert len(find_tokens(excerpt.text)) <= limit
    at = kept = 0
    for piece in excerpt.text.split(ELLIPSIS):
        at = fact.index(piece, at) + len(piece)
        kept += len(piece)
    assert excerpt.left_out.characters == len(fact) - kept
    assert bool(excerpt.left_out) == (len(find_tokens(fact)) > limit)
    assert (excerpt.left_out.sentences > 0) == bool(excerpt.left_out)


@given(TEXTS)
def test_nothing_is_lost_of_a_fact_that_fits(fact):
    excerpt = make_excerpt(fact, len(fact), by_character)
    assert (excerpt.text, excerpt.left_out) == (fact, LeftOut())


def test_an_excerpt_costs_little_beside_its_tokens():
    fact = (FACT * 20)[:1000]
    tokens = {}

    def find_tokens(text):
        return tokens.setdefault(text, by_character(text))

    make_excerpt(fact, 200, find_tokens)
    costs_s = []
    for _ in range(7):
        started_s = time.process_time()
        make_excerpt(fact, 200, find_tokens)
        costs_s.append(time.process_time() - started_s)
    assert min(costs_s) < 0.003  # about 0.5 ms on a quiet core
