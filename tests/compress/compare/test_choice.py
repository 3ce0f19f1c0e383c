from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.compare.choice import (
    RULE,
    ArtifactRow,
    Measured,
    Quality,
    choose,
    make_rows,
    pareto_front,
)
from compress.compare.speed import Speed, Spread
from compress.onnx.recipes import DEFAULT_RECIPE
from curt.scores.statistics import Span
from tests.compress.compare.records import measure

ROOT = Path(__file__).parents[3]
POINTS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    min_size=1,
    max_size=8,
)


def table(*artifacts: Measured, fp32_mb: float = 40.0) -> list[ArtifactRow]:
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


def test_the_default_is_the_fastest_that_is_good_enough() -> None:
    rows = table(
        measure("fast-but-worse", weights_mb=5, right=150, decode=900.0),
        measure("slow", weights_mb=4, right=160, decode=300.0),
        measure("taken", weights_mb=20, right=159, decode=600.0),
    )
    choice = choose(rows)
    assert choice.name == "taken"
    assert choice.qualified == ["taken", "slow"]
    assert choice.refused == {"fast-but-worse": "it loses 5.0 points of exact accuracy"}
    assert choice.rule == RULE
    assert choice.caveat is not None
    assert "200 cases can't settle half a point" in choice.caveat


def test_a_request_is_its_prompt_and_its_answer() -> None:
    (row,) = table(measure("one", weights_mb=4, right=160, decode=100.0))[1:]
    # 500 tokens read at one a second; 20 of thinking and 25 of the answer written at 100
    assert row.request_ms == pytest.approx(1e3 * (500 + 45 / 100))


def test_a_prompt_read_faster_outweighs_an_answer_written_slower() -> None:
    reader = measure("reader", weights_mb=4, right=160, decode=90.0)
    writer = measure("writer", weights_mb=4, right=160, decode=99.0)
    twice = {"prefill_tokens_per_s": Spread(median=2.0, low=2.0, high=2.0)}
    speeds = [speed.model_copy(update=twice) for speed in reader.speeds]
    assert choose(table(reader.model_copy(update={"speeds": speeds}), writer)).name == "reader"


def test_the_logged_figures_choose_the_default_recipe() -> None:
    """With w8a8's of docs/experiments.md (2026-11-21), which benchmarks/results does not hold."""
    report = json.loads((ROOT / "benchmarks" / "results" / "compression.json").read_text())
    for row in report["rows"]:  # the log holds more of a speed than the choice asks for
        row["speeds"] = [
            {name: speed[name] for name in Speed.model_fields} for speed in row["speeds"]
        ]
    rows = [ArtifactRow.model_validate(row) for row in report["rows"]]
    int4 = next(row for row in rows if row.identity.name == "ort-int4")
    # a prompt of 67 tokens in 1.3 ms in place of int4's 3.0, a pass over one in .17 in place of .15
    faster = {"prefill_tokens_per_s": 3.0 / 1.3, "decode_tokens_per_s": 0.15 / 0.17}
    speeds = [
        speed.model_copy(
            update={name: scaled(getattr(speed, name), by) for name, by in faster.items()}
        )
        for speed in int4.speeds
    ]
    identity = {"name": "ort-w8a8", "precision": "w8a8", "weights_mb": 4.4}
    w8a8 = int4.model_copy(
        update={
            "identity": int4.identity.model_copy(update=identity),
            "change": Span(value=0.0010, low=-0.0017, high=0.0037),
            "speeds": speeds,
        }
    )
    choice = choose([*rows, w8a8])
    assert choice.name == f"ort-{DEFAULT_RECIPE}"
    assert choice.qualified[1] == "ort-int4"
    assert set(choice.refused) == {"ort-rtn"}
    assert choice.caveat is None


def scaled(spread: Spread, by: float) -> Spread:
    return Spread(**{name: value * by for name, value in spread.model_dump().items()})


def test_half_a_point_is_still_within_the_rule() -> None:
    rows = table(measure("edge", weights_mb=30, right=159, decode=1.0))
    assert rows[1].change is not None
    assert rows[1].change.value == pytest.approx(-0.005)
    assert choose(rows).name == "edge"


def test_one_case_more_lost_is_outside_the_rule() -> None:
    assert choose(table(measure("over", weights_mb=4, right=158, decode=1.0))).name is None


def test_at_equal_time_the_smaller_is_taken() -> None:
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
