from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest._arrivals import arrival_times_s, load_facts, number_fact


def first(count: int, rate: float, seed: int) -> list[float]:
    return list(itertools.islice(arrival_times_s(rate, seed), count))


@given(st.floats(0.1, 1000), st.integers(0, 2**32))
def test_arrivals_are_ordered_and_repeat_with_their_seed(rate: float, seed: int) -> None:
    times = first(50, rate, seed)
    assert times == sorted(times)
    assert times[0] >= 0
    assert times == first(50, rate, seed)


def test_another_seed_is_another_schedule() -> None:
    assert first(5, 5.0, 0) != first(5, 5.0, 1)


def test_arrivals_are_poisson() -> None:
    """The mean gap is 1/rate, and gaps vary as much as their mean, as in no regular schedule."""
    times = first(20_000, 4.0, 7)
    gaps = [late - early for early, late in itertools.pairwise([0.0, *times])]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.25, rel=0.03)
    assert spread == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_that_brings_nobody_is_refused_at_once(rate: float) -> None:
    with pytest.raises(ValueError, match="use more than 0"):
        arrival_times_s(rate, 0)


def test_facts_are_read_from_corpus_rows(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    rows = [{"id": "1", "fact": "甲窃取现金。"}, {"id": "2", "fact": "乙醉酒驾驶。"}]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    assert load_facts(path) == ["甲窃取现金。", "乙醉酒驾驶。"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "no cases at"),
        ("", "holds no cases"),
        ("{broken", "line 1"),
        ('{"fact": "x"}\n{"text": "y"}', "line 2"),
        ('{"fact": 3}', "line 1"),
        ("[1]", "line 1"),
    ],
)
def test_unusable_cases_are_refused_with_the_remedy(
    tmp_path: Path, text: str | None, complaint: str
) -> None:
    path = tmp_path / "test.jsonl"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=complaint) as caught:
        load_facts(path)
    assert "make demo" in str(caught.value)


def test_a_bad_row_is_named_without_its_text(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text('{"text": "张某的隐私"}', encoding="utf-8")
    with pytest.raises(ValueError, match="line 1") as caught:
        load_facts(path)
    assert "张某" not in str(caught.value)


def test_the_same_case_never_repeats_and_ends_as_it_did() -> None:
    texts = [number_fact("甲窃取现金。", run, index) for run in (1, 2) for index in range(100)]
    assert len(set(texts)) == 200
    assert all(text.endswith("甲窃取现金。") for text in texts)
    assert len({text[:8] for text in texts}) > 100, "the difference stands in front"
