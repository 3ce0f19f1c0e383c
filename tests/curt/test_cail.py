from __future__ import annotations

import json
import logging

import pytest

from curt.corpus.cail import RECOMMENDATION, ReadReport, read_cail, read_line
from curt.schema import Term

FACT = "被告人张某在超市窃取手机一部，价值人民币2,672元。归案后如实供述。"


def line(fact=FACT, **meta):
    months = meta.pop("months", 8)
    term = {"death_penalty": False, "life_imprisonment": False, "imprisonment": months}
    row = {
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
    return json.dumps(row, ensure_ascii=False)


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_line_becomes_a_case():
    case = read_line(line())
    assert case.fact == FACT
    assert case.source == "cail2018"
    assert case.verdict.charges == ("盗窃",)
    assert case.verdict.articles == ("264",)
    assert case.verdict.term == Term("fixed", 8)
    assert case.verdict.fine_yuan == 2000
    assert case.reasonings == {"terse": "金额2672元；坦白"}
    assert case.traits == ()


def test_ids_depend_on_the_fact_alone():
    assert read_line(line()).id == read_line(line(months=9)).id
    assert read_line(line()).id == read_line(line(fact=f" {FACT}\n")).id
    assert read_line(line()).id != read_line(line(fact=FACT + "另")).id


@pytest.mark.parametrize("name", ["[盗窃]", "盗窃罪", "[盗窃罪]"])
def test_bracketed_and_suffixed_charges_are_read(name):
    assert read_line(line(accusation=[name])).verdict.charges == ("盗窃",)


def test_articles_may_be_text_and_regain_their_branch():
    meta = {"accusation": ["危险驾驶"], "relevant_articles": ["133"], "months": 2}
    assert read_line(line(**meta)).verdict.articles == ("133之一",)
    assert read_line(line(relevant_articles=["第264条", 67])).verdict.articles == ("67", "264")


@pytest.mark.parametrize(
    ("charge", "months", "term"),
    [
        ("盗窃", 5, Term("detention", 5)),
        ("盗窃", 6, Term("fixed", 6)),
        ("危险驾驶", 6, Term("detention", 6)),
        ("危险驾驶", 13, Term("fixed", 13)),
        ("走私", 9, Term("fixed", 9)),
        ("盗窃", 300, Term("fixed", 300)),
        ("盗窃", 0, Term("exempt")),
    ],
)
def test_months_get_the_kind_the_law_leaves_them(charge, months, term):
    assert read_line(line(accusation=[charge], months=months)).verdict.term == term


def test_life_and_death_outrank_months():
    assert read_line(line(term={"life_imprisonment": True})).verdict.term == Term("life")
    assert read_line(line(term={"death_penalty": True})).verdict.term == Term("death")


def test_a_recommended_sentence_in_the_facts_is_flagged():
    fact = FACT + "公诉机关建议对其判处有期徒刑八个月。"
    assert read_line(line(fact=fact)).traits == (RECOMMENDATION,)


BAD = {
    "not JSON in UTF-8": "{",
    "not an object with fact and meta": "[]",
    "no fact": line(fact=" \n"),
    "no charge": line(accusation=[]),
    "unknown charge": line(accusation=["走路太快"]),
    "no article": line(relevant_articles=[]),
    "unreadable article": line(relevant_articles=[999]),
    "no term": line(term_of_imprisonment=None),
    "unreadable term": line(months="很久"),
    "term over the legal maximum": line(months=301),
    "unreadable fine": line(punish_of_money=-5),
    "more than one defendant": line(criminals=["张某", "李某"]),
}


def test_unusable_lines_are_counted_by_reason(tmp_path, caplog):
    path = write(tmp_path / "x.json", line(), *BAD.values(), "", line(fact="另一事实"))
    report = ReadReport()
    with caplog.at_level(logging.DEBUG):
        cases = list(read_cail(path, report=report))
    assert len(cases) == report.cases == 2
    assert dict(report.skipped) == dict.fromkeys(BAD, 1)
    assert "超市" not in caplog.text
    assert f"{path}, line 2: not JSON" in caplog.text


@pytest.mark.parametrize("reason", BAD)
def test_strict_names_file_line_and_reason_but_never_the_fact(tmp_path, reason):
    path = write(tmp_path / "x.json", line(), BAD[reason])
    with pytest.raises(ValueError, match=reason) as error:
        list(read_cail(path, strict=True))
    assert f"{path}, line 2" in str(error.value)
    assert "超市" not in str(error.value)


def test_bytes_that_are_no_text_are_a_skipped_line(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'{"fact": "\xff"}\n' + line().encode() + b"\n")
    report = ReadReport()
    assert len(list(read_cail(path, report=report))) == 1
    assert report.skipped == {"not JSON in UTF-8": 1}


def test_reading_is_a_stream(tmp_path):
    path = write(tmp_path / "x.json", line(), "{")
    cases = read_cail(path, strict=True)
    assert next(cases).verdict.charges == ("盗窃",)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        list(read_cail(tmp_path / "none.json"))


def test_real_files_are_read_whole(real_cases):
    report = ReadReport()
    cases = list(read_cail(real_cases / "dev.json", strict=True, report=report))
    assert len({case.id for case in cases}) == len(cases) == report.cases > 400
    assert not report.skipped
    assert sum(bool(case.reasonings) for case in cases) / len(cases) > 0.7
