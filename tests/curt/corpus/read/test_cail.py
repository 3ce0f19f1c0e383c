from __future__ import annotations

import json
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.case import Case
from curt.corpus.read.cail import COLUMNS, RECOMMENDATION, read_records
from curt.corpus.read.records import READING_RULES, REMEDIES, RecordError, remedy_for
from curt.law.verdict import Term

NAMES = sorted(
    {*COLUMNS, *chain(*COLUMNS.values()), "meta", "criminals", "conversations"}
    | {"term_of_imprisonment", "detention", "surveillance", "death_penalty", "life_imprisonment"}
)
FACT = "被告人张某在超市窃取手机一部，价值人民币2,672元。归案后如实供述。"


def record(fact=FACT, **meta):
    months = meta.pop("months", 8)
    term = {"death_penalty": False, "life_imprisonment": False, "imprisonment": months}
    return {
        "fact": fact,
        "meta": {
            "relevant_articles": [264],
            "accusation": ["盗窃"],
            "punish_of_money": 2000,
            "criminals": ["张某"],
            "term_of_imprisonment": term | meta.pop("term", {}),
            **meta,
        },
    }


def read_row(row):
    return next(read_records(row))


def test_a_line_becomes_a_case():
    case = read_row(record())
    assert case.fact == FACT
    assert case.source == "cail2018"
    assert case.verdict.charges == ("盗窃",)
    assert case.verdict.articles == ("264",)
    assert case.verdict.term == Term("fixed", 8)
    assert case.verdict.fine_yuan == 2000
    assert case.reasonings == {"terse": "金额2672元；坦白"}
    assert case.traits == ()


def test_ids_depend_on_the_fact_alone():
    assert read_row(record()).id == read_row(record(months=9)).id
    assert read_row(record()).id == read_row(record(fact=f" {FACT}\n")).id
    assert read_row(record()).id != read_row(record(fact=FACT + "另")).id


@pytest.mark.parametrize("name", ["[盗窃]", "盗窃罪", "[盗窃罪]"])
def test_bracketed_and_suffixed_charges_are_read(name):
    assert read_row(record(accusation=[name])).verdict.charges == ("盗窃",)


def test_articles_may_be_text_and_regain_their_branch():
    meta = {"accusation": ["危险驾驶"], "relevant_articles": ["133"], "months": 2}
    assert read_row(record(**meta)).verdict.articles == ("133之一",)
    assert read_row(record(relevant_articles=["第264条", 67])).verdict.articles == ("67", "264")


@pytest.mark.parametrize(
    ("charge", "months", "term"),
    [
        ("盗窃", 5, Term("detention", 5)),
        ("盗窃", 6, Term("fixed", 6)),
        ("危险驾驶", 6, Term("detention", 6)),
        ("危险驾驶", 13, Term("fixed", 13)),
        ("走私", 9, Term("fixed", 9)),
        ("盗窃", 240, Term("fixed", 240)),
        ("盗窃", 0, Term("exempt")),
    ],
)
def test_months_get_the_kind_the_law_leaves_them(charge, months, term):
    assert read_row(record(accusation=[charge], months=months)).verdict.term == term


def test_life_and_death_outrank_months():
    assert read_row(record(term={"life_imprisonment": True})).verdict.term == Term("life")
    assert read_row(record(term={"death_penalty": True})).verdict.term == Term("death")


@pytest.mark.parametrize("written", [1, "1", 1.0, "True", "true", True])
def test_flags_hold_however_they_are_written(written):
    term = {"life_imprisonment": written, "death_penalty": "False"}
    assert read_row(record(term=term, months=0)).verdict.term == Term("life")


@pytest.mark.parametrize("written", [0, "0", "false", "False", False, None, ""])
def test_flags_that_do_not_hold_leave_the_months(written):
    term = {"life_imprisonment": written, "death_penalty": written}
    assert read_row(record(term=term)).verdict.term == Term("fixed", 8)


