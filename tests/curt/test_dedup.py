from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.dedup import ContaminationFilter, DuplicateFilter, normalise_for_comparison

FACT = (
    "2020年3月5日14时许，被告人张某在某市某区某超市内，趁无人之机，将货架上的手机一部盗走，后将该手机"
    "以人民币八百元的价格卖给路人。经鉴定，被盗手机价值人民币三千五百元。归案后如实供述。"
)
OTHER = (
    "2019年11月2日，被告人李某酒后驾驶小型轿车沿国道由东向西行驶，至某路口时与他人车辆相撞，经鉴定，"
    "其血液中乙醇含量为一百八十毫克，负事故的全部责任。事后赔偿了对方损失。"
)


def edit(fact: str, rng: random.Random, share: float = 0.03) -> str:
    """Letters changed, lost and added, as between two copies of a judgment."""
    letters = list(fact)
    for _ in range(max(1, int(len(letters) * share))):
        place, kind = rng.randrange(len(letters)), rng.random()
        if kind < 0.4:
            letters[place] = rng.choice("某甲乙丙丁1234567890年月日")
        elif kind < 0.7:
            letters[place] = ""
        else:
            letters[place] += rng.choice("，的了")
    return "".join(letters)


def test_layout_and_masked_names_are_not_compared():
    first = normalise_for_comparison("张某某，于 ２０２０年\n盗窃××手机。")
    assert first == normalise_for_comparison("张某于2020年，盗窃手机") == "张于2020年盗窃手机"


def test_an_exact_copy_names_the_first():
    repeats = DuplicateFilter()
    assert repeats.match("a", FACT) is None
    match = repeats.match("b", FACT.replace("，", " "))
    assert match is not None
    assert (match.of, match.similarity, match.rule) == ("a", 1.0, "exact duplicate")


def test_a_near_copy_is_found_and_another_case_is_not():
    repeats = DuplicateFilter()
    repeats.match("a", FACT)
    match = repeats.match("b", edit(FACT, random.Random(1)))
    assert match is not None
    assert match.rule == "near duplicate"
    assert 0.6 <= match.similarity < 1
    assert repeats.match("c", OTHER) is None


def test_what_is_dropped_is_not_remembered():
    """A chain of small changes must not swallow what is far from the first."""
    repeats = DuplicateFilter(0.9)
    repeats.match("a", FACT)
    assert repeats.match("b", FACT[:-2]) is not None
    assert repeats.match("c", FACT[: len(FACT) // 2]) is None


@given(text=st.text(max_size=30))
def test_any_text_repeats_itself(text):
    repeats = DuplicateFilter()
    assert repeats.match("a", text) is None
    assert repeats.match("b", text) is not None


@pytest.mark.parametrize(
    "told",
    [
        FACT,
        FACT[10:80],
        f"公诉机关指控，{FACT}另查明，被告人系初犯，愿意退赔。案发后其亲属代为赔偿。",
        FACT.replace("张某", "王某某"),
    ],
)
def test_a_test_case_is_recognised_whole_cut_and_inside_a_longer_one(told):
    match = ContaminationFilter([("t", FACT), ("u", OTHER)]).match("a", told)
    assert match is not None
    assert (match.of, match.rule) == ("t", "test case")


def test_another_case_is_no_contamination():
    assert ContaminationFilter([("t", FACT)]).match("a", OTHER) is None
    assert ContaminationFilter([]).match("a", OTHER) is None


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01])
def test_thresholds_outside_the_range_are_refused(threshold):
    with pytest.raises(ValueError, match="use more than 0"):
        DuplicateFilter(threshold)
    with pytest.raises(ValueError, match="use more than 0"):
        ContaminationFilter([], threshold)


def test_planted_near_duplicates_of_real_facts_are_found(real_cases):
    lines = (real_cases / "train.json").read_text(encoding="utf-8").splitlines()[:3500]
    facts = [fact for line in lines if len(fact := json.loads(line)["fact"]) > 80][:3000]
    rng = random.Random(1)
    planted = rng.sample(range(len(facts)), 500)
    repeats = DuplicateFilter()
    natural = [m for i, f in enumerate(facts) if (m := repeats.match(f"o{i}", f))]
    found = [repeats.match(f"o{i}", edit(facts[i], rng)) for i in planted]
    assert sum(m is not None for m in found) / 500 >= 0.98  # recall
    right = sum(m is not None and m.id == m.of for m in found)
    gone = {m.id for m in natural}  # copies of these name what they repeat
    right += sum(m is not None and m.id != m.of and m.id in gone for m in found)
    assert right / (sum(m is not None for m in found) + len(natural)) >= 0.95  # precision


def test_planted_test_cases_are_found_among_real_facts(real_cases):
    def read(name: str, count: int) -> list[str]:
        lines = (real_cases / name).read_text(encoding="utf-8").splitlines()[:count]
        return [fact for line in lines if len(fact := json.loads(line)["fact"]) > 80]

    test, train = read("test.json", 400), read("dev.json", 400)
    leaks = ContaminationFilter((f"t{i}", fact) for i, fact in enumerate(test))
    rng = random.Random(2)
    found = [
        leaks.match(f"t{i}", edit(fact[: len(fact) * 3 // 4], rng, 0.01))
        for i, fact in enumerate(test)
    ]
    assert sum(m is not None and m.of == m.id for m in found) / len(test) >= 0.98
    false = [m for i, fact in enumerate(train) if (m := leaks.match(f"d{i}", fact))]
    assert len(false) / len(train) <= 0.02  # what there is are true repeats between the sets
