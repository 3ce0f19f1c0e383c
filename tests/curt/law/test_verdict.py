from __future__ import annotations

import json

import pytest

from curt.corpus.case import Case
from curt.corpus.generate.generator import generate_cases
from curt.law.verdict import COUNTED_KINDS, MAX_MONTHS, TERM_NAMES, Term, Verdict


@pytest.mark.parametrize("kind", sorted(COUNTED_KINDS))
def test_counted_terms_keep_their_legal_bounds(kind):
    assert Term(kind, 1).months == 1
    assert Term(kind, MAX_MONTHS[kind]).months == MAX_MONTHS[kind]
    for months in (0, -1, MAX_MONTHS[kind] + 1):
        with pytest.raises(ValueError, match=f"{months} months"):
            Term(kind, months)


@pytest.mark.parametrize("kind", sorted(set(TERM_NAMES) - COUNTED_KINDS))
def test_uncounted_terms_take_no_months(kind):
    assert Term(kind).months == 0
    with pytest.raises(ValueError, match="takes no months, got 3"):
        Term(kind, 3)


def test_probation_is_five_years_at_most():
    assert Term("fixed", 36, 60).probation_months == 60
    with pytest.raises(ValueError, match="probation of 61"):
        Term("fixed", 36, 61)


def test_a_verdict_needs_a_charge_and_no_negative_fine():
    with pytest.raises(ValueError, match="at least one charge"):
        Verdict((), ("264",), Term("fixed", 8))
    with pytest.raises(ValueError, match="fine of -1"):
        Verdict(("盗窃",), ("264",), Term("fixed", 8), -1)


def test_a_verdict_survives_json():
    verdicts = [case.verdict for case in generate_cases(200, seed=5)]
    verdicts.append(Verdict(("盗窃", "诈骗"), ("264", "266"), Term("death")))
    assert [Verdict.from_json(json.loads(json.dumps(v.to_json()))) for v in verdicts] == verdicts


def test_a_case_survives_json():
    case = Case(
        id="x-1",
        fact="被告人窃取现金8000元。",
        verdict=Verdict(("盗窃",), ("264",), Term("fixed", 8, 12), 2000),
        source="test",
        reasonings={"terse": "金额8000元"},
        traits=("自首",),
    )
    assert Case.from_json(json.loads(json.dumps(case.to_json()))) == case


def test_a_row_with_an_illegal_term_is_refused():
    row = Case("x", "事实", Verdict(("盗窃",), ("264",), Term("fixed", 8)), "test").to_json()
    row["verdict"]["term"]["months"] = 999
    with pytest.raises(ValueError, match="999 months"):
        Case.from_json(row)
