from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from curt.artifact import GATE, refusal_of, write_artifact
from curt.corpus.augment.counterfactuals import MOVES, STAYS
from curt.files import sha256, write_json
from curt.gate import LIMITS, GateConfig, main

N = 300
UNCALIBRATED: dict[str, Any] = {"limits": {"calibration": None}}


def make_folder(folder: Path, note: int) -> Path:
    describe = {
        "format": "hf", "precision": "fp32", "stage": "test", "base": "none",
        "max_fact_tokens": 200, "max_thinking_tokens": 64,
    }  # fmt: skip
    with write_artifact(folder, describe) as temporary:
        write_json(temporary / "note.json", note)
    return folder


class Bench:
    """Two model folders and their reports, alike but for what a test changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = {n: make_folder(folder / n, i) for i, n in enumerate(("served", "new"))}
        for name in self.models:
            self.report(name)

    def report(self, name: str, **changes: Any) -> None:
        pairs = dict.fromkeys((*STAYS, *MOVES), True)
        exact = [n % 4 != 0 for n in range(N)]
        write_json(
            self.folder / f"{name}.json",
            {
                "name": name,
                "n": N,
                "model": str(self.models[name]),
                "manifest_sha256": sha256(self.models[name] / "manifest.json"),
                "corpus_sha256": "c",
                "stated_budget": 128,
                "scores": {},
                "exact_cases": exact,
                "charges": ["盗窃" if n % 25 else "诈骗" for n in range(N)],
                "thinking_lengths": [10 + n % 20 for n in range(N)],
                "counterfactuals": {"by_kind": {}, "cases": [pairs] * 80},
                **changes,
            },
        )

    def judge(self, **settings: Any) -> dict[str, Any]:
        config = GateConfig(
            served=self.folder / "served.json", candidate=self.folder / "new.json",
            **(UNCALIBRATED | settings),
        )  # fmt: skip
        status = main(config)
        verdict = json.loads((self.models["new"] / GATE).read_bytes())
        assert status == (0 if verdict["passed"] else 1)
        return verdict


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_candidate_as_good_as_the_served_one_passes(bench: Bench) -> None:
    verdict = bench.judge()
    assert (verdict["passed"], verdict["refused"]) == (True, [])
    assert verdict["criteria"].keys() == LIMITS.keys()
    assert verdict["criteria"]["accuracy"]["served"] == 0.75
    assert refusal_of(bench.models["new"]) == ""


def worse_pairs(kind: str) -> dict[str, Any]:
    cases = [{k: k != kind or n % 3 > 0 for k in (*STAYS, *MOVES)} for n in range(80)]
    return {"counterfactuals": {"by_kind": {}, "cases": cases}}


REGRESSIONS: dict[str, dict[str, Any]] = {
    "accuracy": {"exact_cases": [n % 4 != 0 and n % 11 != 0 for n in range(N)]},
    "thinking": {"thinking_lengths": [13 + n % 20 for n in range(N)]},
    "sensitivity": worse_pairs("surrender"),
    "invariance": {
        "counterfactuals": {
            "by_kind": {},
            "cases": [{k: k in MOVES or n % 8 > 0 for k in (*STAYS, *MOVES)} for n in range(80)],
        }
    },
    "charges": {"exact_cases": [n % 4 != 0 and n not in (25, 50, 75) for n in range(N)]},
}


@pytest.mark.parametrize("planted", REGRESSIONS)
def test_a_planted_regression_is_refused_by_its_own_criterion(bench: Bench, planted: str) -> None:
    bench.report("new", **REGRESSIONS[planted])
    verdict = bench.judge()
    assert planted in verdict["refused"]
    assert set(verdict["refused"]) <= {planted, "charges"}  # a worse model is worse somewhere
    found = verdict["criteria"][planted]
    assert found["loss"] > found["limit"] == LIMITS[planted]
    assert (
        refusal_of(bench.models["new"])
        == f"refused by its gate for {', '.join(verdict['refused'])}"
    )
    assert bench.judge(limits=dict.fromkeys(LIMITS))["passed"]


def test_a_charge_of_few_cases_is_not_looked_at_by_itself(bench: Bench) -> None:
    rare = {"charges": ["盗窃" if n > 8 else "诈骗" for n in range(N)]}
    bench.report("served", **rare)
    bench.report("new", **rare, exact_cases=[n % 4 != 0 and n > 2 for n in range(N)])
    assert bench.judge()["passed"]


def test_what_was_not_measured_is_refused_unless_left_out(bench: Bench) -> None:
    nothing = {"counterfactuals": {"by_kind": {}, "cases": []}}
    bench.report("served", **nothing)
    bench.report("new", **nothing)
    verdict = bench.judge(limits={})
    assert verdict["refused"] == ["invariance", "sensitivity", "calibration"]
    assert verdict["criteria"]["invariance"]["loss"] is None
    left_out = dict.fromkeys(("invariance", "sensitivity", "calibration"))
    assert bench.judge(limits=left_out)["passed"]


@pytest.mark.parametrize(
    "change", [{"corpus_sha256": "d"}, {"stated_budget": 32}, {"counterfactuals": {"cases": []}}]
)
def test_reports_that_were_not_asked_alike_are_refused(bench: Bench, change: Any) -> None:
    bench.report("new", **change)
    with pytest.raises(ValueError, match="evaluate both alike"):
        bench.judge()
    assert not (bench.models["new"] / GATE).exists()


def test_a_verdict_is_on_the_model_that_was_evaluated_and_on_no_other(bench: Bench) -> None:
    bench.report("new", **REGRESSIONS["thinking"])
    bench.judge()
    verdict = (bench.models["new"] / GATE).read_bytes()
    make_folder(bench.models["new"], 9)
    (bench.models["new"] / GATE).write_bytes(verdict)
    assert refusal_of(bench.models["new"]) == ""
    with pytest.raises(ValueError, match="is not the model of"):
        bench.judge()
    (bench.models["new"] / GATE).write_text("{")
    assert "can be read" in refusal_of(bench.models["new"])


def test_the_command_ends_with_status_1_where_it_refuses(bench: Bench) -> None:
    bench.report("new", **REGRESSIONS["accuracy"])
    ran = subprocess.run(
        [sys.executable, "-m", "curt.gate", "--served", bench.folder / "served.json",
         "--candidate", bench.folder / "new.json", "--limits", '{"calibration": null}'],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "refused for accuracy" in ran.stderr
    assert "Traceback" not in ran.stderr
