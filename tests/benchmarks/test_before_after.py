from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.asker import Answer
from benchmarks.before_after.__main__ import (
    BeforeAfterConfig,
    Taken,
    check_same_recipe,
    compare,
    highest,
    measure,
    read_verdict,
    search_rate,
    summarise,
    take,
    work_out,
)
from benchmarks.before_after.plot import draw_before_after
from curt.dialogue import ParseFailure
from curt.law.verdict import Term, Verdict
from tests.compress.onnx.exports import export, write_cases

VERDICT = Verdict(("盗窃",), ("264",), Term("fixed", 8), 2000)
REPLY = {
    "degraded": False,
    "degraded_reason": None,
    "thinking": {"tokens": 21, "cut": False},
    "defendants": [
        {
            "charges": [{"name": "盗窃", "title": "盗窃罪"}],
            "articles": [{"id": "264", "title": "第二百六十四条"}],
            "term": {"kind": "fixed", "months": 8, "probation_months": 0},
            "fine_yuan": 2000,
        }
    ],
}


def trial_up_to(limit: float):
    return lambda rate: {"rate_per_s": rate, "kept": rate <= limit}


def test_the_verdict_in_a_reply():
    assert read_verdict(REPLY) == VERDICT
    taken = take(Answer(200, REPLY, 12.5), VERDICT)
    assert taken == Taken(12.5, 21, exact=True, cut=False)
    other = Verdict(("盗窃",), ("264",), Term("fixed", 9), 2000)
    assert not take(Answer(200, REPLY, 12.5), other).exact


def test_a_degraded_reply_is_no_verdict():
    degraded = {**REPLY, "degraded": True, "degraded_reason": "deadline"}
    assert read_verdict(degraded) == ParseFailure("deadline")
    assert not take(Answer(200, degraded, 9.0), VERDICT).exact
    with pytest.raises(RuntimeError, match="503"):
        take(Answer(503, {}, 9.0), VERDICT)


@given(st.floats(0.2, 500), st.floats(1, 50), st.integers(0, 6))
def test_a_search_ends_below_the_limit_and_near_it(limit, start, steps):
    trials = search_rate(trial_up_to(limit), start, steps)
    found = highest(trials)
    assert found <= limit
    if start / 64 <= limit:
        gap = 2 if start > limit else 1.5
        assert limit <= found * (1 + (gap - 1) / 2**steps) * 1.0001
        assert limit / found < gap * 1.0001


def test_a_server_that_keeps_nothing_ends_the_search():
    trials = search_rate(trial_up_to(0.0), 8.0, 3)
    assert len(trials) == 7
    assert highest(trials) == 0.0


def taken(count: int, ms: float, tokens: int, right: int) -> list[Taken]:
    return [Taken(ms, tokens, exact=i < right, cut=False) for i in range(count)]


def test_before_and_after_are_compared_case_by_case():
    runs = {"off": {"warm_start": taken(10, 40.0, 80, 8), "penalised": taken(10, 10.0, 20, 6)}}
    models = {
        name: {"off": summarise(own), "max_rate_per_s": {"median": rate}}
        for (name, own), rate in zip(runs["off"].items(), (20.0, 50.0), strict=True)
    }
    found = compare(runs, models)
    assert found["latency"] == 0.25
    assert found["thinking_tokens"] == 0.25
    assert found["max_rate"] == 2.5
    assert found["exact_change"] == pytest.approx(-0.2)
    low, high = found["exact_change_interval"]
    assert low <= -0.2 <= high


def test_arithmetic_follows_its_formula_and_says_what_it_is():
    config = BeforeAfterConfig(tpots_ms=[2.0], prefill_ms=50, deadline_ms=400)
    models = {name: {"off": summarise(taken(4, 1.0, 76, 4))} for name in ("before", "after")}
    found = work_out(config, models, 23.0)
    assert found["measured"] is False
    assert found["models"]["after"]["latency_ms"] == [50 + (76 + 1 + 23) * 2.0]
    assert found["models"]["after"]["longest_tpot_ms"] == 3.5


@pytest.mark.slow
def test_exports_of_different_recipes_are_refused(
    soak_model: Path, micro_model: Path, tmp_path: Path
) -> None:
    check_same_recipe(soak_model, soak_model)
    other = export(micro_model, tmp_path / "int8", "int8")
    with pytest.raises(ValueError, match="precision"):
        check_same_recipe(soak_model, other)


@pytest.mark.slow
def test_a_model_beside_itself(soak_model: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(soak_model, twin)
    config = BeforeAfterConfig(
        warm_start=twin,
        penalised=soak_model,
        cases=write_cases(tmp_path / "cases.jsonl"),
        rounds=1,
        seconds=0.3,
        steps=0,
        start_rate=40,
        workers=1,
    )
    found = measure(config)
    both = found["models"]
    own = both["warm_start"]["off"]["thinking_tokens"]
    assert own == both["penalised"]["off"]["thinking_tokens"]
    assert found["penalised_to_warm_start"]["thinking_tokens"] == pytest.approx(1.0)
    assert len(found["raw"]["deadline"]["warm_start"]) == 6
    assert draw_before_after(found).startswith(b"\x89PNG")
