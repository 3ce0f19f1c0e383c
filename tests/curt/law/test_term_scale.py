from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curt.law.statutes import CHARGES, term_in_range
from curt.law.term_scale import DEATH, LIFE, TermInterval, legal_range, severity, to_interval
from curt.law.verdict import Term

TERMS = st.one_of(
    st.builds(Term, st.just("fixed"), st.integers(1, 300)),
    st.builds(Term, st.just("detention"), st.integers(1, 12)),
    st.builds(Term, st.just("surveillance"), st.integers(1, 36)),
    st.sampled_from([Term("exempt"), Term("life"), Term("reprieve"), Term("death")]),
)


def test_penalties_rise_from_exemption_to_death():
    rising = [
        Term("exempt"),
        Term("detention", 1),
        Term("surveillance", 3),
        Term("fixed", 6),
        Term("fixed", 300),
        Term("life"),
        Term("reprieve"),
        Term("death"),
    ]
    places = [severity(term) for term in rising]
    assert places == sorted(set(places))


def test_two_months_of_surveillance_weigh_one_in_custody():
    assert severity(Term("surveillance", 24)) == severity(Term("fixed", 12))


def test_probation_is_not_seen():
    assert severity(Term("fixed", 12, 24)) == severity(Term("fixed", 12))


@settings(deadline=None)
@given(TERMS)
def test_a_term_alone_is_an_interval_that_holds_it(term):
    place = severity(term)
    found = to_interval(place, place, ("盗窃",))
    assert severity(found.low) == severity(found.high)
    # half a month of surveillance has no term in whole months
    assert found.contains(term) or term.kind == "surveillance"


@settings(deadline=None)
@given(st.floats(0, DEATH), st.floats(0, DEATH), TERMS)
def test_an_interval_holds_every_counted_term_between_its_ends(first, second, term):
    low, high = sorted((first, second))
    found = to_interval(low, high, ("抢劫",))
    assert severity(found.low) <= severity(found.high)
    if term.kind != "surveillance" and low <= severity(term) <= high:
        assert found.contains(term)


def test_ends_are_whole_months_named_as_the_law_names_them():
    found = to_interval(math.log(3.4), math.log(9.9), ("盗窃",))
    assert found == TermInterval(Term("detention", 3), Term("fixed", 8))
    assert to_interval(0.0, math.log(3.4), ("抢劫",)) == TermInterval(
        Term("exempt"), Term("fixed", 2)
    )


def test_between_two_months_the_nearest_stands_for_both():
    found = to_interval(math.log(9.2), math.log(9.4), ("盗窃",))
    assert found == TermInterval(Term("fixed", 8), Term("fixed", 8))


def test_nothing_lies_between_twenty_five_years_and_life():
    assert to_interval(6.0, DEATH, ("故意杀人",)) == TermInterval(Term("life"), Term("death"))
    assert to_interval(5.0, 6.0, ("故意杀人",)).high == Term("fixed", 300)


def test_ends_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="lower end first"):
        to_interval(2.0, 1.0, ("盗窃",))


@settings(deadline=None)
@given(st.sampled_from(sorted(CHARGES)), TERMS)
def test_what_a_tier_allows_is_within_the_legal_range(charge, term):
    low, high = legal_range([charge])
    if term.kind != "exempt" and term_in_range(charge, term):
        assert low - 1e-9 <= severity(term) <= high + 1e-9


def test_the_legal_range_of_known_charges():
    assert legal_range(["抢劫"]) == (severity(Term("fixed", 36)), DEATH)
    assert legal_range(["危险驾驶"]) == (severity(Term("detention", 1)), math.log(7))
    assert legal_range(["没有这个"]) == (0.0, DEATH)


def test_offences_punished_together_add_up():
    """盗窃 to life, so with 抢夺; two offences of up to ten years reach twenty together."""
    ten_years = [c.name for c in CHARGES.values() if c.tiers and legal_range([c.name])[1]
                 == severity(Term("fixed", 120))][:2]  # fmt: skip
    assert legal_range(ten_years)[1] == pytest.approx(severity(Term("fixed", 240)))
    assert legal_range(["盗窃", "抢劫"])[0] == severity(Term("fixed", 36))


def test_life_and_death_places_are_above_all_months():
    assert severity(Term("fixed", 300)) < LIFE - 0.4 < LIFE < DEATH - 0.4
