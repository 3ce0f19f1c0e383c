"""Sixty files in odd shapes through `curt.corpus build`.

Each is read right, or refused or set aside in one sentence that names file and remedy. What is
expected of each was written down before any was tried.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curt.corpus.__main__ import main
from curt.corpus.build.pipeline import CorpusConfig, plan_shards
from curt.corpus.read.records import READING_RULES, remedy_for
from curt.corpus.read.sources import read_shard
from curt.law.verdict import Term, Verdict
from tests.curt.corpus.read.test_files import ANSWER, docx, pack, table
from tests.curt.corpus.read.test_judgments import FOUND, document

A = (
    "2021年6月3日晚，被告人贺某在某县一家粮油店内趁店主不备，窃得现金人民币4600元，次日被民警抓获，"
    "到案后如实供述。"
)
B = (
    "2020年11月，被告人柏某谎称能代办驾驶证，骗取被害人苗某人民币12000元，后主动退还全部款项并取得"
    "谅解。"
)
C = "2022年1月8日深夜，被告人邵某酒后驾驶小型轿车被查获，其血液中酒精含量为131毫克每100毫升。"
CELLS = [["fact", "accusation", "relevant_articles", "imprisonment", "punish_of_money"],
         [A, "盗窃罪", "264", "9", "3000"], [B, "诈骗罪", "266", "12", "5000"]]  # fmt: skip
ROWS = [dict(zip(CELLS[0], cells, strict=True)) for cells in CELLS[1:]]
FIRST, SECOND = ROWS
THEFT = {"fact": A, "accusation": ["盗窃"], "relevant_articles": [264]}
MONTHS = {"death_penalty": False, "life_imprisonment": False, "imprisonment": 9}
RULING = document("被告人甲某犯盗窃罪，判处拘役五个月，并处罚金二千元。")


@dataclass
class Refused:
    """No record of the file is read; the sentence says this."""

    said: str


def case(fact=A, kind="fixed", months=9, fine=0, articles=("264",), charges=("盗窃",), probation=0):
    return fact, Verdict(charges, articles, Term(kind, months, probation), fine)


READ = [case(fine=3000), case(B, "fixed", 12, 5000, ("266",), ("诈骗",))]


def dump(*rows, end="\n", **options) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, **options) + end for row in rows)


def sheet(mark, rows=CELLS, first="") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=mark).writerows(rows)
    return first + text.getvalue()


def archive(text: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        member = tarfile.TarInfo("release/train.json")
        member.size = len(text.encode())
        file.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def table_without_rows() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS).slice(0, 0), buffer)
    return buffer.getvalue()


def turns(*texts) -> dict:
    roles = ("human", "gpt") * 2
    return {"conversations": [{"from": r, "value": t} for r, t in zip(roles, texts, strict=False)]}


MARK, LINES = "\ufeff", dump(*ROWS)
QUOTED = [f'店主说：“抓住他”，"{A}"\n另查，无前科。', *CELLS[1][1:]]
ODD = {
    # encodings
    "mark_blank_crlf.jsonl": (MARK + dump(*ROWS, end="\r\n\r\n"), READ),
    "old_mac.jsonl": (dump(*ROWS, end="\r"), READ),
    "mixed_ends.jsonl": (dump(FIRST, end="\r\n") + dump(SECOND, FIRST), [*READ, READ[0]]),
    "nul_padding.jsonl": (LINES + "\0" * 4096, Refused("no text")),
    "gbk_object.json": (dump({"说明": "导出", "数据": ROWS}, indent=1).encode("gbk"), READ),
    "excel_unicode.txt": (sheet("\t", first=MARK).encode("utf-16-le"), READ),
    "utf32.json": (dump(ROWS).encode("utf-32"), Refused("UTF-8")),
    "two_marks.jsonl": (MARK + dump(FIRST) + MARK + dump(SECOND), READ),
    "one_gbk_line.jsonl": (dump(FIRST).encode() + dump(SECOND).encode("gbk"),
                           [READ[0], "not UTF-8"]),
    "line_separators.jsonl.gz": (
        gzip.compress(dump(FIRST | {"fact": f"{A}\u2028{C}\x85"}, SECOND).encode()),
        [case(f"{A}\u2028{C}\x85", fine=3000), READ[1]],
    ),
    # containers
    "trailing_comma.json": (f"[{dump(FIRST, SECOND, end=',')}]", Refused("damaged JSON array")),
    "columns.json": (dump({name: [row[name] for row in ROWS] for name in CELLS[0]}), READ),
    "by_id.json": (dump({"案一": FIRST, "案二": SECOND}, indent=2), READ),
    "reply_of_an_api.json": (dump({"code": 0, "data": {"total": 2, "list": ROWS}}), READ),
    "objects_by_jq.json": (dump(*ROWS, indent=2), READ),
    "line_commas.jsonl": (dump(*ROWS, end=",\n"), READ),
    "comments.jsonl": ("// 导出\n" + dump(FIRST) + "# 完\n" + dump(SECOND),
                       ["not JSON", READ[0], "not JSON", READ[1]]),
    "single.json": (dump(FIRST, end=""), READ[:1]),
    "cut.json.gz": (gzip.compress(dump(ROWS).encode())[:20], Refused("damaged")),
    "release.tar.gz": (archive(LINES), Refused("unpack")),
    "half.parquet": (table(ROWS)[: len(table(ROWS)) // 2], Refused("Parquet")),
    "lists.parquet": (table([{"事实": A, "罪名": ["盗窃罪"], "法条": [264], "刑期": 9, "罚金": 3e3},
                             {"事实": B, "罪名": ["诈骗罪"], "法条": [266], "刑期": 12,
                              "罚金": 5e3}]), READ),
    "no_rows.parquet": (table_without_rows(), Refused("no record")),
    "quoted.csv": (sheet(",", [CELLS[0], QUOTED, CELLS[2]]),
                   [case(QUOTED[0], fine=3000), READ[1]]),
    "excel.csv": (sheet(";", first=MARK), READ),
    "excel_sep.csv": (sheet(";", first="sep=;\r\n"), READ),
    "tabs.csv": (sheet("\t"), READ),
    "header_only.csv": (sheet(",", CELLS[:1]), Refused("no record")),
    "blank_heads.csv": (sheet(",", [["", *(f" {name} " for name in CELLS[0])],
                                    *(["0", *row] for row in CELLS[1:])]), READ),
    "ragged.csv": (sheet(",", [CELLS[0], CELLS[1][:3], [*CELLS[2], "旁注", ""]]),
                   ["no term", READ[1]]),
    "no_header.csv": (sheet(",", CELLS[1:]), ["no fact"]),
    "release.zip": (pack(("train.json", LINES)), Refused("unpack")),
    "book.xlsx": (pack(("[Content_Types].xml", "<Types/>"), ("xl/worksheets/sheet1.xml", "<x/>")),
                  Refused("CSV")),
    "table.html": ("<html><table><tr><th>fact</th><th>罪名</th></tr><tr><td>" + A
                   + "</td><td>盗窃</td></tr></table></html>", Refused("CSV")),
    "judgment.docx": (docx(RULING.replace("，归案", "，<w:br/><w:tab/>归案")),
                      [case(FOUND, "detention", 5, 2000)]),
    "cases.yaml": (f"- fact: {A}\n  accusation: 盗窃\n- fact: {B}\n", Refused("no JSON")),
    "python.jsonl": ("".join(f"{row}\n" for row in ROWS), ["not JSON"] * 2),
    "pointer.csv": ("version https://git-lfs.github.com/spec/v1\r\noid sha256:0\r\nsize 9\r\n",
                    Refused("git lfs pull")),
    "only_a_mark.jsonl": (MARK + "\r\n", Refused("empty")),
    "a_folder": (None, Refused("no file")),
    # shapes
    "cail2018.json": (
        dump({"fact": C, "meta": {"relevant_articles": [133], "accusation": ["危险驾驶"],
                                  "punish_of_money": 2000, "criminals": ["邵某"],
                                  "term_of_imprisonment": MONTHS | {"imprisonment": 2}}}),
        [case(C, "detention", 2, 2000, ("133之一",), ("危险驾驶",))],
    ),
    "cail2019.json": (
        dump({"fact": A, "meta": {
            "relevant_articles": ["第二百六十四条", "第六十七条第三款", "《刑法》第52条"],
            "accusation": ["盗窃"], "term_of_imprisonment": MONTHS}}),
        [case(articles=("52", "67", "264"))],
    ),
    "cail2022.json": (dump({"id": 7, **THEFT, "accusation": "盗窃罪",
                            "relevant_articles": "264,67", "imprisonment": "9"}),
                      [case(articles=("67", "264"))]),
    "laic.json": (dump({"id": "b1", "caseCause": ["盗窃罪"], "justice": A, "opinion": "……",
                        "judge": "9"}), [case()]),
    "people_without_terms.json": (
        dump({"fact": A, "labels": [{"name": n, "accusation": ["盗窃"]} for n in "甲乙"]}),
        ["no term", "no term"],
    ),
    "people.json": (
        dump({"fact": A, "outcomes": [
            {"name": "贺某", "charges": ["盗窃"], "articles": ["264"], "term": "有期徒刑九个月"},
            {"name": "柏某", "charges": ["盗窃"], "term": "拘役四个月，缓刑六个月"}]}),
        [case(f"{A}本案被告人：贺某。"),
         case(f"{A}本案被告人：柏某。", "detention", 4, probation=6)],
    ),
    "alpaca_prose.json": (dump([{"instruction": "请判决。", "input": A,
                                 "output": "被告人贺某犯盗窃罪，判处有期徒刑九个月。"}]),
                          ["unreadable answer"]),
    "sharegpt_turns.json": (dump(turns(A, ANSWER, "罚金呢？", ANSWER)), ["several questions"]),
    "reward_bench.parquet": (
        table([{"prompt": A, "chosen": ANSWER, "chosen_model": "甲", "rejected": "无罪",
                "rejected_model": "乙", "subset": "law"}]), [case(months=8, fine=2000)]),
    "chinese.csv": (sheet(",", [["案号", "事实", "罪名", "法条", "刑期", "罚金"],
                                ["（2021）刑初9号", A, "盗窃罪", "第264条、第67条第三款",
                                 "有期徒刑九个月，缓刑一年", "无"]]),
                    [case(articles=("67", "264"), probation=12)]),
    "years.json": (dump(*({**THEFT, "刑期": told} for told in ("1年6个月", "三年", "1.5年"))),
                   [case(months=18), case(months=36), "unreadable term"]),
    "years_in_a_column.csv": (sheet(",", [["fact", "罪名", "刑期（年）"], [A, "盗窃", "3"]]),
                              [case(months=36)]),
    "full_width.json": (dump({**THEFT, "法条": "２６４", "刑期": "９个月", "罚金": "３，０００元"}),
                        READ[:1]),
    "nulls.json": (dump(dict.fromkeys((*CELLS[0], "meta", "labels"))), ["no fact"]),
    "paragraphs.json": (dump(FIRST | {"fact": [A, C]}), [case(f"{A}\n{C}", fine=3000)]),
    "escaped_html.json": (
        dump(FIRST | {"fact": f"&lt;p class=x&gt;{A}&amp;nbsp;&lt;br/&gt;{C}&lt;/p&gt;"}),
        [case(f"{A}\u00a0{C}", fine=3000)],
    ),
    "doubled_ids.csv": (sheet(",", [["id", *CELLS[0]], ["X", *CELLS[1][:3], "9.0", " 3000 "],
                                    ["X", *CELLS[2]]]), READ),
    "more_columns.json": (dump({**FIRST, "judge": "审判员", "court": "某县", "tags": ["x"],
                                "content": None, "名称": {"a": 1}}), READ[:1]),
    "whole_judgment_as_fact.json": (dump(FIRST | {"fact": RULING}), ["the ruling in the facts"]),
    "deeper.json": (dump({"case": {"facts": FIRST}}), ["no fact"]),
}  # fmt: skip
MAPS = {"years_in_a_column.csv": {"term": "刑期（年）"}}


def put(folder, name):
    content, path = ODD[name][0], folder / name
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def outcomes(path):
    config = CorpusConfig(cail=path, map=MAPS.get(path.name, {}))
    return [outcome for shard in plan_shards(config) for outcome in read_shard(shard)]


def test_there_are_sixty():
    assert len(ODD) == 60


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_read_right_or_named_with_its_remedy(tmp_path, name):
    path, expected = put(tmp_path, name), ODD[name][1]
    if isinstance(expected, Refused):
        with pytest.raises(ValueError, match=expected.said) as refused:
            outcomes(path)
        assert name in str(refused.value)
        assert "\n" not in str(refused.value)
        return
    found = outcomes(path)
    told = [(o.case.fact, o.case.verdict) if o.case else o.reason for o in found]
    assert told == expected
    for outcome in found:
        assert outcome.source == str(path)
        assert outcome.case or outcome.reason in READING_RULES or remedy_for(outcome.reason)


def test_one_build_takes_all_that_are_read_and_accounts_for_each(tmp_path, monkeypatch):
    names = [n for n in ODD if not isinstance(ODD[n][1], Refused) and n not in MAPS]
    for name in names:
        put(tmp_path, name)
    expected = [told for name in names for told in ODD[name][1]]
    reasons = [told for told in expected if isinstance(told, str)]
    arguments = ["build", "--cail", str(tmp_path), "--files", json.dumps({"train": names})]
    arguments += ["--out", str(tmp_path / "out"), "--backend", "serial", "--embedding", "null"]
    arguments += ["--near_duplicates", "null"]
    monkeypatch.setattr(sys, "argv", ["curt.corpus", *arguments])
    monkeypatch.setattr("curt.config.configure_logging", lambda: None)
    main()
    summary = json.loads((tmp_path / "out" / "corpus.json").read_text(encoding="utf-8"))
    assert summary["counts"]["train"] == len(expected) - len(reasons)
    assert summary["quarantined"] == {"train": dict(Counter(reasons))}
    for line in (tmp_path / "out" / "quarantine.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert Path(row["file"]).name in names
        assert row["line"] > 0
        assert row["remedy"]


@pytest.mark.parametrize(
    ("name", "said"), [("nulls.json", "no case was kept: see"), ("release.zip", "error: ")]
)
def test_the_command_ends_with_status_1_when_nothing_is_kept(tmp_path, name, said):
    arguments = ["--cail", put(tmp_path, name), "--out", tmp_path / "out", "--backend", "serial"]
    command = [sys.executable, "-m", "curt.corpus", "build", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1
    assert said in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
