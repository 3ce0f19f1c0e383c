from __future__ import annotations

import json
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.asker import Answer
from benchmarks.smoke import SmokeConfig, guard, judge, loss, main, settle, table
from benchmarks.smoke_model import Subjects, find_demo
from benchmarks.smoke_ratios import (
    Ratio,
    engine_ratios,
    interleave,
    is_good,
    is_model,
    ratio_of,
)
from compress.compare.subject import OrtSubject
from curt.engines.onnx.engine import OrtEngine
from curt.engines.protocol import GenerationStep, Request
from tests.compress.onnx.exports import write_cases

POSITIVE = st.floats(0.01, 100)
BASE = MappingProxyType({"value": 2.0, "better": "higher", "guards": True})


class SleepyEngine(OrtEngine):
    """The engine with a real sleep between its tokens."""

    def stream(self, request: Request) -> Generator[GenerationStep, None, None]:
        for step in super().stream(request):
            if step.phase in ("thinking", "answer"):
                time.sleep(0.0005)
            yield step


def ratio(value: float, better: str = "higher") -> Ratio:
    return Ratio(value, better, 1, value, value)


@given(POSITIVE, POSITIVE)
def test_a_loss_is_the_same_whichever_way_the_ratio_is_written(value, base):
    assert loss(value, base, "higher") == pytest.approx(loss(1 / value, 1 / base, "lower"))
    assert (loss(value, base, "higher") > 0) == (value < base)


@pytest.mark.parametrize(
    ("value", "better", "expected"),
    [(1.5, "higher", 0.25), (3.0, "higher", -0.5), (4.0, "lower", 0.5), (2.0, "lower", 0.0)],
)
def test_losses(value, better, expected):
    assert loss(value, 2.0, better) == pytest.approx(expected)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_a_ratio_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="above 0"):
        loss(bad, 1.0, "lower")


def test_nothing_left_is_all_lost():
    assert loss(0.0, 1.0, "higher") == 1.0


def test_a_ratio_fails_below_the_tolerance_and_in_no_other_case():
    takes = [{"a": ratio(1.5), "b": ratio(1.7), "c": ratio(0.1), "e": ratio(9.0)}]
    base = {"a": BASE, "b": BASE, "c": {**BASE, "guards": False}, "d": BASE}
    verdicts = {row["name"]: row["verdict"] for row in judge(takes, base, 0.2)}
    assert verdicts == {
        "a": "failed",
        "b": "passed",
        "c": "not judged",
        "d": "missing",
        "e": "no baseline",
    }


def test_the_better_of_two_takes_counts():
    (row,) = judge([{"a": ratio(1.0)}, {"a": ratio(1.9)}], {"a": BASE}, 0.2)
    assert (row["verdict"], row["value"]) == ("passed", 1.9)
    assert row["loss"] == pytest.approx(0.05)


def test_only_settled_ratios_guard():
    takes = [{"a": ratio(a), "b": ratio(b)} for a, b in ((1.0, 1.0), (1.05, 2.0), (0.97, 1.1))]
    rows = settle(takes)
    assert rows["a"]["guards"]
    assert rows["a"]["value"] == 1.0
    assert rows["a"]["spread"] == pytest.approx(0.05)
    assert not rows["b"]["guards"]


def test_pairs_alternate_who_is_first():
    calls: list[str] = []

    def run(name: str, value: float) -> float:
        calls.append(name)
        return value

    pairs = list(interleave(lambda: run("x", 6.0), lambda: run("y", 2.0), 3))
    assert pairs == [3.0, 3.0, 3.0]
    assert "".join(calls) == "xyyxxy"
    with pytest.raises(ValueError, match="1 or more"):
        next(interleave(lambda: 1.0, lambda: 1.0, 0))


@given(st.lists(POSITIVE, min_size=1, max_size=30))
def test_median_and_quartiles_are_in_order(pairs):
    found = ratio_of(pairs, "higher")
    assert min(pairs) <= found.low <= found.value <= found.high <= max(pairs)
    assert found.pairs == len(pairs)


