from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.generate.grammar import GrammarError, alternatives, expand, parse

LISTS = {"fruit": ["苹果", "梨"], "pair": ["{fruit}和{fruit}"]}


def write(text: str, seed: int = 0, **bound: str) -> str:
    return expand(text, random.Random(seed), LISTS, bound, "train")


def test_plain_text_stays_as_it_is():
    assert write("没有空位。") == "没有空位。"


def test_a_slot_takes_one_of_its_list():
    assert {write("吃{fruit}", seed) for seed in range(20)} == {"吃苹果", "吃梨"}


def test_lists_may_name_lists():
    assert write("{pair}") in {f"{a}和{b}" for a in LISTS["fruit"] for b in LISTS["fruit"]}


def test_a_bound_value_goes_before_a_list_of_that_name():
    assert write("吃{fruit}", fruit="桃") == "吃桃"


def test_a_numbered_slot_is_drawn_once():
    assert all(
        len(set(write("{fruit.1}{fruit.1}{fruit.1}", seed).replace("苹果", "果"))) == 1
        for seed in range(20)
    )


def test_one_of_several_parts_which_may_nest_and_may_be_empty():
    told = {write("{甲|{乙|丙{fruit}}|}终", seed) for seed in range(60)}
    assert told == {"甲终", "乙终", "丙苹果终", "丙梨终", "终"}


@pytest.mark.parametrize("text", ["{开", "关}", "{a{b}"])
def test_braces_that_do_not_pair_are_refused(text):
    with pytest.raises(GrammarError, match="don't pair"):
        parse(text)


def test_a_slot_that_nothing_fills_is_named():
    with pytest.raises(GrammarError, match=r"\{vegetable\}"):
        write("吃{vegetable}")


@given(count=st.integers(1, 40))
def test_training_development_and_test_wording_share_nothing(count):
    texts = [str(number) for number in range(count)]
    train = alternatives(texts, "train")
    dev, test = (alternatives(texts, wording, strict=True) for wording in ("dev", "test"))
    assert alternatives(texts, "dev") == alternatives(texts, "test") == texts
    if count < 5:
        assert train == dev == test == texts
    elif count < 10:
        assert dev == test
        assert sorted([*train, *test]) == sorted(texts)
    else:
        assert sorted([*train, *dev, *test]) == sorted(texts)
