from __future__ import annotations

import json
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.defendants import defendant_names, has_several_defendants
from curt.corpus.generate.generator import generate_cases

FIXTURES = Path(__file__).parents[2] / "fixtures"
TEXTS: dict[str, dict[str, list[str]]] = {
    number: facts
    for name in ("defendants.toml", "defendants_unseen.toml")
    for number, facts in tomllib.loads((FIXTURES / name).read_text("utf-8")).items()
}
NAMED = [number for number in TEXTS if not number.startswith("later")]


@pytest.mark.parametrize("number", TEXTS)
def test_several_defendants_are_told_from_one(number: str) -> None:
    several = number.endswith("several")
    told = [has_several_defendants(fact) == several for fact in TEXTS[number]]
    assert sum(told) >= (0.92 if several else 0.98) * len(told) > 18


def test_nearly_all_of_several_are_found() -> None:
    facts = [fact for number in TEXTS if number.endswith("several") for fact in TEXTS[number]]
    assert sum(map(has_several_defendants, facts)) >= 0.97 * len(facts)


@pytest.mark.parametrize("number", NAMED)
def test_names_are_given_as_they_are_written(number: str) -> None:
    right = [defendant_names(fact) == names for fact, names in TEXTS[number].items()]
    assert sum(right) >= 0.95 * len(right)


def test_several_forms_of_a_name_are_one_defendant() -> None:
    fact = "被告人冯某盛、冉某盗窃电缆。被告人冯某、冉某销赃，被告人张某到案。"
    assert defendant_names(fact) == ["冯某盛", "冉某", "张某"]
    assert defendant_names("被告人张某酒后驾车，与被告人李某国驾驶的货车相撞。") == [
        "张某",
        "李某国",
    ]


def test_the_invented_inputs_have_several(invented: Path) -> None:
    lines = (invented / "server_multi_defendant.jsonl").read_text("utf-8").splitlines()
    assert all(has_several_defendants(json.loads(line)["fact"]) for line in lines)


def test_generated_cases_have_one() -> None:
    facts = [case.fact for case in generate_cases(300, seed=12)]
    assert sum(map(has_several_defendants, facts)) <= 0.02 * len(facts)


def test_real_facts_that_name_several_are_few(real_cases: Path) -> None:
    # Each is labelled with one; what is flagged does name several, but for about one in eight.
    with (real_cases / "test.json").open(encoding="utf-8") as lines:
        facts = [json.loads(line)["fact"] for line, _ in zip(lines, range(500), strict=False)]
    assert sum(map(has_several_defendants, facts)) <= 0.06 * len(facts)


@given(st.text("被告人张某李甲乙、，和与（另案处理）AB×x12三共同 ", max_size=80))
def test_names_stand_in_the_text(text: str) -> None:
    names = defendant_names(text)
    assert all(name in text for name in names)
    assert len(set(names)) == len(names)


def test_a_long_text_takes_no_longer_than_its_length() -> None:
    started = time.perf_counter()
    for piece in ("被告人", "被告人张某、", "张某、", "被告人张某（", "被告人张某和"):
        has_several_defendants(piece * (20_000 // len(piece)))
    assert time.perf_counter() - started < 2
