from __future__ import annotations

import json

import pytest

from curt.corpus.generate.generator import generate_cases
from curt.corpus.store import find_cases, read_cases, write_cases


@pytest.mark.parametrize("name", ["cases.jsonl", "cases.parquet"])
def test_cases_come_back_as_they_went(tmp_path, name):
    cases = list(generate_cases(1500, seed=1))
    assert write_cases(tmp_path / name, cases) == 1500
    assert list(read_cases(tmp_path / name)) == cases
    assert list(read_cases(tmp_path / name, limit=3)) == cases[:3]


def test_a_parquet_table_can_be_queried_by_its_columns(tmp_path):
    import pyarrow.parquet as pq

    (case,) = cases = list(generate_cases(1, seed=1))
    write_cases(tmp_path / "cases.parquet", cases)
    (row,) = pq.read_table(tmp_path / "cases.parquet").to_pylist()
    assert (row["id"], row["fact"]) == (case.id, case.fact)
    assert tuple(row["charges"]) == case.verdict.charges
    assert (row["term"], row["months"]) == (case.verdict.term.kind, case.verdict.term.months)


def break_after(count):
    yield from generate_cases(count, seed=2)
    raise RuntimeError("stop")


@pytest.mark.parametrize("name", ["cases.jsonl", "cases.parquet"])
def test_an_error_while_writing_leaves_the_old_file(tmp_path, name):
    path = tmp_path / name
    write_cases(path, generate_cases(2, seed=1))
    old = path.read_bytes()
    with pytest.raises(RuntimeError, match="stop"):
        write_cases(path, break_after(1200))
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["cases.jsonl", "cases.parquet"])
def test_a_damaged_file_is_named(tmp_path, name):
    path = tmp_path / name
    write_cases(path, generate_cases(50, seed=1))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=f"{name}.*make the corpus again"):
        list(read_cases(path))


def test_a_foreign_parquet_table_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"fact": ["x"]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="no column `case`"):
        list(read_cases(tmp_path / "x.parquet"))


def test_missing_files_and_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="python -m"):
        list(read_cases(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match="case files end in"):
        write_cases(tmp_path / "x.csv", [])


def test_a_set_is_found_in_either_format(tmp_path):
    assert find_cases(tmp_path, "train").name == "train.jsonl"
    write_cases(tmp_path / "train.parquet", generate_cases(1, seed=1))
    assert find_cases(tmp_path, "train").name == "train.parquet"
    write_cases(tmp_path / "train.jsonl", generate_cases(1, seed=1))
    assert find_cases(tmp_path, "train").name == "train.jsonl"


@pytest.mark.parametrize(("limit", "count"), [(None, 20), (0, 0), (1, 1), (20, 20), (99, 20)])
def test_the_limit_bounds_how_many_are_read(tmp_path, limit, count):
    cases = list(generate_cases(20, seed=3))
    write_cases(tmp_path / "deep" / "cases.jsonl", cases)
    assert list(read_cases(tmp_path / "deep" / "cases.jsonl", limit)) == cases[:count]


def damage_line(line: str, how: str) -> str:
    row = json.loads(line)
    if how == "cut":
        return line[: len(line) // 2]
    if how == "no verdict":
        del row["verdict"]
    if how == "no months":
        row["verdict"]["term"] = {"kind": "fixed", "months": 0}
    if how == "a list":
        row = [row]
    return json.dumps(row)


@pytest.mark.parametrize("how", ["cut", "no verdict", "no months", "a list"])
def test_a_damaged_line_is_named_and_not_quoted(tmp_path, how):
    cases = list(generate_cases(20, seed=3))
    path = tmp_path / "cases.jsonl"
    write_cases(path, cases)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert cases[6].fact in lines[6]
    lines[6] = damage_line(lines[6], how)
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=r"cases\.jsonl:7 is no case") as error:
        list(read_cases(path))
    assert cases[6].fact not in str(error.value)
    assert list(read_cases(path, 6)) == cases[:6]
