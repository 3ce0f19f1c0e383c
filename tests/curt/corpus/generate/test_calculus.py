from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.generate.calculus import (
    EXCLUSIVE,
    LIFE,
    OFFENCES,
    RATIO_FLOOR,
    RATIOS,
    Bracket,
    Offence,
    allows,
    probation_months,
    sentence,
)
from curt.corpus.generate.wording import ACTS, CIRCUMSTANCES
from curt.law.statutes import CHARGES, article_carries, term_in_range
from curt.law.verdict import Term

BY_CHARGE = {offence.charge: offence for offence in OFFENCES}
THEFT = BY_CHARGE["盗窃"]
DRUNK = BY_CHARGE["危险驾驶"]
DRUGS = BY_CHARGE["走私、贩卖、运输、制造毒品"]
COUNTED = [offence for offence in OFFENCES if offence.brackets]


def harms(offence: Offence) -> list[int | str]:
    """Both ends of every bracket, or every grade."""
    if offence.grades is not None:
        return list(offence.grades)
    return [end for bracket in offence.brackets for end in (bracket.threshold, bracket.limit)]


def as_offence(base: int, *, ceiling: int = 180, fine_per_month: int = 0) -> Offence:
    """An offence whose one grade has `base` months."""
    return Offence("盗窃", ("264",), "", grades={"x": base}, ceiling=ceiling,
                   fine_per_month=fine_per_month)  # fmt: skip


def test_there_are_many_charges_and_circumstances():
    assert len(OFFENCES) == len(BY_CHARGE) >= 20
    assert len(RATIOS) >= 10


@pytest.mark.parametrize("offence", OFFENCES, ids=lambda o: o.charge)
def test_charges_and_articles_are_those_of_the_statutes(offence):
    assert offence.charge in CHARGES
    assert offence.articles
    assert all(article_carries(article, offence.charge) for article in offence.articles)


@pytest.mark.parametrize("offence", OFFENCES, ids=lambda o: o.charge)
def test_an_unmitigated_sentence_lies_in_the_statutory_range(offence):
    aggravating = [c for c in RATIOS if RATIOS[c] > 0 and allows(offence, c)]
    for harm in harms(offence):
        for circumstances in ((), *((c,) for c in aggravating)):
            term = sentence(offence, harm, circumstances).term
            assert term_in_range(offence.charge, term), (harm, circumstances, term)


@pytest.mark.parametrize("offence", OFFENCES, ids=lambda o: o.charge)
def test_a_sentence_outside_the_range_is_mitigated_below_its_minimum(offence):
    mildest = min((t.min_months for t in CHARGES[offence.charge].tiers if t.max_months), default=0)
    for harm in harms(offence):
        for circumstance in (c for c in RATIOS if allows(offence, c)):
            outcome = sentence(offence, harm, (circumstance, "自首"))
            if not term_in_range(offence.charge, outcome.term):
                assert outcome.ratio < 0
                assert outcome.months < mildest


@pytest.mark.parametrize("offence", OFFENCES, ids=lambda o: o.charge)
def test_exactly_one_way_to_measure_harm_and_wording_for_it(offence):
    assert bool(offence.brackets) != (offence.grades is not None)
    assert ACTS[offence.charge]
    assert all("{q}" in act and "{d}" in act for act in ACTS[offence.charge])


def test_every_circumstance_has_wording_and_a_known_name():
    assert CIRCUMSTANCES.keys() == RATIOS.keys()
    assert frozenset().union(*EXCLUSIVE) <= RATIOS.keys()


@pytest.mark.parametrize("offence", COUNTED, ids=lambda o: o.charge)
def test_rungs_rise_without_overlap(offence):
    for lower, upper in zip(offence.brackets, offence.brackets[1:], strict=False):
        assert lower.threshold <= lower.limit < upper.threshold
        top = lower.months + lower.limit // lower.per
        assert upper.months == LIFE or top <= upper.months + upper.threshold // upper.per


@given(data=st.data(), offence=st.sampled_from(COUNTED))
def test_months_never_fall_as_the_quantity_rises(data, offence):
    lowest, highest = offence.brackets[0].threshold, offence.brackets[-1].limit
    first, second = sorted(data.draw(st.tuples(*[st.integers(lowest, highest)] * 2)))
    circumstances = tuple(data.draw(st.sets(st.sampled_from(list(RATIOS)), max_size=4)))
    less, more = (sentence(offence, q, circumstances) for q in (first, second))
    if more.term.kind != "life":
        assert less.term.kind != "life"
        assert less.months <= more.months


@given(
    offence=st.sampled_from(OFFENCES),
    circumstances=st.sets(st.sampled_from(list(RATIOS)), max_size=5),
    data=st.data(),
)
def test_every_sentence_is_whole_and_within_its_limits(offence, circumstances, data):
    outcome = sentence(offence, data.draw(st.sampled_from(harms(offence))), tuple(circumstances))
    assert outcome.ratio >= RATIO_FLOOR
    assert outcome.fine_yuan >= 0
    if outcome.term.kind == "life":
        return
    assert outcome.base == outcome.start + outcome.extra
    assert outcome.months == outcome.term.months <= offence.ceiling
    assert outcome.term.kind == (
        "exempt" if outcome.months == 0 else "detention" if outcome.months < 6 else "fixed"
    )


