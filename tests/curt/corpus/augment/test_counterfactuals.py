from __future__ import annotations

import json
import random
import re
from itertools import islice

import pytest

from curt.corpus.augment.counterfactuals import MOVES, STAYS, draw_pairs, invariant_pairs
from curt.corpus.case import Case
from curt.law.term_scale import severity
from curt.law.verdict import Term, Verdict

THEFT = Verdict(("盗窃",), ("264",), Term("fixed", 8), 2000)
FIGURE = re.compile(r"(?:人民币)?[0-9][0-9.,]*万?")


def case(fact: str, verdict: Verdict = THEFT) -> Case:
    return Case("a", fact, verdict, "cail")


def sides(fact: str, kind: str, verdict: Verdict = THEFT) -> tuple[str, str] | None:
    pairs = {p.kind: p for p in invariant_pairs(case(fact, verdict), random.Random(3))}
    return (pairs[kind].before.fact, pairs[kind].after.fact) if kind in pairs else None


@pytest.fixture(scope="module")
def drawn():
    return [pair for n in range(80) for pair in draw_pairs(f"c{n}", random.Random(n))]


def test_a_name_is_the_same_throughout_and_nothing_else_changes():
    fact = "被告人张某与李某甲合谋，张某望风，李某甲进入王某家窃得现金3000元。李某甲供认。"
    before, after = sides(fact, "name")
    assert before == fact
    match = re.fullmatch(
        r"被告人(.)某与(.)某甲合谋，\1某望风，\2某甲进入(.)某家窃得现金3000元。\2某甲供认。", after
    )
    assert match
    assert len({*match.groups(), "张", "李", "王"}) == 6


def test_a_name_that_was_not_masked_changes_as_a_whole():
    _, after = sides("被告人张建国窃取现金3000元。张建国逃离后被抓获。", "name")
    match = re.fullmatch(r"被告人(..{1,2})窃取现金3000元。\1逃离后被抓获。", after)
    assert match
    assert match[1][0] != "张"


@pytest.mark.parametrize(
    ("kind", "told", "other"),
    [("sex", "男", "女"), ("ethnicity", "汉族", r".{1,4}族"), ("province", "河南省", ".{3,8}")],
)
def test_what_the_facts_tell_of_the_defendant_is_changed_in_place(kind, told, other):
    fact = "被告人张某，男，汉族，户籍所在地为河南省，在某超市窃取现金3000元。"
    before, after = sides(fact, kind)
    assert before == fact
    match = re.fullmatch(fact.replace(told, f"({other})"), after)
    assert match
    assert match[1] != told


def test_where_nothing_is_told_both_sides_get_a_sentence_that_differs_in_one_word():
    fact = "公诉机关指控，被告人张某在某超市窃取现金3000元。"
    before, after = sides(fact, "sex")
    assert before.startswith("被告人张某，男，汉族，")
    assert before.endswith(fact)
    assert after == before.replace("男", "女")


def test_a_crime_that_the_law_ties_to_a_man_has_no_other_sex():
    verdict = Verdict(("强奸",), ("236",), Term("fixed", 40))
    fact = "被告人张某在某宾馆内强行与被害人李某发生性关系。"
    assert sides(fact, "sex", verdict) is None
    assert sides(fact, "ethnicity", verdict)


def test_drawn_pairs_come_in_every_kind_and_the_same_ones_again(drawn):
    assert {pair.kind for pair in drawn} == {*STAYS, *MOVES}
    assert list(draw_pairs("c3", random.Random(3))) == [
        p for p in drawn if p.before.id[:3] == "c3+"
    ]


def test_a_verdict_stays_or_moves_as_its_kind_says(drawn):
    for pair in drawn:
        before, after = pair.before.verdict, pair.after.verdict
        assert pair.before.fact != pair.after.fact
        assert (before.charges, before.articles) == (after.charges, after.articles)
        if pair.kind in STAYS:
            assert before == after
        elif pair.kind == "amount":
            assert severity(after.term) > severity(before.term)
        else:
            name, way = {"surrender": ("自首", -1), "recidivism": ("累犯", 1)}[pair.kind]
            added = name in pair.after.traits
            assert added != (name in pair.before.traits)
            assert (severity(after.term) - severity(before.term)) * (way if added else -way) > 0


def test_a_circumstance_comes_or_goes_with_one_sentence_and_an_amount_with_its_figures(drawn):
    for pair in drawn:
        if pair.kind == "amount":
            before, after = (FIGURE.sub("0", p.fact) for p in (pair.before, pair.after))
            assert before == after
        elif pair.kind in MOVES:
            short, long = sorted((pair.before.fact, pair.after.fact), key=len)
            kept = next((n for n, c in enumerate(short) if c != long[n]), len(short))
            assert long[:kept] + long[kept + len(long) - len(short) :] == short


def test_facts_of_real_cases_have_pairs(real_cases):
    with open(real_cases / "test.json", encoding="utf-8") as file:
        facts = [case(json.loads(line)["fact"]) for line in islice(file, 30)]
    kinds = {p.kind for c in facts for p in invariant_pairs(c, random.Random(c.fact))}
    assert kinds == set(STAYS)
