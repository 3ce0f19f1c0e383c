from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.generate.calculus import (
    LIFE,
    Bracket,
    Circumstance,
    Grade,
    Offence,
    circumstances,
    offences,
    probation_months,
    sentence,
)
from curt.law.statutes import CHARGES, article_carries, term_in_range
from curt.law.verdict import Term
from curt.law.weighing import RATIO_FLOOR

OFFENCES = tuple(offences().values())
SHARED = circumstances()
COUNTED = [offence for offence in OFFENCES if offence.brackets]
THEFT = replace(
    offences()["盗窃"],
    brackets=(Bracket(2_000, 5, 2_000, 58_000), Bracket(60_000, 30, 10_000, 390_000)),
    fine=1000,
)


def held(*names: str) -> tuple[Circumstance, ...]:
    return tuple(SHARED[name] for name in names)


def fitting(offence: Offence) -> list[Circumstance]:
    """Every circumstance that the offence may have."""
    shared = [c for c in SHARED.values() if not c.only or offence.kinds & set(c.only)]
    return [*offence.circumstances.values(), *shared]


def harms(offence: Offence) -> list[int | Grade]:
    """Both ends of every bracket, or every grade."""
    ends = [end for bracket in offence.brackets for end in (bracket.threshold, bracket.limit)]
    return [*offence.grades, *ends]


def sentence_of(base: int, *names: str, ceiling: int = 180, fine: int = 0):
    """The sentence of an offence whose one grade has `base` months."""
    offence = replace(THEFT, brackets=(), ceiling=ceiling, fine=fine)
    return sentence(offence, Grade("某", base, 1, ("某",)), held(*names))


def test_there_are_many_charges_and_circumstances():
    assert len(OFFENCES) >= 60
    assert len(SHARED) >= 12


@pytest.mark.parametrize("offence", OFFENCES, ids=lambda o: o.charge)
def test_charges_and_articles_are_those_of_the_statutes(offence):
    assert offence.charge in CHARGES
    assert offence.articles
    assert all(article_carries(article, offence.charge) for article in offence.articles)


@pytest.mark.parametrize("offence", OFFENCES, ids=lambda o: o.charge)
def test_a_sentence_outside_the_statutory_range_is_mitigated_below_it(offence):
    mildest = min((t.min_months for t in CHARGES[offence.charge].tiers if t.max_months), default=0)
    for harm in harms(offence):
        for one in ((), *((circumstance,) for circumstance in fitting(offence))):
            outcome = sentence(offence, harm, one)
            if not term_in_range(offence.charge, outcome.term):
                mitigated = outcome.ratio < 0 or isinstance(harm, Grade)  # an attempt is a grade
                assert mitigated, (harm, one, outcome)
                assert outcome.months < mildest, (harm, one, outcome)


@pytest.mark.parametrize("offence", OFFENCES, ids=lambda o: o.charge)
def test_acts_are_told_in_many_ways_with_the_quantity_once(offence):
    assert len(offence.acts) >= 10
    fillers = "".join(text for texts in offence.slots.values() for text in texts)
    for act in offence.acts:
        assert "{d}" in act
        assert not offence.brackets or act.count("{q}") == 1 or "{q}" in fillers, act
    assert all(len(grade.told) >= 5 for grade in offence.grades)


@pytest.mark.parametrize("offence", COUNTED, ids=lambda o: o.charge)
def test_brackets_rise_without_overlap(offence):
    for lower, upper in zip(offence.brackets, offence.brackets[1:], strict=False):
        assert lower.threshold <= lower.limit < upper.threshold
        top = lower.months + lower.limit // lower.every
        assert upper.months == LIFE or top <= upper.months + upper.threshold // upper.every


@given(data=st.data(), offence=st.sampled_from(COUNTED))
def test_months_never_fall_as_the_quantity_rises(data, offence):
    lowest, highest = offence.brackets[0].threshold, offence.brackets[-1].limit
    first, second = sorted(data.draw(st.tuples(*[st.integers(lowest, highest)] * 2)))
    some = tuple(data.draw(st.sets(st.sampled_from(fitting(offence)), max_size=4)))
    less, more = (sentence(offence, quantity, some) for quantity in (first, second))
    if more.term.kind != "life":
        assert less.term.kind != "life"
        assert less.months <= more.months


@given(data=st.data(), offence=st.sampled_from(OFFENCES))
def test_every_sentence_is_whole_and_within_its_limits(data, offence):
    some = tuple(data.draw(st.sets(st.sampled_from(fitting(offence)), max_size=5)))
    outcome = sentence(offence, data.draw(st.sampled_from(harms(offence))), some)
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
    outcome = sentence(THEFT, 20_000, held("坦白", "认罪认罚"))
    assert (outcome.start, outcome.extra, outcome.base, outcome.ratio) == (5, 10, 15, -20)
    assert outcome.term == Term("fixed", 12, probation_months=24)
    assert outcome.fine_yuan == 12_000


