from __future__ import annotations

import random
import re
from itertools import groupby, pairwise

import pytest

from curt.corpus.case import Case
from curt.corpus.generate.calculus import Circumstance, circumstances, offences
from curt.corpus.generate.facts import look_alikes
from curt.corpus.generate.generator import SOURCE, VERBOSITIES, draw_drill, generate_cases
from curt.corpus.generate.grammar import alternatives, parse
from curt.dialogue import normalise_fact, render_term
from train.warm_start.tokenizer import corpus_texts, train_tokenizer

COUNT = 1500
OFFENCES = offences()
SHARED = circumstances()
# Slots that a case binds, and all others, as patterns.
ANY = ".{0,120}?"


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return list(generate_cases(COUNT, seed=11))


def pattern(text: str) -> re.Pattern[str]:
    """What a text of the grammar can write, with any filler in its slots.

    Slots that stand side by side are one, or a search would try each way to share a filler.
    """
    runs = groupby(parse(text), key=lambda node: isinstance(node, str))
    return re.compile("".join(re.escape("".join(run)) if plain else ANY for plain, run in runs))


def known_circumstances(case: Case) -> dict[str, Circumstance]:
    return {**OFFENCES[case.verdict.charges[0]].circumstances, **SHARED}


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def check_arithmetic(text: str) -> int:
    """Assert every equation of a reasoning and return how many there were."""
    found = 0
    for left, right, total in re.findall(r"(?<![\d+.])(\d+)\+(\d+)=(\d+)(?![\d千万.])", text):
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


def test_every_charge_and_circumstance_occurs():
    cases = list(generate_cases(6000, seed=3))
    assert {case.verdict.charges[0] for case in cases} == OFFENCES.keys()
    assert {trait for case in cases for trait in case.traits} >= SHARED.keys()


def test_circumstances_fit_the_offence_and_each_other(cases):
    for case in cases:
        offence, known = OFFENCES[case.verdict.charges[0]], known_circumstances(case)
        held = [known[trait] for trait in case.traits]
        assert all(not one.only or offence.kinds & set(one.only) for one in held)
        groups = [one.group for one in held if one.group]
        assert len(groups) == len(set(groups))


@pytest.mark.parametrize("wording", ["train", "dev", "test"])
def test_the_fact_tells_every_circumstance_drawn_in_the_words_of_its_split(wording):
    for case in generate_cases(400, seed=5, wording=wording):
        for trait in case.traits:
            one = known_circumstances(case)[trait]
            ways = alternatives(one.told, wording, strict=True)
            ways = [*ways, *(one.train_only if wording == "train" else ())]
            assert any(pattern(way).search(case.fact) for way in ways), (case.id, trait)


def test_test_wording_tells_acts_as_training_never_does():
    training = {
        act
        for offence in OFFENCES.values()
        for act in alternatives(offence.acts, "train", strict=True)
    }
    for offence in OFFENCES.values():
        held_out = alternatives(offence.acts, "test", strict=True)
        assert held_out
        assert not training.intersection(held_out)


def test_no_lookalike_denies_a_circumstance(cases):
    known = {name for case in cases for name in known_circumstances(case)}
    seen = 0
    for look_alike in look_alikes():
        assert look_alike.contradicts <= known
        plain = [[node for node in parse(way) if isinstance(node, str)] for way in look_alike.told]
        telling = [
            longest for nodes in plain if len(longest := max(nodes, key=len, default="")) > 7
        ]
        for case in cases:
            told = any(text in case.fact for text in telling)
            seen += told
            assert not (told and look_alike.contradicts.intersection(case.traits)), case.id
    assert seen > 50


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
        assert all(name in brief for name in case.traits), brief
        assert numbers(brief)[-1] == case.verdict.term.months
        if case.traits:
            base, share = re.search(r"(\d+)×(\d+)%", brief).groups()
            assert f"{base}×{share}%" in case.reasonings["terse"]


def test_drills_are_steps_of_right_reasoning():
    rng, sums = random.Random(5), 0
    for _ in range(500):
        given, answer = draw_drill(rng)
        assert given
        assert answer
        if given[-1] == "×":
            base = int(re.search(r"(\d+)×$", given)[1])
            share, months = re.match(r"(\d+)%=(\d+)", answer).groups()
            assert (base * int(share) + 50) // 100 == int(months)
        if given.endswith("="):
            assert sum(map(int, re.findall(r"\d+", given))) == int(re.match(r"\d+", answer)[0])
            sums += 1
        if given.endswith("合计"):
            ratios = [int(n) for n in re.findall(r"[+-]\d+(?=，)", given)]
            assert int(re.match(r"[+-]\d+", answer)[0]) == sum(ratios)
    assert sums > 100


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


def test_facts_hold_the_quantity_the_reasoning_starts_from(cases):
    for case in cases:
        offence = OFFENCES[case.verdict.charges[0]]
        if offence.grades:
            continue
        told = re.split("=|，", case.reasonings["terse"].partition("，")[0])[0].split("+")
        for part in told:
            forms = {part, f"{int(float(part)):,}", f"{float(part) / 10_000:g}万"}
            assert any(f"{form}{offence.unit}" in case.fact for form in forms), case.id


def test_a_told_total_is_not_summed_again(cases):
    several = [c for c in cases if re.search("[12]、.*2、", c.fact)]
    summed = [c for c in several if "+" in c.reasonings["terse"].partition("，")[0]]
    assert 0 < len(summed) < len(several)
    for case in summed:
        total = case.reasonings["terse"].partition("，")[0].partition("=")[2]
        assert f"共计{total}" not in case.fact


def test_facts_are_as_long_as_real_ones(cases):
    """Real facts have 313 characters at the median and 1,010 at the 95th percentile."""
    lengths = sorted(len(case.fact) for case in cases)
    assert 220 <= lengths[COUNT // 2] <= 400
    assert 500 <= lengths[COUNT * 95 // 100] <= 1_100


def test_facts_state_neither_charge_nor_sentence(cases):
    for case in cases:
        assert "基准刑" not in case.fact
        assert "起点" not in case.fact
    # An earlier conviction may be for the same.
    named = [case.id for case in cases if f"{case.verdict.charges[0]}罪" in case.fact]
    assert len(named) / COUNT < 0.02


def test_facts_pass_the_normalisation_unchanged(cases):
    assert all(normalise_fact(case.fact) == case.fact for case in cases)


def test_facts_have_no_empty_or_unfilled_clause(cases):
    for case in cases:
        assert not re.search(r"[{}|\x00]|。。|，，|被告人被告人|被害人被害人", case.fact), case.fact
        assert case.fact.endswith("。")


def test_mini_reasoning_is_told_in_16_tokens():
    sample = list(generate_cases(400, seed=9))
    tokenizer = train_tokenizer(corpus_texts(sample), 6000)
    lengths = [len(tokenizer(case.reasonings["mini"])["input_ids"]) for case in sample]
    assert max(lengths) <= 16
