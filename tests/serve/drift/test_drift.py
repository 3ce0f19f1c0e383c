from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from curt.config import run
from curt.corpus.case import Case
from curt.corpus.store import write_cases
from curt.dialogue import THINK_END, render_answer
from curt.law.verdict import Term, Verdict
from serve.api.errors import install_handlers
from serve.drift.__main__ import DriftConfig, work
from serve.drift.divergence import compare, jensen_shannon_distance
from serve.drift.drift import DAYS_KEPT, HOURS_KEPT, Drift, make_router
from serve.drift.tally import DAY_S, HOUR_S, OTHER, BinnedCounts, ChargeMix, DriftTally, read_mix
from serve.edge.context import RequestContext
from serve.metrics import Metrics
from serve.served import Served
from tests.serve.asgi_client import AsgiClient
from tests.serve.fake_engine import VERDICT
from tests.serve.fake_pool import generation

TRAINING = {"盗窃": 5000, "危险驾驶": 3000, "故意伤害": 1500, "诈骗": 400, "抢劫": 100}
REFERENCE = ChargeMix(cases=10_000, charges=TRAINING, fact_chars_median=180.0)
SERVED = Served(generation(f"窃取{THINK_END}{render_answer(VERDICT)}"), 48, 48, 1.5)
COUNTS = st.lists(st.integers(0, 1000), min_size=3, max_size=3).filter(any)


@dataclass
class Clock:
    now_s: float = 1_760_000_000.0

    def __call__(self) -> float:
        return self.now_s


def verdict(charge: str) -> Verdict:
    return Verdict((charge,), ("264",), Term("fixed", 8))


def feed(drift: Drift, charges: list[str], **changes: Any) -> None:
    values = {"fact_chars": 180, "thinking_tokens": 20, "total_ms": 150.0, "degraded": False}
    for charge in charges:
        drift.observe_answer(verdict(charge), **values | changes)


def draw(shares: dict[str, int], count: int, seed: int) -> list[str]:
    return random.Random(seed).choices(list(shares), list(shares.values()), k=count)


@given(left=COUNTS, right=COUNTS)
def test_the_distance_is_symmetric_bounded_and_zero_only_for_one_mix(
    left: list[int], right: list[int]
) -> None:
    p, q = np.array([left], float), np.array([right], float)
    distance = jensen_shannon_distance(p, q)[0]
    assert distance == pytest.approx(jensen_shannon_distance(q, p)[0])
    assert 0 <= distance <= 1
    same = np.allclose(p / p.sum(), q / q.sum())
    assert (distance < 1e-6) == same
    if not (p * q).any():
        assert distance == pytest.approx(1)


def test_the_distance_of_a_known_pair() -> None:
    # JSD([1, 0], [1/2, 1/2]) = H(3/4, 1/4) - H(1/2, 1/2) / 2 = 0.8113 - 0.5 bits
    distance = jensen_shannon_distance(np.array([[1.0, 0.0]]), np.array([[5.0, 5.0]]))[0]
    assert distance == pytest.approx(0.3113**0.5, abs=1e-3)


@pytest.mark.parametrize("count", [1, 5, 30, 200, 3000])
def test_the_training_mix_itself_alarms_hardly_ever(count: int) -> None:
    alarms = 0
    for seed in range(100):
        tally = DriftTally()
        for charge in draw(TRAINING, count, seed):
            tally.charges[charge] += 1
        comparison = compare(tally.charges, TRAINING)
        assert comparison is not None
        alarms += comparison.has_drifted
    assert alarms <= 5  # one in a hundred is meant


def test_a_few_odd_requests_do_not_alarm_and_many_do() -> None:
    other = {"诈骗": 60, "盗窃": 40}
    few = compare({"诈骗": 2}, TRAINING)
    many = compare({name: count * 3 for name, count in other.items()}, TRAINING)
    assert few is not None
    assert many is not None
    assert few.distance > many.distance  # and yet
    assert many.has_drifted
    assert not compare({"诈骗": 1, "盗窃": 1, "危险驾驶": 1}, TRAINING).has_drifted  # type: ignore[union-attr]


