from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.compare.choice import RULE, choose, pareto_front
from compress.compare.rows import Measured, Quality, Row, make_rows
from tests.compress.compare.records import measure

POINTS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    min_size=1,
    max_size=8,
)


def table(*artifacts: Measured, fp32_mb: float = 40.0) -> list[Row]:
    parent = measure("parent", weights_mb=fp32_mb, right=160, decode=100.0)
    return make_rows([parent, *artifacts], fp32_mb)


def test_the_front_leaves_out_what_another_beats() -> None:
    points = {"small": (-1.0, 0.5), "good": (-9.0, 0.8), "bad": (-9.5, 0.8), "middle": (-3.0, 0.5)}
    assert pareto_front(points) == {"small", "good"}
    assert pareto_front({"a": (1, 1), "b": (1, 1)}) == {"a", "b"}


@given(POINTS)
def test_every_point_is_on_the_front_or_beaten_by_one_that_is(
    points: dict[str, tuple[int, int]],
) -> None:
    front = pareto_front(points)
    assert front
    for name, (x, y) in points.items():
        beaten = any(points[f] != (x, y) and points[f][0] >= x and points[f][1] >= y for f in front)
        assert beaten != (name in front)


def test_the_default_is_the_fastest_that_is_small_and_good_enough() -> None:
    rows = table(
        measure("fast-but-worse", weights_mb=5, right=150, decode=900.0),
        measure("big", weights_mb=20, right=160, decode=950.0),
        measure("slow", weights_mb=4, right=160, decode=300.0),
        measure("taken", weights_mb=8, right=159, decode=600.0),
    )
    choice = choose(rows)
    assert choice.name == "taken"
    assert choice.qualified == ["taken", "slow"]
    assert choice.refused == {
        "fast-but-worse": "it loses 5.0 points of exact accuracy",
        "big": "its weights are only 2.00 times smaller than fp32",
    }
    assert choice.rule == RULE
    assert choice.caveat is not None
    assert "200 cases can't settle half a point" in choice.caveat


def test_half_a_point_and_three_and_a_half_times_are_still_within_the_rule() -> None:
    rows = table(measure("edge", weights_mb=40 / 3.5, right=159, decode=1.0))
    assert rows[1].change is not None
    assert rows[1].change.value == pytest.approx(-0.005)
    assert choose(rows).name == "edge"


def test_one_case_more_lost_is_outside_the_rule() -> None:
    assert choose(table(measure("over", weights_mb=4, right=158, decode=1.0))).name is None


def test_at_equal_speed_the_smaller_is_taken() -> None:
    rows = table(
        measure("larger", weights_mb=9, right=160, decode=5.0),
        measure("smaller", weights_mb=4, right=160, decode=5.0),
    )
    assert choose(rows).name == "smaller"


def test_the_parent_is_never_its_own_default() -> None:
    parent = measure("tiny-parent", weights_mb=1, right=160, decode=5.0)
    choice = choose(make_rows([parent], 100.0))
    assert (choice.name, choice.qualified, choice.refused) == (None, [], {})


def test_what_was_not_measured_does_not_qualify() -> None:
    rows = table(
        measure("no-accuracy", weights_mb=4, right=None, decode=5.0),
        measure("no-speed", weights_mb=4, right=160, decode=None),
    )
    assert choose(rows).refused == {
        "no-accuracy": "its accuracy was not measured",
        "no-speed": "its speed was not measured",
    }


def test_a_row_compares_case_by_case_with_the_parent() -> None:
    child = measure("child", weights_mb=10, right=159, decode=200.0)
    assert child.quality is not None
    verdicts = ["other", *child.quality.verdicts[1:]]
    quality = Quality(**{**child.quality.model_dump(), "verdicts": verdicts})
    row = table(child.model_copy(update={"quality": quality}))[1]
    assert row.same_verdict == pytest.approx(199 / 200)
    assert row.times_smaller == 4
    assert row.exact is not None
    assert row.exact.low < row.exact.value == 159 / 200 < row.exact.high
    assert row.exact_points_per_mb == pytest.approx(7.95)
    assert row.thinking_mean == 20
