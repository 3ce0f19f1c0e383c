from __future__ import annotations

import hashlib

import pytest

from curt.files import read_rows, sha256, whole_folder, write_atomic, write_json, write_rows


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_atomic(path, "一")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_is_readable_utf8(tmp_path):
    write_json(tmp_path / "a.json", {"罪名": "盗窃"})
    assert '"罪名": "盗窃"' in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "model"
    with whole_folder(target) as folder:
        (folder / "weights").write_text("1")
        assert not target.exists()
    assert (target / "weights").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_new_folder_replaces_the_old_and_keeps_none_of_it(tmp_path):
    target = tmp_path / "model"
    for name in ("first", "second"):
        with whole_folder(target) as folder:
            (folder / name).write_text(name)
    assert [p.name for p in target.iterdir()] == ["second"]


def write_half(target):
    with whole_folder(target) as folder:
        (folder / "weights").write_text("half")
        raise RuntimeError("out of disk")


def test_a_failure_inside_keeps_the_old_folder(tmp_path):
    target = tmp_path / "model"
    with whole_folder(target) as folder:
        (folder / "weights").write_text("old")
    with pytest.raises(RuntimeError, match="out of disk"):
        write_half(target)
    assert (target / "weights").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_hashes_are_those_of_the_bytes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256(path) == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_rows_are_read_as_they_were_written(tmp_path, name):
    rows = [{"a": "甲", "n": 1}, {"a": "乙", "n": 2, "more": True}]
    write_rows(tmp_path / name, rows)
    first, second = read_rows(tmp_path / name)
    assert (first["a"], first.get("more")) == ("甲", None)
    assert second == rows[1]
