"""Whether answered charges are still those of the training corpus."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from curt.dialogue import THINK_END, render_answer
from curt.law.verdict import Term, Verdict
from serve.drift import OTHER, Drift, compare, jensen_shannon_distance, read_charges
from serve.served import Served
from tests.serve.fake_pool import generation

TRAINING = {"盗窃": 5000, "危险驾驶": 3000, "故意伤害": 1500, "诈骗": 400, "抢劫": 100}
COUNTS = st.lists(st.integers(0, 1000), min_size=3, max_size=3).filter(any)


def served(charge: str) -> Served:
    answer = render_answer(Verdict((charge,), ("264",), Term("fixed", 8)))
    return Served(generation(f"窃取{THINK_END}{answer}"), 48, 48, 1.5)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.json"
    path.write_text(json.dumps({"sets": {"train": {"charges": TRAINING}}}), encoding="utf-8")
    return path


@given(left=COUNTS, right=COUNTS)
def test_the_distance_is_symmetric_bounded_and_zero_only_for_one_mix(
    left: list[int], right: list[int]
) -> None:
    p, q = np.array([left], float), np.array([right], float)
    distance = jensen_shannon_distance(p, q)[0]
    assert distance == pytest.approx(jensen_shannon_distance(q, p)[0])
    assert 0 <= distance <= 1
    assert (distance < 1e-6) == np.allclose(p / p.sum(), q / q.sum())
    if not (p * q).any():
        assert distance == pytest.approx(1)


def test_the_distance_of_a_known_pair() -> None:
    # JSD([1, 0], [1/2, 1/2]) = H(3/4, 1/4) - H(1/2, 1/2) / 2 = 0.8113 - 0.5 bits
    distance = jensen_shannon_distance(np.array([[1.0, 0.0]]), np.array([[5.0, 5.0]]))[0]
    assert distance == pytest.approx(0.3113**0.5, abs=1e-3)


@pytest.mark.parametrize("count", [1, 5, 30, 200, 1000])
def test_the_training_mix_itself_alarms_hardly_ever(count: int) -> None:
    alarms = 0
    for seed in range(100):
        drawn = random.Random(seed).choices(list(TRAINING), list(TRAINING.values()), k=count)
        found = compare(Counter(drawn), TRAINING)
        alarms += found is not None and found.has_drifted
    assert alarms <= 5  # one in a hundred is meant


def test_few_odd_charges_and_slight_shifts_are_no_alarm_and_many_are() -> None:
    few = compare({"诈骗": 1, "盗窃": 1, "危险驾驶": 1}, TRAINING)
    slight = compare({k: 20 * n for k, n in (TRAINING | {"盗窃": 5400}).items()}, TRAINING)
    many = compare({"诈骗": 180, "盗窃": 120}, TRAINING)
    assert few
    assert slight
    assert many
    assert slight.distance > slight.limit
    assert (few.has_drifted, slight.has_drifted, many.has_drifted) == (False, False, True)
    assert compare({}, TRAINING) is None


def test_metrics_tell_what_the_model_answered_lately(corpus: Path) -> None:
    registry = CollectorRegistry()
    drift = Drift(corpus, registry)
    assert "curt_drift_distance" not in generate_latest(registry).decode()
    for _ in range(1200):
        drift.observe(served("诈骗"))
    text = generate_latest(registry).decode()
    assert "curt_drift_drifted 1.0" in text
    assert re.search(r"curt_drift_distance 0\.\d+", text)
    assert re.search(r"curt_drift_distance_limit 0\.\d+", text)
    assert 'curt_charges_total{charge="诈骗"} 1200.0' in text
    for _ in range(1000):  # all that is compared
        drift.observe(served("盗窃"))
    assert drift.compare() == compare({"盗窃": 1000}, TRAINING)


def test_stand_ins_and_names_that_law_lacks_are_not_told(corpus: Path) -> None:
    registry = CollectorRegistry()
    drift = Drift(corpus, registry)
    answer = served("盗窃")
    drift.observe(replace(answer, generation=replace(answer.generation, finish="deadline")))
    assert drift.compare() is None
    drift.observe(served("自编罪名"))
    assert f'curt_charges_total{{charge="{OTHER}"}} 1.0' in generate_latest(registry).decode()


@pytest.mark.parametrize("content", ["", "[]", {"sets": {}}, {"sets": {"train": {"charges": {}}}}])
def test_what_counts_no_charges_is_refused_with_the_remedy(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "mix.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=r"mix\.json counts no charges: give the corpus\.json"):
        read_charges(path)
