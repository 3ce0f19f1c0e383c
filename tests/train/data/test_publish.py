from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.redaction import redact
from train.data.publish import PublishConfig, prepare, redact_table, render_card

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
        ("+8613812345678", "mobile phone"),
        ("138 1234 5678", "mobile phone"),
        ("138-1234-5678", "mobile phone"),
        ("１３８１２３４５６７８", "mobile phone"),
        ("6222 0202 0011 2233 445", "bank account"),
        ("110105491231002", "old identity card"),
        ("１１０１０５１９４９１２３１００２Ｘ", "identity card"),
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
    folder = tmp_path / "out"
    prepare(PublishConfig(view_file=view_file, out=folder))
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
    head = yaml.safe_load(card.split("---")[1])
    assert head["language"] == ["zh"]
    assert head["size_categories"] == ["n<1K"]
    assert "rewarded for `charge`" in card
    assert "`penalty`: gated" in card


def test_redaction_keeps_every_other_column_as_it_was():
    table = pa.table({"a": ["x", None], "n": [1, 2], "l": [[1], None]})
    cleaned, counts = redact_table(table)
    assert cleaned.equals(table)
    assert not counts


SECRET = f"电话{PHONE}"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.large_string(), SECRET),
        (pa.string_view(), SECRET),
        (pa.dictionary(pa.int32(), pa.string()), SECRET),
        (pa.list_(pa.string()), [SECRET]),
        (pa.struct({"content": pa.string()}), {"content": SECRET}),
        (pa.list_(pa.struct({"content": pa.string()})), [{"content": SECRET}]),
        (pa.map_(pa.string(), pa.string()), [("k", SECRET)]),
    ],
    ids=str,
)
def test_text_of_every_kind_is_redacted(kind, value):
    table, counts = redact_table(pa.table({"x": pa.array([value, None], kind)}))
    assert PHONE not in str(table.to_pylist())
    assert "电话某" in str(table.to_pylist())
    assert table["x"].null_count == 1
    assert counts == {"mobile phone": 1}


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.list_(pa.binary())], ids=str)
def test_bytes_are_refused(kind):
    with pytest.raises(ValueError, match="'x' is binary"):
        redact_table(pa.table({"x": pa.array([None], kind)}))


def test_what_spells_the_text_is_left_out():
    table = pa.table({"prompt": ["甲"], "prompt_sha256": [SHA], "token_ids": [[1]]})
    table = table.replace_schema_metadata({"note": SECRET})
    cleaned, _ = redact_table(table)
    assert cleaned.column_names == ["prompt"]
    assert cleaned.schema.metadata is None


def test_the_card_says_how_the_rows_were_sampled():
    table = pa.table(
        {
            "budget": [128, 32, 32],
            "source": ["ab" * 6 + "+0", "ab" * 6 + "+41", "qwen"],
            "raw_charge": [0.0, 0.5, 1.0],
            "weighted_charge": [0.0, 0.15, 0.3],
        }
    )
    card = render_card(table, {}, title="t", license_id="mit")
    assert "- `budget`: 32, 128\n" in card
    assert f"- sampled from: qwen, checkpoint `{'ab' * 6}` after 0 to 41 updates\n" in card
    assert "- rewarded for `charge`, weight 0.3" in card


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more"])
def test_a_broken_view_makes_no_folder(tmp_path, content):
    path = tmp_path / "view.parquet"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"can't be read.*train\.data\.views"):
        prepare(PublishConfig(view_file=path, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