def test_which_answers_count():
    answer = Answer(200, {"degraded_reason": None}, 30.0)
    assert is_good(answer)
    assert not is_good(replace(answer, ms=500.0))
    assert is_model(Answer(200, {"degraded_reason": "unreadable_answer"}, 30.0))
    assert not is_model(Answer(200, {"degraded_reason": "overloaded"}, 30.0))
    assert not is_model(Answer(503, {}, 2.0))


def test_the_table_lines_up():
    rows = judge([{"short": ratio(1.0)}], {"short": BASE, "a_longer_name": BASE}, 0.2)
    lines = table(rows).splitlines()
    assert [line.split()[-1] for line in lines] == ["verdict", "failed", "missing"]
    assert len({line.index(line.split()[1]) for line in lines}) == 1


def test_without_a_demo_run_nothing_is_found(tmp_path: Path) -> None:
    assert find_demo(tmp_path) is None


def test_no_baseline_names_the_remedy(tmp_path: Path) -> None:
    subjects = Subjects("made", tmp_path, tmp_path / "cases.jsonl")
    with pytest.raises(ValueError, match="--update true"):
        guard(SmokeConfig(baseline=tmp_path / "none.json"), subjects)


def test_the_committed_baseline_can_be_read() -> None:
    path = SmokeConfig().baseline
    if not path.is_file():
        pytest.skip("no baseline was set yet")
    models = json.loads(path.read_text(encoding="utf-8"))["models"]
    for rows in models.values():
        assert any(row["guards"] for row in rows.values())
        takes = [{name: ratio(row["value"], row["better"]) for name, row in rows.items()}]
        assert {row["verdict"] for row in judge(takes, rows, 0.2)} <= {"passed", "not judged"}


@pytest.mark.slow
def test_a_planted_slowdown_of_the_engine_fails_and_equal_speed_passes(soak_model: Path) -> None:
    subject = OrtSubject(soak_model, 1)
    takes = [engine_ratios(subject, 25) for _ in range(3)]
    name = "engine_over_bare_decode"
    base = {name: {**settle(takes)[name], "guards": True}}
    assert judge([engine_ratios(subject, 25)], base, 0.2)[0]["verdict"] == "passed"
    subject.engine = SleepyEngine(soak_model, threads=1)
    (row,) = [r for r in judge([engine_ratios(subject, 25)], base, 0.2) if r["name"] == name]
    assert row["verdict"] == "failed"
    assert row["loss"] > 0.5


@pytest.mark.slow
def test_the_command_passes_against_itself_and_exits_with_1_on_a_loss(
    soak_model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (run / "corpus").mkdir(parents=True)
    (run / "ort-w8a8").symlink_to(soak_model)
    write_cases(run / "corpus" / "test.jsonl")
    baseline, out = tmp_path / "baseline.json", tmp_path / "smoke.json"
    common = ["--run", str(run), "--baseline", str(baseline), "--out", str(out), "--pairs", "4"]
    common += ["--load_pairs", "1", "--seconds", "0.2"]
    # The machine may be busy: what is tested is the way from ratios to the exit status.
    lenient = ["--tolerance", "0.95"]
    with pytest.raises(SystemExit) as updated:
        main([*common, "--update", "true", "--takes", "2"])
    assert updated.value.code == 0
    kept = json.loads(baseline.read_text(encoding="utf-8"))
    rows = kept["models"]["demo"]
    for row in rows.values():
        row["guards"] = True
    baseline.write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(SystemExit) as equal:
        main([*common, *lenient])
    assert equal.value.code == 0
    rows["engine_over_bare_decode"]["value"] *= 100
    baseline.write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(SystemExit) as lost:
        main([*common, *lenient])
    assert lost.value.code == 1
    report = json.loads(out.read_text(encoding="utf-8"))
    assert not report["passed"]
    assert len(report["takes"]) == 2
    assert set(report["takes"][1]) == {"engine_over_bare_decode", "prefix_reuse"}
