from __future__ import annotations

import json
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.defendants import defendant_names, has_several_defendants
from curt.corpus.each_defendant import facts_of_each
from curt.corpus.generate.generator import generate_cases

FIXTURES = Path(__file__).parents[2] / "fixtures"
TEXTS: dict[str, dict[str, list[str]]] = {
    number: facts
    for name in ("defendants.toml", "defendants_unseen.toml")
    for number, facts in tomllib.loads((FIXTURES / name).read_text("utf-8")).items()
}
NAMED = [number for number in TEXTS if not number.startswith("later")]
EACH = tomllib.loads((FIXTURES / "defendants_each.toml").read_text("utf-8"))["each"]


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


@given(st.text("被告人张某李甲乙、，。；和与（另案处理）AB×x12三共同均系累犯单独 ", max_size=80))
def test_names_stand_in_the_text(text: str) -> None:
    names = defendant_names(text)
    assert all(name in text for name in names)
    assert len(set(names)) == len(names)
    told = facts_of_each(text)
    assert list(told) == names
    assert all(name in told[name] for name in names)


@pytest.mark.parametrize("row", EACH, ids=lambda row: row["fact"][:20])
def test_the_text_asked_for_each_holds_what_concerns_him(row: dict[str, Any]) -> None:
    told = facts_of_each(row["fact"])
    assert set(told) == set(row["defendants"])
    for name, wanted in row["defendants"].items():
        assert [part for part in wanted["holds"] if part not in told[name]] == [], told[name]
        assert [part for part in wanted["lacks"] if part in told[name]] == [], told[name]
        assert not has_several_defendants(told[name]), told[name]


def test_nearly_every_text_asked_for_one_of_several_has_one() -> None:
    facts = [fact for number in TEXTS if number.endswith("several") for fact in TEXTS[number]]
    told = [text for fact in facts for text in facts_of_each(fact).values() if text != fact]
    assert sum(map(has_several_defendants, told)) <= 0.02 * len(told)
    assert len(told) > 400


def test_a_text_on_one_defendant_is_asked_as_it_is() -> None:
    for fact in TEXTS["one"]:
        assert list(facts_of_each(fact).values()) in ([], [fact])


def test_one_whom_only_a_number_tells_of_is_named_at_the_end() -> None:
    told = facts_of_each("被告人张某、李某盗窃。二被告人均系累犯。")
    assert told["李某"] == "被告人李某伙同张某盗窃。被告人李某系累犯。"
    assert facts_of_each("被告人张某投案；被告人李某坦白")["李某"] == "被告人李某坦白"


def test_a_long_text_takes_no_longer_than_its_length() -> None:
    started = time.perf_counter()
    for piece in ("被告人", "被告人张某、", "张某、", "被告人张某（", "被告人张某和"):
        has_several_defendants(piece * (20_000 // len(piece)))
    many = "、".join(f"{a}某{b}" for a in "张李王赵钱孙周吴" for b in "甲乙丙丁")
    facts_of_each(f"被告人{many}" + "共同盗窃，张某甲投案（，" * 1_500)
    assert time.perf_counter() - started < 2
