from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from benchmarks.before_after import (
    BeforeAfterConfig,
    Taken,
    check_same_recipe,
    compare,
    measure,
    search_rate,
    summarise,
    take,
)
from benchmarks.client import Exchange
from benchmarks.pictures import draw_before_after
from curt.law.verdict import Term, Verdict
from loadtest._http import Got
from tests.benchmarks.fake_server import answer, http, serving
from tests.compress.onnx.exports import export, write_cases

VERDICT = Verdict(("盗窃",), ("264",), Term("fixed", 8), 2000)


def exchange(status: int = 200, **changes) -> Exchange:
    return Exchange(0, 0.0, 0.0, 0.0125, Got(status, json.dumps(answer(**changes)).encode()))


def test_an_answer_is_worth_its_time_its_length_and_whether_it_is_right():
    assert take(exchange(), VERDICT) == Taken(12.5, 21, exact=True, cut=False)
    other = Verdict(("盗窃",), ("264",), Term("fixed", 9), 2000)
    assert not take(exchange(), other).exact


def test_a_degraded_reply_is_wrong_and_none_at_all_stops_the_run():
    assert not take(exchange(degraded=True, degraded_reason="deadline"), VERDICT).exact
    with pytest.raises(RuntimeError, match="503"):
        take(exchange(503), VERDICT)


# The stand-in server's streams end with the loop.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_a_server_that_refuses_everything_keeps_no_rate():
    config = BeforeAfterConfig(start_rate=40, seconds=0.2, pause_seconds=0)

    async def search() -> dict:
        async with serving(lambda _: http({}, "503 Busy")) as url:
            return await search_rate(config, url, ["甲", "乙"])

    found = asyncio.run(search())
    assert found["rate_per_s"] == 0.0
    assert found["steps"][0]["misses"] == found["steps"][0]["requests"] > 0


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
        model=soak_model,
        cases=write_cases(tmp_path / "cases.jsonl"),
        rounds=1,
        seconds=0.3,
        precision=1.0,
        start_rate=40,
        workers=1,
    )
    found, runs = asyncio.run(measure(config))
    both = found["models"]
    own = both["warm_start"]["off"]["thinking_tokens"]
    assert own == both["penalised"]["off"]["thinking_tokens"]
    assert found["penalised_to_warm_start"]["thinking_tokens"] == pytest.approx(1.0)
    assert len(runs["deadline"]["warm_start"]) == 6
    assert draw_before_after(found, runs).startswith(b"\x89PNG")
