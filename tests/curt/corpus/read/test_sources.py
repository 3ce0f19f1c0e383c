from __future__ import annotations

import json

import pytest

from curt.corpus.generate.generator import generate_cases
from curt.corpus.read.sources import (
    cut_file,
    cut_hub,
    cut_mended,
    cut_parquet,
    read_shard,
)
from curt.corpus.store import write_cases
from tests.curt.corpus.read.test_cail import FACT, record
from tests.curt.corpus.read.test_judgments import document


def lines(*rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_all(shards):
    return [outcome for shard in shards for outcome in read_shard(shard)]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_shards_together_hold_each_line_once(tmp_path, size):
    path = tmp_path / "x.json"
    rows = [record(fact=f"{FACT}{number}") for number in range(7)]
    path.write_text(lines(*rows[:3]) + "\n" + lines(*rows[3:]), encoding="utf-8")
    outcomes = read_all(cut_file(path, "cail", "train", size))
    assert [outcome.case.fact for outcome in outcomes] == [row["fact"] for row in rows]
    assert [outcome.line for outcome in outcomes] == [1, 2, 3, 5, 6, 7, 8]  # 4 is blank
    assert {outcome.split for outcome in outcomes} == {"train"}


def test_gb18030_is_told_from_a_utf8_file_with_bad_bytes(tmp_path):
    text = lines(*(record(fact=f"{FACT}{number}") for number in range(5)))
    (tmp_path / "gb.json").write_bytes(text.encode("gb18030"))
    (tmp_path / "utf8.json").write_bytes(b'{"fact": "\xff\xfe"}\n' + text.encode())
    (tmp_path / "ascii.json").write_text('{"fact": 1}\n')
    for name, encoding in (("gb", "gb18030"), ("utf8", "utf-8"), ("ascii", "utf-8")):
        (shard, *_) = cut_file(tmp_path / f"{name}.json", "cail", "train", 9)
        assert shard.encoding == encoding
    outcomes = read_all(cut_file(tmp_path / "gb.json", "cail", "train", 3))
    facts = [outcome.case.fact for outcome in outcomes]
    assert facts == [f"{FACT}{number}" for number in range(5)]
    bad, *good = read_all(cut_file(tmp_path / "utf8.json", "cail", "train", 3))
    assert (bad.case, bad.reason, bad.line, bad.part) == (None, "not UTF-8", 1, 0)
    assert "\\xff" in bad.record
    assert all(outcome.case for outcome in good)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (lines(record())[:-30], "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", "not an object"),
        (lines(record(accusation=["走路太快"])), "unknown charge"),
    ],
)
def test_a_line_without_a_case_keeps_its_text_and_says_why(tmp_path, line, reason):
    path = tmp_path / "x.json"
    path.write_text(line, encoding="utf-8")
    (outcome,) = read_all(cut_file(path, "cail", "train", 10))
    assert (outcome.reason, outcome.part) == (reason, 0)
    assert outcome.record.strip()[:20] == line.strip()[:20]


def mend(outcome, text, tmp_path):
    row = {
        "file": outcome.source, "line": outcome.line, "part": outcome.part, "split": outcome.split,
        "kind": outcome.kind, "reason": outcome.reason, "remedy": "", "record": text,
    }  # fmt: skip
    path = tmp_path / "mended.jsonl"
    path.write_text(lines(row), encoding="utf-8")
    return read_all(cut_mended(path, 10))