def test_another_flag_is_refused_by_its_value():
    with pytest.raises(RecordError, match="unreadable flag: death_penalty is '也许'") as refused:
        read_row(record(term={"death_penalty": "也许"}))
    assert "true or false" in remedy_for(str(refused.value))


def test_facts_lose_html_and_blanks_after_each_character():
    assert read_row(record(fact=f"<p>{FACT}&nbsp;</p><br/>")).verdict == read_row(record()).verdict
    assert read_row(record(fact=f"<p>{FACT}</p>")).fact == FACT
    assert read_row(record(fact=" ".join(FACT))).fact == FACT
    assert read_row(record(fact="A < B，" + FACT)).fact == "A < B，" + FACT


def test_a_recommended_sentence_in_the_facts_is_flagged():
    fact = FACT + "公诉机关建议对其判处有期徒刑八个月。"
    assert read_row(record(fact=fact)).traits == (RECOMMENDATION,)


BAD = [
    ("not an object", []),
    ("no charge", {"fact": FACT}),
    ("unreadable answer", {"input": FACT, "output": "盗窃，八个月"}),
    ("no fact", record(fact=" \n")),
    ("no fact", record(fact=None)),
    ("no charge", record(accusation=[])),
    ("no charge", record(accusation="；")),
    ("unknown charge", record(accusation=["走路太快"])),
    ("masked charge", record(accusation=["××"])),
    ("no article", record(relevant_articles=[])),
    ("unreadable article", record(relevant_articles=[999])),
    ("no term", record(term_of_imprisonment=None)),
    ("unreadable term", record(months="很久")),
    ("unreadable term", record(months=-1)),
    ("term over the legal maximum", record(months=300)),
    ("term over the legal maximum", record(accusation=["盗窃", "诈骗"], months=301)),
    ("unreadable fine", record(punish_of_money=-5)),
    ("several defendants", record(criminals=["张某", "李某"])),
]


@pytest.mark.parametrize(("reason", "row"), BAD)
def test_an_unusable_record_says_why_and_never_quotes_the_fact(reason, row):
    with pytest.raises(RecordError, match=f"^{reason}$"):
        read_row(row)


CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    | st.sampled_from([FACT, "盗窃", "264", "有期徒刑九百年", "拘役八个月", "叁仟元", "nan"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(NAMES), CELLS, max_size=8))
def test_whatever_a_row_holds_gives_cases_or_reasons(row):
    try:
        results = list(read_records({"fact": FACT, **row}))
    except RecordError as error:
        results = [error]
    assert results or "labels" in row
    for result in results:
        assert isinstance(result, Case) or remedy_of(result)


def remedy_of(error):
    return str(error) in READING_RULES or remedy_for(str(error))


def test_sums_of_several_charges_may_reach_25_years():
    row = record(accusation=["盗窃", "诈骗"], months=300)
    assert read_row(row).verdict.term == Term("fixed", 300)


def test_the_flat_columns_of_the_hugging_face_copy_are_read_alike():
    nested = record()
    meta = dict(nested["meta"])
    flat = {"fact": nested["fact"], **meta.pop("term_of_imprisonment"), **meta}
    flat["punish_of_money"] = 2000.0
    assert read_row(flat) == read_row(nested)
    with pytest.raises(RecordError, match="no term"):
        read_row({k: v for k, v in flat.items() if k != "imprisonment"})


def test_each_reason_is_a_rule_or_has_a_remedy():
    reasons = {reason for reason, _ in BAD}
    assert all((reason in READING_RULES) != (reason in REMEDIES) for reason in reasons)


def test_real_files_are_read_whole(real_cases):
    lines = (real_cases / "dev.json").read_text(encoding="utf-8").splitlines()
    cases: list[Case] = [next(read_records(json.loads(line))) for line in lines]
    assert len({case.id for case in cases}) == len(cases) > 400
    assert sum(bool(case.reasonings) for case in cases) / len(cases) > 0.7
