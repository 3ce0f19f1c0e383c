"""How requests are split between variants."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.variants.split import Role, Split, Trial

SPLIT = (
    Split("a").with_role("b", "weight", 0.25).with_role("c", "canary", 0.1)
    .with_role("d", "shadow", 0.9)
)  # fmt: skip


def test_every_variant_gets_its_share_and_the_live_one_the_rest() -> None:
    draw = random.Random(0)
    assigned = Counter(SPLIT.assign(draw.random()) for _ in range(4000))
    for name, share in {"a": 0.65, "b": 0.25, "c": 0.1, "d": 0.0}.items():
        assert SPLIT.share_of(name) == pytest.approx(share)
        assert assigned[name] / 4000 == pytest.approx(share, abs=0.03)


@given(st.lists(st.floats(0.01, 0.9), max_size=5), st.floats(0, 1, exclude_max=True))
def test_shares_add_up_to_one_and_every_draw_has_a_variant(
    shares: list[float], draw: float
) -> None:
    split = Split("live")
    for number, share in enumerate(shares):
        if share < split.share_of("live"):
            split = split.with_role(f"arm{number}", "weight", share)
    names = ("live", *split.trials)
    assert sum(map(split.share_of, names)) == pytest.approx(1)
    assert split.share_of(split.assign(draw)) > 0


@pytest.mark.parametrize(
    ("name", "role", "share"),
    [
        ("a", "canary", 0.1),  # is live
        ("a", "live", None),
        ("b", "canary", None),
        ("b", "canary", 0.0),
        ("b", "shadow", 1.0),
        ("b", "weight", 0.8),  # nothing would be left for the live one
        ("b", "weight", float("nan")),
    ],
)
def test_a_role_that_makes_no_sense_is_refused(name: str, role: Role, share: float | None) -> None:
    with pytest.raises(ValueError, match=r"is live|a share of"):
        Split("a", {"x": Trial("weight", 0.2)} if role != "live" else {}).with_role(
            name, role, share
        )


def test_a_new_canary_or_shadow_takes_the_place_of_the_one_before_and_a_weight_does_not() -> None:
    split = SPLIT.with_role("e", "canary", 0.2).with_role("f", "weight", 0.3)
    assert split.named("canary") == "e"
    assert "c" not in split.trials
    assert set(split.trials) == {"b", "d", "e", "f"}
    assert split.with_role("e", "canary", 0.05).trials["e"].share == 0.05
    assert split.without("e").named("canary") is None


def test_a_new_live_variant_gets_everything() -> None:
    assert SPLIT.with_role("c", "live") == Split("c")