def test_theft_worked_by_hand():
    # 2,000 starts at 5; 20,000 / 2,000 = 10 more; 15 x 80% = 12
    outcome = sentence(THEFT, 20_000, ("坦白", "认罪认罚"))
    assert (outcome.start, outcome.extra, outcome.base, outcome.ratio) == (5, 10, 15, -20)
    assert outcome.term == Term("fixed", 12, probation_months=24)
    assert outcome.fine_yuan == 12_000


def test_a_remainder_below_one_increment_adds_nothing():
    assert sentence(THEFT, 3_999, ()).base == 6
    assert sentence(THEFT, 4_000, ()).base == 7


def test_the_highest_rung_reached_counts():
    assert sentence(THEFT, 59_999, ()).bracket == Bracket(2_000, 5, 2_000, 58_000)
    assert sentence(THEFT, 60_000, ()).base == 36
    assert sentence(THEFT, 400_000, ()).base == 120


@pytest.mark.parametrize(
    ("base", "circumstances", "months"),
    [
        (10, ("坦白",), 9),
        (15, ("坦白",), 14),  # 13.5 rounds up
        (8, ("前科",), 9),  # 8.8
        (14, ("坦白",), 13),  # 12.6
        (12, ("坦白",), 11),  # 10.8
        (11, ("自首",), 9),  # 8.8
        (12, ("自首",), 10),  # 9.6
        (13, ("自首",), 10),  # 10.4
    ],
)
def test_months_round_half_up(base, circumstances, months):
    assert sentence(as_offence(base), "x", circumstances).months == months


def test_ratios_are_kept_above_the_floor():
    lowest = sentence(as_offence(100), "x", ("未遂", "从犯", "未成年"))
    highest = sentence(as_offence(100), "x", ("累犯",))
    assert (lowest.ratio, lowest.months) == (-60, 40)
    assert (highest.ratio, highest.months) == (20, 120)


def test_the_ceiling_cuts_the_months():
    assert sentence(as_offence(80, ceiling=84), "x", ("累犯",)).months == 84
    assert sentence(DRUNK, 300, ("累犯",)).term == Term("detention", 5)


def test_less_than_half_a_month_is_an_exemption_without_a_fine():
    outcome = sentence(DRUNK, 80, ("自首", "立功", "老年"))
    assert (outcome.base, outcome.ratio, outcome.months) == (1, -60, 0)
    assert (outcome.term, outcome.fine_yuan) == (Term("exempt"), 0)


def test_half_a_month_rounds_to_one_and_is_no_exemption():
    outcome = sentence(DRUNK, 80, ("自首", "立功", "坦白"))
    assert (outcome.ratio, outcome.term) == (-50, Term("detention", 1, probation_months=2))


def test_five_months_are_detention_and_six_are_fixed():
    assert sentence(as_offence(5), "x", ()).term.kind == "detention"
    assert sentence(as_offence(6), "x", ()).term.kind == "fixed"


def test_life_stands_whatever_the_circumstances():
    for circumstances in ((), ("自首", "立功"), ("累犯",)):
        assert sentence(DRUGS, 500, circumstances).term == Term("life")
    assert sentence(DRUGS, 499, ()).term == Term("fixed", 180)


def test_the_fine_follows_the_months():
    outcome = sentence(as_offence(10, fine_per_month=300), "x", ("自首",))
    assert (outcome.months, outcome.fine_yuan) == (8, 2400)


@pytest.mark.parametrize(
    ("months", "ratio", "circumstances", "probation"),
    [
        (3, -20, (), 6),
        (5, -60, (), 10),
        (6, -20, (), 24),
        (12, -20, (), 24),
        (13, -20, (), 36),
        (36, -20, (), 48),
        (37, -20, (), 0),
        (12, -19, (), 0),
        (12, -20, ("累犯",), 0),
    ],
)
def test_probation(months, ratio, circumstances, probation):
    assert probation_months(months, ratio, circumstances) == probation


@given(months=st.integers(1, 36), ratio=st.integers(RATIO_FLOOR, -20))
def test_probation_keeps_the_bounds_of_article_73(months, ratio):
    probation = probation_months(months, ratio, ())
    low, high = (2, 12) if months < 6 else (12, 60)
    assert max(low, months) <= probation <= high


def test_a_quantity_under_the_lowest_rung_is_refused():
    with pytest.raises(ValueError, match="1999元 is under the lowest bracket of 盗窃"):
        sentence(THEFT, 1_999, ())


def test_an_unknown_grade_or_circumstance_is_refused():
    with pytest.raises(KeyError, match="微伤"):
        sentence(BY_CHARGE["故意伤害"], "微伤", ())
    with pytest.raises(KeyError, match="自首2"):
        sentence(THEFT, 2_000, ("自首2",))


def test_circumstances_belong_to_the_offences_they_fit():
    assert not allows(DRUNK, "从犯")
    assert not allows(DRUGS, "退赔")
    assert not allows(DRUGS, "谅解")
    assert all(allows(offence, "自首") for offence in OFFENCES)
