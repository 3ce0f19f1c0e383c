from __future__ import annotations

import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.train.hub_server import hub_server
from train.publish import PublishConfig, prepare, push, redact_table
from train.redaction import redact

SHA = "1" * 64
ID_CARD, PHONE, ACCOUNT = "11010519491231002X", "13812345678", "6222020200112233445"


@pytest.fixture
def view_file(tmp_path):
    rows = [
        {"prompt": f"被告人张某，身份证{ID_CARD}，电话{PHONE}", "completion": "想", "reward": 1.0,
         "token_ids": [1, 2], "config_sha256": SHA, "weighted_charge": 0.3, "penalty": "gated"},
        {"prompt": "盗窃8000元", "completion": f"转入{ACCOUNT}", "reward": None,
         "token_ids": [3], "config_sha256": SHA, "weighted_charge": None, "penalty": "gated"},
    ]  # fmt: skip
    path = tmp_path / "view.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (ID_CARD, "identity card"),
        ("110105194912310021", "identity card"),
        (PHONE, "mobile phone"),
        (ACCOUNT, "bank account"),
        ("zhang.san@example.com", "e-mail"),
    ],
)
def test_identifying_numbers_go(text, kind):
    assert redact(f"号码为{text}，") == ("号码为某，", {kind: 1})


@pytest.mark.parametrize(
    "text",
    [
        "人民币13812345元",
        "2021年4月12日15时许",
        "价值1234567890元",
        "（2021）京0101刑初123号",
        "张某",
    ],
)
def test_amounts_dates_and_case_numbers_stay(text):
    assert redact(text) == (text, {})


@given(text=st.text(alphabet="0123456789Xx某@a.元", max_size=60))
def test_nothing_identifying_is_left(text):
    cleaned, _ = redact(text)
    assert redact(cleaned)[1] == {}


def test_what_is_published_is_redacted_and_says_so(tmp_path, view_file):
    folder = prepare(PublishConfig(view_file=view_file, out=tmp_path / "out"))
    everything = (folder / "data" / "train.parquet").read_bytes() + (
        folder / "README.md"
    ).read_bytes()
    table = pq.read_table(folder / "data" / "train.parquet")
    text = str(table.to_pylist())
    for secret in (ID_CARD, PHONE, ACCOUNT):
        assert secret not in text
        assert secret.encode() not in everything
    assert "token_ids" not in table.column_names  # they spell the text
    assert table["config_sha256"].to_pylist() == [SHA] * 2
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "1 × bank account, 1 × identity card, 1 × mobile phone" in card
    head = dict(line.split(": ", 1) for line in card.split("---")[1].strip().splitlines())
    assert json.loads(head["language"]) == ["zh"]
    assert json.loads(head["size_categories"]) == ["n<1K"]
    assert "rewarded for `charge`" in card
    assert "`penalty`: gated" in card


def test_redaction_keeps_every_other_column_as_it_was():
    table = pa.table({"a": ["x", None], "n": [1, 2], "l": [[1], None]})
    cleaned, counts = redact_table(table)
    assert cleaned.equals(table)
    assert not counts


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more"])
def test_a_broken_view_makes_no_folder(tmp_path, content):
    path = tmp_path / "view.parquet"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"can't be read.*train\.views"):
        prepare(PublishConfig(view_file=path, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_hub_gets_the_folder_byte_for_byte(tmp_path, view_file, monkeypatch, caplog):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    caplog.set_level(logging.DEBUG)
    with hub_server() as hub:
        config = PublishConfig(
            view_file=view_file, out=tmp_path / "out", repo_id="owner/name", endpoint=hub.url
        )
        folder = prepare(config)
        address = push(config)
    assert address.endswith("/datasets/owner/name")
    assert hub.files == {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert hub.created[0]["visibility"] == "private"
    assert hub.tokens == {"Bearer hf_very_secret"}
    assert "very_secret" not in caplog.text


@pytest.mark.parametrize("refuse", [{"/repos/create": 401}, {"/commit/": 403}])
def test_a_refusal_is_told_and_leaves_the_folder(tmp_path, view_file, refuse):
    with hub_server(refuse) as hub:
        config = PublishConfig(
            view_file=view_file, out=tmp_path / "out", repo_id="owner/name", endpoint=hub.url
        )
        folder = prepare(config)
        with pytest.raises(ValueError, match=r"answered 40[13].*HF_TOKEN.*same command again"):
            push(config)
    assert (folder / "README.md").is_file()
    assert hub.files == {}


def test_a_hub_that_is_not_there(tmp_path, view_file):
    config = PublishConfig(
        view_file=view_file, out=tmp_path / "out", repo_id="a/b", endpoint="http://127.0.0.1:9"
    )
    prepare(config)
    with pytest.raises(ValueError, match="can't be reached"):
        push(config)
