from __future__ import annotations

import json
import time
from collections.abc import Generator
from pathlib import Path
from statistics import median
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.client import Exchange
from benchmarks.guard import (
    BETTER,
    GuardConfig,
    decode_rate,
    interleave,
    judge,
    loss,
    settle,
    work,
)
from compress.compare.speed import OrtSubject, make_request
from curt.config import run
from curt.engines.onnx.engine import OrtEngine
from loadtest._http import Got
from tests.compress.onnx.exports import write_cases

POSITIVE = st.floats(0.01, 100)
BASE = MappingProxyType({"value": 2.0, "better": "higher", "guards": True})


@given(POSITIVE, POSITIVE)
def test_a_loss_is_the_same_whichever_way_the_ratio_is_written(value, base):
    assert loss(value, base, "higher") == pytest.approx(loss(1 / value, 1 / base, "lower"))
    assert (loss(value, base, "higher") > 0) == (value < base)


@pytest.mark.parametrize(
    ("value", "better", "expected"),
    [(1.5, "higher", 0.25), (3.0, "higher", -0.5), (4.0, "lower", 0.5), (0.0, "higher", 1.0)],
)
def test_losses(value, better, expected):
    assert loss(value, 2.0, better) == pytest.approx(expected)


def test_a_ratio_fails_below_the_tolerance_and_in_no_other_case():
    base = {"a": BASE, "b": BASE, "c": {**BASE, "guards": False}}
    rows = judge([{"a": 1.5, "b": 1.7, "c": 0.1}], base, 0.2)
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert verdicts == {"a": "failed", "b": "passed", "c": "not judged"}


def test_the_better_of_two_takes_counts():
    row = judge([{"a": 1.0}, {"a": 1.9}], {"a": BASE}, 0.2)["a"]
    assert (row["verdict"], row["value"]) == ("passed", 1.9)
    assert row["loss"] == pytest.approx(0.05)


def test_only_settled_ratios_guard():
    first, second = list(BETTER)[:2]
    rows = settle([{first: a, second: b} for a, b in ((1.0, 1.0), (1.05, 2.0), (0.97, 1.1))])
    assert rows[first]["guards"]
    assert rows[first]["value"] == 1.0
    assert rows[first]["spread"] == pytest.approx(0.05)
    assert not rows[second]["guards"]


def test_pairs_alternate_who_is_first():
    calls: list[str] = []

    def half(name: str, value: float) -> float:
        calls.append(name)
        return value

    pairs = list(interleave(lambda: half("x", 6.0), lambda: half("y", 2.0), 3))
    assert pairs == [3.0, 3.0, 3.0]
    assert "".join(calls) == "xyyxxy"


def test_a_refusal_of_an_unhurried_request_stops_the_run():
    fine = Exchange(0, 0.0, 0.0, 0.1, Got(200, b"{}"))
    assert fine.require_answer() == {}
    with pytest.raises(RuntimeError, match="503"):
        Exchange(0, 0.0, 0.0, 0.1, Got(503)).require_answer()


def test_which_answers_are_the_models():
    def exchange(reason: str | None, status: int = 200) -> Exchange:
        body = json.dumps({"degraded_reason": reason}).encode()
        return Exchange(0, 0.0, 0.0, 0.03, Got(status, body))

    assert exchange(None).by_model
    assert exchange("unreadable_answer").by_model
    assert not exchange("overloaded").by_model
    assert not exchange(None, status=503).by_model


def test_no_baseline_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--update true"):
        work(GuardConfig(baseline=tmp_path / "none.json"))


def test_the_committed_baseline_passes_against_itself() -> None:
    base = json.loads(GuardConfig().baseline.read_text(encoding="utf-8"))["ratios"]
    assert base.keys() == BETTER.keys()
    assert {name: row["better"] for name, row in base.items()} == BETTER
    rows = judge([{name: row["value"] for name, row in base.items()}], base, 0.2)
    assert {row["verdict"] for row in rows.values()} == {"passed"}


class SleepyEngine(OrtEngine):
    """The engine with a real sleep between its tokens."""

    def stream(self, request) -> Generator:
        for step in super().stream(request):
            if step.phase in ("thinking", "answer"):
                time.sleep(0.0005)
            yield step


@pytest.mark.slow
def test_the_decode_rate_sees_a_planted_slowdown_of_the_engine(soak_model: Path) -> None:
    subject = OrtSubject(soak_model, 1)
    request = make_request(subject, 200, 64)
    passes = subject.run_engine(request).passes

    def ratio() -> float:
        ours, bare = lambda: subject.run_engine(request), lambda: subject.run_bare(request, passes)
        return median(interleave(lambda: decode_rate(ours()), lambda: decode_rate(bare()), 25))

    quick = ratio()
    subject.engine = SleepyEngine(soak_model, threads=1)
    assert loss(ratio(), quick, "higher") > 0.5


@pytest.mark.slow
def test_the_command_passes_against_itself_and_exits_with_1_on_a_loss(
    soak_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    (folder / "corpus").mkdir(parents=True)
    (folder / "ort-w8a8").symlink_to(soak_model)
    write_cases(folder / "corpus" / "test.jsonl")
    baseline, report = tmp_path / "baseline.json", tmp_path / "smoke.json"
    common = ["--run", str(folder), "--baseline", str(baseline), "--report", str(report)]
    common += ["--pairs", "4", "--load_pairs", "1", "--seconds", "0.2"]
    run(GuardConfig, work, [*common, "--update", "true", "--takes", "2"])
    kept = json.loads(baseline.read_text(encoding="utf-8"))
    # The machine may be busy: what is tested is the way from ratios to the exit status.
    decode = "engine_over_bare_decode"
    kept["ratios"] = {decode: kept["ratios"][decode] | {"guards": True}}
    baseline.write_text(json.dumps(kept), encoding="utf-8")
    run(GuardConfig, work, [*common, "--tolerance", "0.95"])
    kept["ratios"][decode]["value"] *= 100
    baseline.write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(SystemExit) as lost:
        run(GuardConfig, work, [*common, "--tolerance", "0.95"])
    assert lost.value.code == 1
    told = json.loads(report.read_text(encoding="utf-8"))
    assert not told["passed"]
    assert len(told["takes"]) == 2