def test_the_limit_falls_with_the_root_of_the_number() -> None:
    limits = [compare({"盗窃": n}, TRAINING) for n in (100, 400, 1600)]
    values = [c.limit for c in limits if c]
    assert values[0] / values[1] == pytest.approx(2, rel=0.3)
    assert values[1] / values[2] == pytest.approx(2, rel=0.3)


def test_a_real_difference_too_small_to_matter_is_no_alarm() -> None:
    slight = dict(TRAINING, 盗窃=5400, 危险驾驶=2600)
    comparison = compare({name: count * 20 for name, count in slight.items()}, TRAINING)
    assert comparison is not None
    assert comparison.distance > comparison.limit
    assert not comparison.has_drifted
    assert comparison.state == "slight shift"


def test_nothing_to_compare_is_no_comparison() -> None:
    assert compare({}, TRAINING) is None
    assert compare({"盗窃": 1}, {}) is None
    assert Drift().compare("day") is None


def test_figures_of_the_window() -> None:
    clock = Clock()
    drift = Drift(reference=REFERENCE, clock=clock)
    feed(drift, ["盗窃"] * 6)
    clock.now_s += 2 * HOUR_S
    feed(drift, ["诈骗"] * 3, thinking_tokens=50, total_ms=390.0, fact_chars=600)
    drift.observe_answer(None, fact_chars=20, thinking_tokens=0, total_ms=400.0, degraded=True)
    for said in ("wrong", "correct", "wrong", "wrong"):
        drift.observe_feedback(said)
    hour, day = drift.total("hour"), drift.total("day")
    assert (hour.answers, day.answers) == (4, 10)
    assert hour.charges == {"诈骗": 3}
    assert day.charges == {"盗窃": 6, "诈骗": 3}
    shares = hour.shares()
    assert shares["degraded_share"] == 0.25
    assert shares["wrong_share"] == 0.75
    assert shares["thinking_tokens_mean"] == 37.5
    assert drift.total("week").answers == 10
    clock.now_s += 8 * DAY_S
    assert drift.total("week").answers == 0
    assert drift.total("hour").shares()["wrong_share"] is None


def test_served_answers_are_counted_and_stand_ins_left_out_of_the_mix() -> None:
    drift = Drift(reference=REFERENCE, clock=Clock())
    drift.observe(SERVED, fact_chars=180, total_ms=30.0)
    cut = replace(SERVED, generation=replace(SERVED.generation, finish="deadline"))
    drift.observe(cut, fact_chars=180, total_ms=400.0)
    tally = drift.total("hour")
    assert (tally.answers, tally.degraded, tally.charges) == (2, 1, {"盗窃": 1})


def test_memory_stays_bounded_over_a_year_of_anything() -> None:
    clock = Clock()
    drift = Drift(clock=clock)
    for day in range(365):
        clock.now_s += DAY_S / 2 if day % 2 else DAY_S
        feed(drift, [f"自编罪名{day}"])
    saved = drift.snapshot()
    assert len(saved["hours"]) <= HOURS_KEPT
    assert len(saved["days"]) <= DAYS_KEPT
    assert {name for day in saved["days"].values() for name in day["charges"]} == {OTHER}


def test_figures_outlive_a_restart(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "drift.json"
    first = Drift(path, REFERENCE, clock)
    feed(first, draw(TRAINING, 50, 1))
    first.observe_feedback("wrong")
    first.save()
    again = Drift(path, REFERENCE, clock)
    assert again.snapshot() == first.snapshot()
    assert again.compare("day") == first.compare("day")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 9}', '{"schema": 1, "hours": 3}'])
def test_a_damaged_file_is_set_aside(tmp_path: Path, content: str) -> None:
    path = tmp_path / "drift.json"
    path.write_text(content)
    drift = Drift(path)
    assert drift.total("week").answers == 0
    assert (tmp_path / "drift.unreadable").read_text() == content


