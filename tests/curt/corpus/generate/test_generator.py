from __future__ import annotations

import random
import re
from collections import Counter
from itertools import pairwise

import pytest

from curt.corpus.case import Case
from curt.corpus.generate.calculus import EXCLUSIVE, OFFENCES, RATIOS, allows
from curt.corpus.generate.generator import SOURCE, VERBOSITIES, draw_drill, generate_cases
from curt.corpus.generate.wording import CIRCUMSTANCES, LOOKALIKES
from curt.dialogue import normalise_fact, render_term
from train.warm_start.tokenizer import train_tokenizer

COUNT = 1500
BY_CHARGE = {offence.charge: offence for offence in OFFENCES}
# A look-alike that would deny a circumstance.
DENIES = {
    "拒不供述": {"自首", "坦白", "认罪认罚"},
    "辩称与其无关": {"自首", "坦白", "认罪认罚"},
    "不予谅解": {"谅解"},
    "经查不属实": {"立功"},
    "无犯罪记录": {"累犯", "前科"},
    "至今未支付": {"退赔"},
    "三十二周岁": {"未成年", "老年"},
}


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return list(generate_cases(COUNT, seed=11))


def pattern(template: str) -> re.Pattern[str]:
    """The clauses a template can write."""
    names = re.sub(r"\\\{[dv]\\\}", "..?", re.escape(template))
    return re.compile(f"(?:^|。){names}(?:。|$)")


TOLD = {name: [pattern(t) for t in templates] for name, templates in CIRCUMSTANCES.items()}


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def check_arithmetic(text: str) -> int:
    """Assert every equation of a reasoning and return how many there were."""
    found = 0
    for left, right, total in re.findall(r"(?<![\d+])(\d+)\+(\d+)=(\d+)", text):
        assert int(left) + int(right) == int(total), text
        found += 1
    for base, percent, months in re.findall(r"(\d+)×(\d+)%(?:=|，取)\D*(\d+)", text):
        assert (int(base) * int(percent) + 50) // 100 == int(months), text
        found += 1
    for terms, total in re.findall(r"((?:[一-鿿]+[+-]\d+，?)+)(?:=|合计)([+-]\d+)", text):
        assert sum(map(int, re.findall(r"[+-]\d+", terms))) == int(total), text
        found += 1
    return found


def test_the_same_seed_gives_the_same_cases(cases):
    assert list(generate_cases(50, seed=11)) == cases[:50]


def test_different_seeds_share_no_fact(cases):
    others = {case.fact for case in generate_cases(COUNT, seed=12)}
    assert not others & {case.fact for case in cases}


def test_ids_name_seed_and_index_and_are_unique(cases):
    assert cases[3].id == f"{SOURCE}-11-3"
    assert len({case.id for case in cases}) == COUNT


def test_every_charge_and_circumstance_occurs(cases):
    assert {c.verdict.charges[0] for c in cases} == BY_CHARGE.keys()
    assert {trait for c in cases for trait in c.traits} == RATIOS.keys()


def test_circumstances_fit_the_offence_and_each_other(cases):
    for case in cases:
        offence = BY_CHARGE[case.verdict.charges[0]]
        assert all(allows(offence, trait) for trait in case.traits)
        assert all(len(group & set(case.traits)) <= 1 for group in EXCLUSIVE)


def test_the_fact_tells_exactly_the_circumstances_drawn(cases):
    for case in cases:
        told = {name for name, ways in TOLD.items() if any(w.search(case.fact) for w in ways)}
        assert told == set(case.traits), case.id


def test_no_lookalike_denies_a_circumstance(cases):
    assert all(any(mark in text for mark in DENIES) or "行政" in text for text in LOOKALIKES)
    seen = Counter()
    for case in cases:
        for mark, denied in DENIES.items():
            if mark in case.fact:
                seen[mark] += 1
                assert not denied & set(case.traits), (mark, case.id)
    assert seen.keys() == DENIES.keys()


def test_every_verbosity_is_there(cases):
    assert all(case.reasonings.keys() == set(VERBOSITIES) for case in cases)
    assert all(text for case in cases for text in case.reasonings.values())


def test_all_arithmetic_in_a_reasoning_is_right(cases):
    equations = sum(check_arithmetic(text) for c in cases for text in c.reasonings.values())
    assert equations > 3 * COUNT


