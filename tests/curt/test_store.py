from __future__ import annotations

import json

import pytest

from curt.corpus.store import read_cases, write_cases
from curt.corpus.synthetic import generate_cases


@pytest.fixture
def cases():
    return list(generate_cases(20, seed=3))


def test_cases_come_back_as_they_were_written(tmp_path, cases):
    path = tmp_path / "deep" / "cases.jsonl"
    assert write_cases(path, iter(cases)) == 20
    assert list(read_cases(path)) == cases


def test_one_readable_line_a_case(tmp_path, cases):
    path = tmp_path / "cases.jsonl"
    write_cases(path, cases)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 20
    assert cases[0].fact in lines[0]


@pytest.mark.parametrize(("limit", "count"), [(None, 20), (0, 0), (1, 1), (20, 20), (99, 20)])
def test_the_limit_bounds_how_many_are_read(tmp_path, cases, limit, count):
    path = tmp_path / "cases.jsonl"
    write_cases(path, cases)
    assert list(read_cases(path, limit)) == cases[:count]


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
def test_a_damaged_line_is_named_and_not_quoted(tmp_path, cases, how):
    path = tmp_path / "cases.jsonl"
    write_cases(path, cases)
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[6] = damage_line(lines[6], how)
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=r"cases\.jsonl:7 is no case") as error:
        list(read_cases(path))
    assert cases[6].fact not in str(error.value)
    assert list(read_cases(path, 6)) == cases[:6]


def test_a_missing_file_names_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"python -m curt\.corpus"):
        list(read_cases(tmp_path / "none.jsonl"))


def test_a_failing_source_leaves_the_old_file(tmp_path, cases):
    path = tmp_path / "cases.jsonl"
    write_cases(path, cases[:2])

    def breaks():
        yield cases[5]
        raise RuntimeError("source")

    with pytest.raises(RuntimeError):
        write_cases(path, breaks())
    assert list(read_cases(path)) == cases[:2]