def test_a_mended_record_is_read_as_if_it_had_been_right(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(lines(record(), record(months=301)), encoding="utf-8")
    _, bad = read_all(cut_file(path, "cail", "dev", 10))
    (again,) = mend(bad, bad.record.replace("301", "30"), tmp_path)
    assert again.case.verdict.term.months == 30
    assert (again.source, again.line, again.split) == (str(path), 2, "dev")
    (still,) = mend(bad, bad.record[:-9], tmp_path)
    assert (still.case, still.reason) == (None, "not JSON")


def test_mending_one_defendant_gives_no_other_twice(tmp_path):
    ruling = "一、被告人甲某犯盗窃罪，判处拘役五个月。二、被告人乙某犯盗窃罪，判处拘役九十个月。"
    ruling = ruling.replace("判处拘役九十个月", "单处罚金二千元")
    path = tmp_path / "x.jsonl"
    path.write_text(lines({"document": document(ruling)}), encoding="utf-8")
    good, bad = read_all(cut_file(path, "judgments", None, 10))
    assert (good.part, bad.part) == (1, 2)
    assert good.split in ("train", "dev", "test")
    (again,) = mend(bad, bad.record.replace("单处罚金二千元", "判处拘役四个月"), tmp_path)
    assert again.case.verdict.term.months == 4
    assert again.part == 2


def test_a_file_that_is_no_quarantine_is_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(lines(record()), encoding="utf-8")
    with pytest.raises(ValueError, match=r"x.jsonl:1 is no line of a quarantine file"):
        read_all(cut_mended(path, 10))


@pytest.mark.parametrize("size", [2, 100])
def test_parquet_is_read_by_rows(tmp_path, size):
    cases = list(generate_cases(5, seed=1))
    write_cases(tmp_path / "x.jsonl", cases)
    outcomes = read_all(cut_file(tmp_path / "x.jsonl", "cases", "test", size))
    assert [outcome.case for outcome in outcomes] == cases
    import pyarrow as pa
    import pyarrow.parquet as pq

    meta = record()["meta"]
    flat = {"fact": FACT, **meta["term_of_imprisonment"], **meta}
    del flat["term_of_imprisonment"]
    pq.write_table(pa.Table.from_pylist([flat] * 5), tmp_path / "flat.parquet")
    outcomes = read_all(cut_parquet(tmp_path / "flat.parquet", "cail", "test", size))
    assert [outcome.line for outcome in outcomes] == [1, 2, 3, 4, 5]
    assert {outcome.case.fact for outcome in outcomes} == {FACT}


def test_our_own_parquet_gives_our_own_cases(tmp_path):
    cases = list(generate_cases(5, seed=1))
    write_cases(tmp_path / "x.parquet", cases)
    outcomes = read_all(cut_parquet(tmp_path / "x.parquet", "cases", "test", 2))
    assert [outcome.case for outcome in outcomes] == cases


def test_a_hugging_face_data_set_is_read_by_its_splits(tmp_path, monkeypatch):
    """A local folder takes the loading code of a hub id."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    meta = record()["meta"]
    flat = {"fact": FACT, **meta["term_of_imprisonment"], **meta}
    del flat["term_of_imprisonment"]
    folder = tmp_path / "cail2018" / "data"
    folder.mkdir(parents=True)
    for name, count in (("train", 5), ("test", 2)):
        rows = [flat | {"fact": f"{FACT}{name}{number}"} for number in range(count)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}-00000-of-00001.parquet")
    shards = cut_hub(str(tmp_path / "cail2018"), {"train": "train", "test": "test"}, 2)
    outcomes = read_all(shards)
    assert [outcome.split for outcome in outcomes] == ["train"] * 5 + ["test"] * 2
    assert outcomes[0].case.fact == f"{FACT}train0"
    with pytest.raises(ValueError, match="split validation can't be had"):
        cut_hub(str(tmp_path / "cail2018"), {"dev": "validation"}, 2)


def test_missing_sources_are_named(tmp_path):
    for cut in (
        lambda: cut_file(tmp_path / "none.json", "cail", "train", 1),
        lambda: cut_mended(tmp_path / "none.json", 1),
        lambda: cut_parquet(tmp_path / "none.parquet", "cases", "train", 1),
        lambda: cut_hub(str(tmp_path / "none"), {"train": "train"}, 1),
    ):
        with pytest.raises(ValueError, match="none"):
            cut()