def test_it_is_saved_when_the_server_ends(tmp_path: Path) -> None:
    async def serve() -> None:
        saving = asyncio.create_task(drift.keep_saving())
        await asyncio.sleep(0)
        saving.cancel()
        await asyncio.gather(saving, return_exceptions=True)

    drift = Drift(tmp_path / "drift.json", clock=Clock())
    feed(drift, ["盗窃"])
    asyncio.run(serve())
    assert json.loads((tmp_path / "drift.json").read_text())["days"]


@hypothesis_settings(max_examples=50)
@given(values=st.lists(st.integers(0, 5000), min_size=1, max_size=60), share=st.floats(0.01, 1))
def test_a_quantile_lies_in_the_bin_of_the_true_one(values: list[int], share: float) -> None:
    spread = BinnedCounts((10, 100, 1000))
    for value in values:
        spread.add(value)
    estimate = spread.quantile(share)
    true = sorted(values)[max(0, int(np.ceil(share * len(values) - 1e-9)) - 1)]
    assert estimate is not None
    if true > 1000:
        assert estimate == 1000
    else:
        high = next(bound for bound in spread.bounds if true <= bound)
        low = max((bound for bound in (0, 10, 100) if bound < high), default=0)
        assert low <= estimate <= high


def make_client(drift: Drift) -> tuple[AsgiClient, Metrics]:
    metrics, app = Metrics(), FastAPI()
    app.add_middleware(RequestContext, metrics=metrics)
    install_handlers(app)
    app.include_router(make_router(drift, metrics.registry))
    return AsgiClient(app), metrics


def test_gauges_by_window() -> None:
    drift = Drift(reference=REFERENCE, clock=Clock())
    _, metrics = make_client(drift)
    empty = metrics.render().decode()
    assert 'curt_drift_answers{window="hour"} 0.0' in empty
    assert "curt_drift_distance{" not in empty
    feed(drift, ["诈骗"] * 200)
    text = metrics.render().decode()
    assert 'curt_drift_drifted{window="day"} 1.0' in text
    assert re.search(r'curt_drift_distance\{window="week"\} 0\.\d+', text)
    assert "诈骗" not in text


def test_the_page_loads_nothing_and_says_what_moved() -> None:
    drift = Drift(reference=REFERENCE, clock=Clock())
    feed(drift, ["诈骗"] * 150 + ["盗窃"] * 50)
    drift.observe_feedback("wrong")
    client, _ = make_client(drift)
    response = client.get("/drift")
    assert response.status_code == 200
    page = response.text
    assert "drifted" in page
    assert page.index("诈骗") < page.index("抢劫")
    assert page.count("<svg") == 6
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "<script" not in page
    assert "default-src 'none'" in response.headers["content-security-policy"]


def test_a_page_of_nothing_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "drift.json"
    Drift(path, clock=Clock()).save()
    run(DriftConfig, work, ["page", str(path)])
    page = capsys.readouterr().out
    assert "no reference" in page
    assert "Nothing counted yet" in page


def test_a_reference_is_made_from_a_corpus(tmp_path: Path) -> None:
    cases = [
        Case(str(n), "被告人窃取财物。" * 10, verdict(charge), "test")
        for n, charge in enumerate(["盗窃", "盗窃", "诈骗"])
    ]
    write_cases(tmp_path / "train.jsonl", cases)
    run(DriftConfig, work, ["mix", str(tmp_path / "train.jsonl"), str(tmp_path / "mix.json")])
    mix = read_mix(tmp_path / "mix.json")
    assert (mix.cases, mix.charges) == (3, {"盗窃": 2, "诈骗": 1})
    with pytest.raises(ValueError, match=r"serve\.drift mix"):
        read_mix(tmp_path / "train.jsonl")


def test_the_front_never_loads_what_draws() -> None:
    code = "import sys, serve.drift.drift; sys.exit('matplotlib' in sys.modules)"
    import subprocess

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
