"""How keys are split between variants."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serve.variants.split import Split, TrafficShare, pick, routing_key

KEYS = [f"user:{number}" for number in range(4000)]


def test_the_same_key_always_has_the_same_variant_and_shares_are_kept() -> None:
    split = Split(live="a", weights={"a": 3, "b": 1})
    assigned = Counter(split.assign(key) for key in KEYS)
    assert assigned["b"] / len(KEYS) == pytest.approx(0.25, abs=0.03)
    assert split.share_of("b") == 0.25
    assert [split.assign(key) for key in KEYS] == [split.assign(key) for key in KEYS]


@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(0.05, 10), min_size=2),
    st.floats(0.05, 10),
    st.integers(0, 10_000),
)
def test_a_changed_weight_moves_keys_to_or_from_that_variant_only(
    weights: dict[str, float], weight: float, seed: int
) -> None:
    changed = sorted(weights)[0]
    after = {**weights, changed: weight}
    for number in range(50):
        key = f"{seed}:{number}"
        before_name, after_name = pick(weights, key), pick(after, key)
        if before_name != after_name:
            assert changed == (after_name if weight > weights[changed] else before_name)


def test_moving_a_weight_moves_only_the_needed_share() -> None:
    before, after = {"a": 0.9, "b": 0.1}, {"a": 0.8, "b": 0.2}
    moved = [pick(before, key) != pick(after, key) for key in KEYS]
    assert statistics.fmean(moved) == pytest.approx(0.1, abs=0.02)


def test_a_growing_canary_keeps_those_it_had() -> None:
    few = Split(live="a", canary=TrafficShare(name="b", share=0.05))
    more = Split(live="a", canary=TrafficShare(name="b", share=0.2))
    had = {key for key in KEYS if few.assign(key) == "b"}
    assert len(had) / len(KEYS) == pytest.approx(0.05, abs=0.015)
    assert had < {key for key in KEYS if more.assign(key) == "b"}


def test_the_key_is_the_user_or_else_the_case_whatever_its_spelling() -> None:
    assert routing_key("甲", user="u1") == routing_key("乙", user="u1")
    assert routing_key("甲 ") == routing_key("甲") != routing_key("乙")
    assert "甲" not in routing_key("甲")


@pytest.mark.parametrize(
    "fields",
    [
        {"live": "a", "weights": {"b": 1}},
        {"live": "a", "weights": {"a": float("nan")}},
        {"live": "a", "weights": {"a": 1, "b": -1}},
        {"live": "a", "canary": {"name": "a", "share": 0.1}},
        {"live": "a", "canary": {"name": "b", "share": 0}},
        {"live": "a", "shadow": {"name": "a", "share": 0.1}},
        {"live": "../a"},
    ],
)
def test_a_split_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Split.model_validate(fields)


def test_a_new_arm_takes_its_share_and_leaves_the_others_their_proportions() -> None:
    split = Split(live="a").with_role("b", "weight", 0.5).with_role("c", "weight", 0.2)
    assert [split.share_of(name) for name in "abc"] == pytest.approx([0.4, 0.4, 0.2])
    with pytest.raises(ValueError, match="share of None"):
        split.with_role("c", "canary", None)
