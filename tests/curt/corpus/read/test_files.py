"""Odd files: each is read right, or refused in one sentence with the remedy."""

from __future__ import annotations

import gzip
import io
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curt.corpus.read.sources import cut_file, read_shard
from curt.law.verdict import Term, Verdict
from tests.curt.corpus.read.test_cail import FACT, record
from tests.curt.corpus.read.test_judgments import FOUND, document

ROWS = [record(months=8), record(fact=f"{FACT}又一次。", months=9)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
ARRAY = json.dumps(ROWS, ensure_ascii=False, indent=1)
META = ROWS[0]["meta"]
FLAT = [{"fact": row["fact"], **META["term_of_imprisonment"],
         **{k: v for k, v in META.items() if k != "term_of_imprisonment"},
         **row["meta"]["term_of_imprisonment"]} for row in ROWS]  # fmt: skip
RULING = document("被告人甲某犯盗窃罪，判处拘役五个月，并处罚金叁仟元。")


def pack(*members: tuple[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members:
            archive.writestr(name, text)
    return buffer.getvalue()


def docx(text: str) -> bytes:
    paragraphs = (
        f'<w:p w:rsidR="00"><w:r><w:delText>删去</w:delText><w:t xml:space="preserve">{line}</w:t>'
        "</w:r></w:p>"
        for line in text.split("。 ")
    )
    return pack(("word/document.xml", f"<w:document><w:body>{''.join(paragraphs)}</w:body>"))


def table(rows) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def page(text: str) -> str:
    return f"<!DOCTYPE html><html><head><title>x</title></head><body><p>{text}</p>&nbsp;</body>"


def read(path, kind):
    return [o for shard in cut_file(path, kind, "train", 10) for o in read_shard(shard)]


def terms_of(path, kind="cail"):
    outcomes = read(path, kind)
    assert all(outcome.case for outcome in outcomes), [outcome.reason for outcome in outcomes]
    return [outcome.case.verdict.term for outcome in outcomes]


@pytest.mark.parametrize(
    ("name", "content"),
    {
        "lines.json": LINES.encode(),
        "mark.json": b"\xef\xbb\xbf" + LINES.encode(),
        "windows.json": LINES.replace("\n", "\r\n").encode(),
        "blank_lines.json": LINES.replace("\n", "\n\n").encode(),
        "no_last_newline.json": LINES.rstrip().encode(),
        "gb.json": LINES.encode("gb18030"),
        "utf16.json": LINES.encode("utf-16"),
        "utf16be.json": b"\xfe\xff" + LINES.encode("utf-16-be"),
        "packed.jsonl.gz": gzip.compress(LINES.encode()),
        "packed_unnamed.jsonl": gzip.compress(LINES.encode()),
        "packed_gb.json.gz": gzip.compress(LINES.encode("gb18030")),
        "packed_mark.json.gz": gzip.compress(b"\xef\xbb\xbf" + LINES.encode()),
        "packed_array.json.gz": gzip.compress(ARRAY.encode()),
        "array.json": ARRAY.encode(),
        "array_in_a_line.json": json.dumps(ROWS).encode(),
        "array_mark.json": b"\xef\xbb\xbf" + ARRAY.encode(),
        "array_gb.json": ARRAY.encode("gb18030"),
        "array_utf16.json": ARRAY.encode("utf-16"),
        "array_as_lines.jsonl": ARRAY.encode(),
        "under_a_name.json": json.dumps({"version": 1, "data": ROWS}, indent=2).encode(),
        "flat.jsonl": "\n".join(map(json.dumps, FLAT)).encode(),
        "flat.parquet": table(FLAT),
        "nested.parquet": table(ROWS),
        "parquet_unnamed.json": table(FLAT),
    }.items(),
)
def test_records_are_read_whatever_they_lie_in(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert terms_of(tmp_path / name) == [Term("fixed", 8), Term("fixed", 9)]


def test_one_record_over_several_lines_is_one(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(ROWS[0], indent=2), encoding="utf-8")
    assert terms_of(tmp_path / "one.json") == [Term("fixed", 8)]


@pytest.mark.parametrize(
    ("name", "content"),
    {
        "line.jsonl": json.dumps({"document": RULING}).encode(),
        "plain.txt": RULING.encode(),
        "mark.txt": b"\xef\xbb\xbf" + RULING.encode(),
        "gb.txt": RULING.encode("gb18030"),
        "utf16.txt": RULING.encode("utf-16"),
        "packed.txt.gz": gzip.compress(RULING.encode()),
        "spaced.txt": " ".join(RULING).encode(),
        "page.html": page(RULING).encode(),
        "page.htm": page(RULING).encode("gb18030"),
        "page_unnamed": page(RULING).encode(),
        "line_of_page.jsonl": json.dumps({"document": page(RULING)}).encode(),
        "word.docx": docx(RULING),
    }.items(),
)
def test_a_judgment_is_read_whatever_it_lies_in(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    (outcome,) = read(tmp_path / name, "judgments")
    assert outcome.case, outcome.reason
    assert (outcome.case.verdict.term, outcome.case.verdict.fine_yuan) == (
        Term("detention", 5),
        3000,
    )
    assert outcome.case.fact == FOUND


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.json", None, "no file"),
        ("empty.json", b"", "is empty"),
        ("blank.json", b" \n\n", "is empty"),
        ("pointer.json", b"version https://git-lfs.github.com/spec/v1\noid x", "git lfs pull"),
        ("pointer.parquet", b"version https://git-lfs.github.com/spec/v1\noid x", "git lfs pull"),
        ("cut.json.gz", gzip.compress(LINES.encode())[:-20], "packed and damaged"),
        ("cut.json", ARRAY[:-30].encode(), "damaged JSON array"),
        ("cut.parquet", table(FLAT)[:-40], "no Parquet file"),
        ("packed.parquet.gz", gzip.compress(table(FLAT)), "packed table"),
        ("book.xlsx", pack(("xl/workbook.xml", "<workbook/>")), "no DOCX file"),
        ("files.zip", pack(("a.json", LINES)), "no DOCX file"),
        ("cut.docx", docx(RULING)[:-30], "no DOCX file"),
        ("old.doc", b"\xd0\xcf\x11\xe0\xa1\xb1", "no text"),
        ("scan.pdf", b"%PDF-1.7\n1 0 obj", "no text"),
        ("cases.json.bz2", b"BZh91AY&SY", "no text"),
        ("cases.json.xz", b"\xfd7zXZ\0", "no text"),
        ("bare16.json", LINES.encode("utf-16-le"), "no text"),
        ("model.bin", bytes(range(256)), "no text"),
        ("latin.txt", "Décision à été".encode("latin-1") + b"\xff", "save it as UTF-8"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said) as refused:
        read(tmp_path / name, "judgments" if name.endswith("txt") else "cail")
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_broken_line_of_a_packed_file_is_set_aside(tmp_path):
    path = tmp_path / "x.json.gz"
    path.write_bytes(gzip.compress(b'{"fact": "\xff\xfe"}\n' + LINES.encode()))
    assert [outcome.reason for outcome in read(path, "cail")] == ["not UTF-8", "", ""]


ONE = {"fact": FACT, "imprisonment": 8}
ANSWER = "罪名：盗窃\n法条：264\n刑期：有期徒刑8个月\n罚金：2000元"
PRISON = {"surveillance": 0, "detention": 0, "imprisonment": 8, "death_penalty": False}


@pytest.mark.parametrize(
    "row",
    [
        {**ONE, "accusation": "盗窃", "relevant_articles": 264, "punish_of_money": "2000元"},
        {**ONE, "accusation": ["盗窃罪"], "relevant_articles": ["第二百六十四条"], "fine": 2e3},
        {"facts": FACT, "charge": ["盗窃"], "law": [264], "term": "八个月", "fine": "贰仟元"},
        {"justice": FACT, "caseCause": "盗窃罪", "opinion": "x", "judge": 8, "fine": 2000},
        {"justice": FACT, "caseCause": "盗窃", "judge": "有期徒刑八个月", "fine": "2,000元"},
        {"案情": FACT, "罪名": "盗窃罪", "法条": "第264条", "刑期": "8个月", "罚金": "2000"},
        {"instruction": "给出判决。", "input": FACT, "output": ANSWER},
        {"instruction": FACT, "input": "", "output": f"<think>数额较大</think>{ANSWER}"},
        {"conversations": [{"from": "human", "value": FACT}, {"from": "gpt", "value": ANSWER}]},
        {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": FACT},
                      {"role": "assistant", "content": ANSWER}]},
        {"fact": FACT, "laws": [264], "fine": 2000,
         "criminals_info": {"甲": {"accusations": ["盗窃"], "penalty": PRISON}}},
        {"fact": FACT, "labels": [{"subject": "甲", "charge": "盗窃罪", "article": "264",
                                   "sentence": "有期徒刑八个月", "fine": 2000}]},
        {**ONE, "accusation": "['盗窃']", "relevant_articles": "[264]", "fine": "2000.0",
         "death_penalty": "False", "criminals": "['甲']"},
    ],
)  # fmt: skip
def test_releases_that_name_their_columns_otherwise_are_read_alike(tmp_path, row):
    (tmp_path / "x.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (outcome,) = read(tmp_path / "x.jsonl", "cail")
    assert outcome.case, outcome.reason
    assert outcome.case.fact == FACT
    assert outcome.case.verdict == Verdict(("盗窃",), ("264",), Term("fixed", 8), 2000)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"justice": FACT, "caseCause": "盗窃", "judge": "审判员某某"}, "unreadable term"),
        ({**ONE, "imprisonment": None, "accusation": "盗窃"}, "no term"),
        ({**ONE, "imprisonment": float("nan"), "accusation": "盗窃"}, "no term"),
        ({**ONE, "accusation": "盗窃", "fine": "若干"}, "unreadable fine"),
        ({**ONE, "accusation": "盗窃", "缓刑": 90}, "an impossible term"),
        ({**ONE, "accusation": "盗窃", "缓刑": "是"}, "unreadable term"),
        ({**ONE, "accusation": "盗窃", "detention": 40}, "unreadable term"),
        ({**ONE, "accusation": "盗窃", "life_imprisonment": "?"}, "unreadable flag"),
        ({"instruction": "何罪？", "input": FACT, "output": "盗窃"}, "unreadable answer"),
        ({"fact": FACT, "labels": ["盗窃"]}, "no charge"),
        ({"text": FACT}, "no ruling"),
        ({**ONE, "accusation": "盗窃", "criminals": "['甲', '乙']"}, "several defendants"),
    ],
)
def test_a_row_without_a_case_says_what_it_lacks(tmp_path, row, reason):
    (tmp_path / "x.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (outcome,) = read(tmp_path / "x.jsonl", "cail")
    assert (outcome.case, outcome.reason.partition(":")[0]) == (None, reason)


@pytest.mark.parametrize(
    ("told", "months"), [(24, 24), ("二年", 24), ("无", 0), ("", 0), (None, 0), ("24.0", 24)]
)
def test_probation_of_a_table_is_kept(tmp_path, told, months):
    row = {**ONE, "accusation": "盗窃", "缓刑": told}
    (tmp_path / "x.jsonl").write_text(json.dumps(row), encoding="utf-8")
    assert terms_of(tmp_path / "x.jsonl") == [Term("fixed", 8, months)]


def test_a_term_that_one_defendant_lacks_is_missing_and_not_none(tmp_path):
    people = {
        "甲": {"accusations": ["盗窃"], "laws": [264], "penalty": {**PRISON, "imprisonment": 0,
                                                               "detention": 5}},
        "乙": {"accusations": ["盗窃"], "laws": [264], "penalty": {**PRISON, "imprisonment": None}},
        "丙": {"accusations": ["盗窃"], "laws": [264], "penalty": PRISON},
    }  # fmt: skip
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"fact": FACT, "criminals_info": people}), encoding="utf-8")
    first, second, third = read(path, "cail")
    assert first.case.verdict.term == Term("detention", 5)
    assert first.case.fact == f"{FACT}本案被告人：甲。"
    assert (second.case, second.reason) == (None, "no term")
    assert third.case.verdict.term == Term("fixed", 8)
    assert first.case.id != third.case.id


@pytest.mark.parametrize(("suffix", "mark"), [(".csv", ","), (".tsv", "\t"), (".csv.gz", ",")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_tables_are_read_in_any_encoding(tmp_path, suffix, mark, encoding):
    cells = [FACT + "\n次日归案。", "['盗窃']", "264", "8", "False"]
    rows = [["fact", "accusation", "relevant_articles", "imprisonment", "death_penalty"], cells]
    text = "".join(mark.join(f'"{cell}"' for cell in row) + "\r\n" for row in rows)
    data = text.encode(encoding)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert terms_of(path) == [Term("fixed", 8)]


def test_a_judgment_among_labelled_cases_is_read_as_one(tmp_path):
    (tmp_path / "x.docx").write_bytes(docx(RULING))
    assert terms_of(tmp_path / "x.docx") == [Term("detention", 5)]
