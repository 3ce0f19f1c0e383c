from __future__ import annotations

import random
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest._page import render_page
from loadtest._plan import LoadPlan, add_flags
from loadtest._reply import REST, Outcome
from loadtest._report import make_report


@pytest.fixture
def plan(tmp_path: Path) -> LoadPlan:
    path = tmp_path / "cases.jsonl"
    path.write_text('{"fact": "被告人张某窃取现金。"}\n', encoding="utf-8")
    parser = ArgumentParser()
    add_flags(parser)
    options = parser.parse_args(["--cases", str(path), "--shape", "spike", "--rate", "10"])
    options.run_time = 20.0
    return LoadPlan.of(options, "http://server.example")


def outcome_at(at_s: float, source: random.Random) -> Outcome:
    phases_ms = {"queue": 2.0, "prefill": 10.0, "decode": source.uniform(5, 300), "total": 0.0}
    phases_ms[REST] = 3.0
    latency_ms = sum(phases_ms.values())
    return Outcome(latency_ms, None, True, 0.5, phases_ms, 12, at_s, "short")


def test_a_page_shows_what_the_report_says_and_loads_nothing(plan: LoadPlan) -> None:
    source = random.Random(0)
    outcomes = [outcome_at(n / 10, source) for n in range(200)]
    outcomes.append(Outcome(3.0, "shed (503)", at_s=5.0, length="short"))
    outcomes.append(Outcome(3.0, "status <b>500</b>", at_s=5.0, length="short"))
    report = make_report(plan, outcomes, 20.0, ready=True)
    page = render_page(report)
    assert page.count("<svg") == 4
    assert "2 of 202" in page
    assert report["confidence"]["statement"].replace("<", "&lt;") in page
    assert "mathdefault" not in page
    assert "<b>500" not in page
    assert "被告人" not in page
    assert "http" not in page.replace("http://server.example", "").replace("http-equiv", "")


def test_a_run_without_a_request_has_a_page_too(plan: LoadPlan) -> None:
    page = render_page(make_report(plan, [], 0.0, ready=False))
    assert "no request was made" in page
    assert "<svg" not in page


def test_a_soak_is_looked_at_by_the_minute(plan: LoadPlan) -> None:
    source = random.Random(0)
    outcomes = [outcome_at(float(at_s), source) for at_s in range(180)]
    report = make_report(replace(plan, shape="soak", run_time=180.0), outcomes, 180.0, ready=True)
    assert [row["from_s"] for row in report["windows"]] == [0, 60, 120]
    assert [row["requests"] for row in report["windows"]] == [60, 60, 60]


def test_a_problem_besides_the_slo_fails_the_run(plan: LoadPlan) -> None:
    outcomes = [outcome_at(n / 10, random.Random(1)) for n in range(100)]
    kept = make_report(plan, outcomes, 10.0, ready=True)
    assert kept["verdict"]["passed"]
    lost = make_report(plan, outcomes, 10.0, ready=True, workers=2, problems=["a worker was lost"])
    assert lost["verdict"] == {"passed": False, "reasons": ["a worker was lost"]}


def test_a_report_tells_that_a_key_was_sent_and_nothing_of_it(
    plan: LoadPlan, tmp_path: Path
) -> None:
    key = tmp_path / "api.key"
    key.write_text("sk-secret")
    told = replace(plan, api_key_file=str(key)).describe()
    assert told["api_key"] == "sent"
    assert "sk-secret" not in str(told)
    assert str(key) not in str(told)