def test_a_remainder_below_one_increment_adds_nothing():
    assert sentence(THEFT, 3_999, ()).base == 6
    assert sentence(THEFT, 4_000, ()).base == 7


def test_the_highest_bracket_reached_counts():
    assert sentence(THEFT, 59_999, ()).bracket == THEFT.brackets[0]
    assert sentence(THEFT, 60_000, ()).base == 36


@pytest.mark.parametrize(
    ("base", "names", "months"),
    [
        (10, ("坦白",), 9),
        (15, ("坦白",), 14),  # 13.5 rounds up
        (8, ("前科",), 9),  # 8.8
        (14, ("坦白",), 13),  # 12.6
        (11, ("自首",), 9),  # 8.8
        (12, ("自首",), 10),  # 9.6
        (13, ("自首",), 10),  # 10.4
    ],
)
def test_months_round_half_up(base, names, months):
    assert sentence_of(base, *names).months == months


def test_ratios_are_kept_above_the_floor():
    lowest = sentence_of(100, "未遂", "从犯", "未成年")
    highest = sentence_of(100, "累犯")
    assert (lowest.ratio, lowest.months) == (-60, 40)
    assert (highest.ratio, highest.months) == (20, 120)


def test_the_ceiling_cuts_the_months():
    assert sentence_of(80, "累犯", ceiling=84).months == 84


def test_less_than_half_a_month_is_an_exemption_without_a_fine():
    outcome = sentence_of(1, "自首", "立功", "老年", fine=2000)
    assert (outcome.base, outcome.ratio, outcome.months) == (1, -60, 0)
    assert (outcome.term, outcome.fine_yuan) == (Term("exempt"), 0)


def test_half_a_month_rounds_to_one_and_is_no_exemption():
    outcome = sentence_of(1, "自首", "立功", "坦白")
    assert (outcome.ratio, outcome.term) == (-50, Term("detention", 1, probation_months=2))


def test_five_months_are_detention_and_six_are_fixed():
    assert sentence_of(5).term.kind == "detention"
    assert sentence_of(6).term.kind == "fixed"


def test_life_stands_whatever_the_circumstances():
    brackets = (Bracket(10, 180, 1_000, 499), Bracket(500, LIFE, 1, 900))
    drugs = replace(THEFT, brackets=brackets)
    for names in ((), ("自首", "立功"), ("累犯",)):
        assert sentence(drugs, 500, held(*names)).term == Term("life")
    assert sentence(drugs, 499, ()).term == Term("fixed", 180)


def test_the_fine_follows_the_months():
    outcome = sentence_of(10, "自首", fine=300)
    assert (outcome.months, outcome.fine_yuan) == (8, 2400)


@pytest.mark.parametrize(
    ("months", "ratio", "recidivist", "probation"),
    [
        (3, -20, False, 6),
        (5, -60, False, 10),
        (6, -20, False, 24),
        (12, -20, False, 24),
        (13, -20, False, 36),
        (36, -20, False, 48),
        (37, -20, False, 0),
        (12, -19, False, 0),
        (12, -20, True, 0),
    ],
)
def test_probation(months, ratio, recidivist, probation):
    assert probation_months(months, ratio, recidivist) == probation


@given(months=st.integers(1, 36), ratio=st.integers(RATIO_FLOOR, -20))
def test_probation_keeps_the_bounds_of_article_73(months, ratio):
    probation = probation_months(months, ratio, recidivist=False)
    low, high = (2, 12) if months < 6 else (12, 60)
    assert max(low, months) <= probation <= high


def test_a_quantity_under_the_lowest_bracket_is_refused():
    with pytest.raises(ValueError, match="1999元 is under the lowest bracket of 盗窃"):
        sentence(THEFT, 1_999, ())


def test_quantities_in_tenths_are_written_with_their_point():
    tenths = replace(THEFT, decimals=1, unit="克")
    assert (tenths.write(9), tenths.write(120), THEFT.write(120)) == ("0.9", "12", "120")


@pytest.mark.parametrize(
    ("charge", "grade", "articles"),
    [
        ("放火", "尚未造成严重后果", ("114",)),
        ("放火", "致人死亡", ("115",)),
        ("破坏电力设备", "造成严重后果", ("119",)),
    ],
)
def test_a_grade_brings_its_own_article(charge: str, grade: str, articles: tuple[str, ...]) -> None:
    offence = offences()[charge]
    assert offence.articles_of(next(g for g in offence.grades if g.name == grade)) == articles
