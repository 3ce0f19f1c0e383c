from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.build.dedup import NEIGHBOURS, find_repeats
from curt.corpus.build.fingerprint import normalise_for_comparison, sign_texts

FACT = (
    "2020年3月5日14时许，被告人张某在某市某区某超市内，趁无人之机，将货架上的手机一部盗走，后将该手机"
    "以人民币八百元的价格卖给路人。经鉴定，被盗手机价值人民币三千五百元。归案后如实供述。"
)
OTHER = (
    "2019年11月2日，被告人李某酒后驾驶小型轿车沿国道由东向西行驶，至某路口时与他人车辆相撞，经鉴定，"
    "其血液中乙醇含量为一百八十毫克，负事故的全部责任。事后赔偿了对方损失。"
)


def edit(fact: str, rng: random.Random, share: float = 0.03) -> str:
    """Letters changed, lost and added, as between two copies of a judgment."""
    letters = list(fact)
    for _ in range(max(1, int(len(letters) * share))):
        place, kind = rng.randrange(len(letters)), rng.random()
        if kind < 0.4:
            letters[place] = rng.choice("某甲乙丙丁1234567890年月日")
        elif kind < 0.7:
            letters[place] = ""
        else:
            letters[place] += rng.choice("，的了")
    return "".join(letters)


def repeats_of(texts, threshold=0.6, groups=None):
    plain = [normalise_for_comparison(text) for text in texts]
    found = find_repeats(sign_texts(plain), threshold, groups)
    return {repeat.index: (repeat.of, repeat.similarity) for repeat in found}


def test_a_copy_in_another_layout_names_the_first():
    assert repeats_of([FACT, OTHER, FACT.replace("，", " ")]) == {2: (0, 1.0)}


def test_a_near_copy_is_found_and_another_case_is_not():
    found = repeats_of([FACT, edit(FACT, random.Random(1)), OTHER])
    assert found.keys() == {1}
    of, similarity = found[1]
    assert of == 0
    assert 0.6 <= similarity < 1


def test_what_is_dropped_swallows_nothing():
    """A chain of small changes must not reach what is far from the first."""
    chain = [FACT[i * 6 :] for i in range(8)]
    kept = [text for i, text in enumerate(chain) if i not in repeats_of(chain, 0.7)]
    assert len(kept) > 1
    signatures = sign_texts([normalise_for_comparison(text) for text in kept])
    for later in range(1, len(kept)):
        assert np.mean(signatures[:later] == signatures[later], axis=1).max() < 0.7


def test_members_of_a_group_are_no_repeats_of_each_other():
    groups = np.array([5, 5, 0, 6], np.uint64)
    assert repeats_of([FACT, FACT, OTHER, FACT], groups=groups).keys() == {3}
    assert repeats_of([FACT, FACT], groups=np.zeros(2, np.uint64)).keys() == {1}


def test_a_bucket_of_any_size_is_searched_from_its_first():
    copies = [FACT] * (NEIGHBOURS * 20)
    assert {of for of, _ in repeats_of([*copies, OTHER]).values()} == {0}
    assert len(repeats_of([*copies, OTHER])) == len(copies) - 1


@given(text=st.text(max_size=30))
def test_any_text_repeats_itself(text):
    assert repeats_of([text, text]) == {1: (0, 1.0)}


def test_no_texts_have_no_repeats():
    assert repeats_of([]) == {}
    assert repeats_of([FACT]) == {}


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01])
def test_thresholds_outside_the_range_are_refused(threshold):
    with pytest.raises(ValueError, match="use more than 0"):
        find_repeats(sign_texts([FACT]), threshold)


def test_planted_near_duplicates_of_real_facts_are_found(real_cases):
    lines = (real_cases / "train.json").read_text(encoding="utf-8").splitlines()[:3500]
    facts = [fact for line in lines if len(fact := json.loads(line)["fact"]) > 80][:3000]
    rng = random.Random(1)
    planted = rng.sample(range(len(facts)), 500)
    found = repeats_of([*facts, *(edit(facts[i], rng) for i in planted)])
    copies = {len(facts) + place: source for place, source in enumerate(planted)}
    assert len(found.keys() & copies.keys()) / 500 >= 0.98  # recall
    # A copy of a fact that itself repeats another names that other one.
    right = sum(
        found[copy][0] == source or source in found
        for copy, source in copies.items()
        if copy in found
    )
    assert right / len(found) >= 0.95  # precision, real repeats among the facts counted as wrong