def test_full_and_medium_reasoning_end_in_the_term_of_the_verdict(cases):
    for case in cases:
        term = render_term(case.verdict.term)
        assert term in case.reasonings["medium"]
        assert term in case.reasonings["full"] or "无期徒刑" in case.reasonings["full"]
        if case.verdict.term.months:
            assert numbers(case.reasonings["full"])[-1] == case.verdict.term.months
            assert numbers(case.reasonings["medium"])[-1] == case.verdict.term.months


def test_terse_brief_and_mini_reasoning_end_in_the_months_of_the_verdict(cases):
    for case in cases:
        if case.verdict.term.kind == "life":
            assert "无期" in case.reasonings["terse"]
            continue
        assert numbers(case.reasonings["terse"])[-1] == case.verdict.term.months
        assert numbers(case.reasonings["brief"])[-1] == case.verdict.term.months
        assert numbers(case.reasonings["mini"])[-1] == case.verdict.term.months


def test_brief_reasoning_names_every_circumstance_and_leaves_no_step_out(cases):
    for case in cases:
        if case.verdict.term.kind == "life":
            continue
        brief = case.reasonings["brief"]
        assert all(name in brief for name in case.traits)
        assert numbers(brief)[-1] == case.verdict.term.months
        if case.traits:
            base, share = re.search(r"(\d+)×(\d+)%", brief).groups()
            assert f"{base}×{share}%" in case.reasonings["terse"]


def test_drills_are_steps_of_right_reasoning():
    rng = random.Random(5)
    for _ in range(500):
        given, answer = draw_drill(rng)
        assert given
        assert answer
        if given[-1] == "+":  # 26千5+ | 13=18
            start = int(re.search(r"(\d+)\+$", given)[1])
            extra, base = map(int, answer.split("="))
            assert start % 1000 + extra == base or str(start).endswith(str(base - extra))
        if given[-1] == "×":
            base = int(re.search(r"(\d+)×$", given)[1])
            share, months = re.match(r"(\d+)%=(\d+)", answer).groups()
            assert (base * int(share) + 50) // 100 == int(months)
        if given.endswith("合计"):
            ratios = [int(n) for n in re.findall(r"[+-]\d+(?=，)", given)]
            assert int(re.match(r"[+-]\d+", answer)[0]) == sum(ratios)


def test_the_gap_leaves_the_months_out(cases):
    counted = [c for c in cases if c.verdict.term.kind in ("fixed", "detention")]
    assert all("×" not in c.reasonings["gap"] for c in counted)
    assert all(render_term(c.verdict.term) not in c.reasonings["gap"] for c in counted)


def test_lengths_spread_over_the_verbosities(cases):
    sample = cases[:300]
    tokenizer = train_tokenizer(
        [c.fact for c in sample] + [t for c in sample for t in c.reasonings.values()], 1500
    )

    def mean_tokens(verbosity: str) -> float:
        ids = tokenizer([c.reasonings[verbosity] for c in sample])["input_ids"]
        return sum(map(len, ids)) / len(ids)

    means = [mean_tokens(v) for v in ("full", "medium", "terse", "brief", "mini")]
    assert all(longer > 1.1 * shorter for longer, shorter in pairwise(means)), means


def test_facts_state_neither_charge_nor_sentence(cases):
    for case in cases:
        assert f"{case.verdict.charges[0]}罪" not in case.fact
        assert render_term(case.verdict.term) not in case.fact
        assert not re.search(r"\d个月", case.fact)
        assert not any(word in case.fact for word in ("基准刑", "起点", "判处罚金", "缓刑"))


def test_facts_hold_the_quantity_the_reasoning_starts_from(cases):
    for case in cases:
        offence = BY_CHARGE[case.verdict.charges[0]]
        if offence.grades is not None:
            assert any(grade in case.fact for grade in offence.grades)
            continue
        parts = numbers(re.split("[=，]", case.reasonings["terse"])[0])
        assert all(f"{part}{offence.unit}" in case.fact for part in parts), case.id


def test_facts_pass_the_normalisation_unchanged(cases):
    assert all(normalise_fact(case.fact) == case.fact for case in cases)


def test_facts_have_no_empty_or_unfilled_clause(cases):
    for case in cases:
        assert not re.search(r"[{}]|。。|，，|被告人被告人|被告人民警", case.fact)
        assert case.fact.endswith("。")
