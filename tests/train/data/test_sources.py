from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train.data.sources import group_rows, read_public
from train.data.views import ViewConfig, write_view

WIDE = [
    {"prompt": "问", "response_1": "甲", "response_1_model": "m", "reward_1": 0.2,
     "response_2": "乙", "response_2_model": "n", "reward_2": 0.9, "response_10": None},
]  # fmt: skip
LONG = [
    {"instruction": "问", "output": "甲", "score": 1},
    {"instruction": "问", "output": "乙", "score": 2},
    {"instruction": "又问", "output": "丙", "score": None},
]
CHAT = [
    {
        "chosen": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "好"}],
        "rejected": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "坏"}],
    }
]
PLAIN = [{"prompt": "问", "chosen": "好", "rejected": "坏"}]


def told(groups):
    return [[(c.prompt, c.completion, c.reward) for c in group] for group in groups]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = [list(rows[0]), *[list(r.values()) for r in rows]]
        path.write_text("\n".join(",".join(map(str, line)) for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_wide_files(tmp_path, suffix):
    groups = list(read_public(str(write(tmp_path / f"d{suffix}", WIDE))))
    assert told(groups) == [[("问", "甲", 0.2), ("问", "乙", 0.9)]]
    assert [c.source for c in groups[0]] == ["m", "n"]


def test_long_files_are_grouped_by_prompt(tmp_path):
    groups = read_public(str(write(tmp_path / "d.jsonl", LONG)))
    assert told(groups) == [[("问", "甲", 1.0), ("问", "乙", 2.0)], [("又问", "丙", None)]]


def test_csv_files(tmp_path):
    rows = [{"prompt": "问", "response": "甲", "reward": 0.5}]
    assert told(read_public(str(write(tmp_path / "d.csv", rows)))) == [[("问", "甲", 0.5)]]


@pytest.mark.parametrize("rows", [CHAT, PLAIN])
def test_preferences_as_chat_and_as_text(rows):
    assert told(group_rows(rows)) == [[("问", "好", 1.0), ("问", "坏", 0.0)]]


def test_an_unknown_shape_names_the_columns():
    with pytest.raises(ValueError, match=r"\['text'\] are of no known shape.*chosen and rejected"):
        list(group_rows([{"text": "甲"}]))


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "问", "response": None, "reward": 1}],
        [{"prompt": None, "response": "甲", "reward": 1}],
        [{"prompt": "问", "chosen": "好", "rejected": None}],
        [{"prompt": None, "response_1": "甲", "reward_1": 1}],
    ],
)
def test_what_is_not_there_is_no_text(rows):
    assert list(group_rows(rows)) == []


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_none(reward):
    rows = [{"prompt": "问", "response": "甲", "reward": reward}]
    assert told(group_rows(rows)) == [[("问", "甲", None)]]


def test_a_reward_in_words_is_refused():
    with pytest.raises(ValueError, match="'good' is no number"):
        list(group_rows([{"prompt": "问", "response": "甲", "reward": "good"}]))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("d.jsonl", b"", "is empty"),
        ("d.jsonl", b'{"prompt": "a", "resp\n', "can't be read"),
        ("d.parquet", b"PAR1", "can't be read"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} {said}"):
        list(read_public(str(tmp_path / name)))


def test_no_rows_are_no_groups():
    assert list(group_rows([])) == []


@pytest.mark.parametrize(("name", "said"), [("x.txt", "ending in"), ("x.jsonl", "is not there")])
def test_files_that_cannot_be_read(tmp_path, name, said):
    if said == "ending in":
        (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=said):
        list(read_public(str(tmp_path / name)))


def test_public_data_goes_through_the_same_views(tmp_path):
    path = write(tmp_path / "d.jsonl", WIDE)
    config = ViewConfig(dataset=str(path), view="pairs", out=tmp_path / "pairs.jsonl")
    assert write_view(config) == 1
    row = json.loads(config.out.read_text(encoding="utf-8"))
    assert (row["chosen"], row["rejected"]) == ("乙", "甲")


def test_an_instruction_is_asked_with_its_input(tmp_path):
    """So that a pair is of one case, where all rows share the instruction."""
    rows = [
        {"instruction": "何罪？", "input": case, "output": answer, "reward": reward}
        for case, answer, reward in (("甲", "盗窃", 1), ("甲", "抢劫", 0), ("乙", "诈骗", 0))
    ]
    assert told(group_rows(rows)) == [
        [("何罪？\n甲", "盗窃", 1.0), ("何罪？\n甲", "抢劫", 0.0)],
        [("何罪？\n乙", "诈骗", 0.0)],
    ]
    path = write(tmp_path / "d.jsonl", rows)
    config = ViewConfig(dataset=str(path), view="pairs", out=tmp_path / "pairs.jsonl")
    assert write_view(config) == 1


def test_lists_of_chosen_and_rejected_texts_are_answers_each():
    rows = [{"prompt": "问", "chosen": ["好"], "rejected": ["坏", "糟"]}]
    assert told(group_rows(rows)) == [[("问", "好", 1.0), ("问", "坏", 0.0), ("问", "糟", 0.0)]]


def test_share_gpt_turns_are_read():
    rows = [{"conversations": [{"from": "human", "value": "问"}],
             "chosen": {"from": "gpt", "value": "好"}, "rejected": {"value": "坏"}}]  # fmt: skip
    assert told(group_rows(rows)) == [[("问", "好", 1.0), ("问", "坏", 0.0)]]


@pytest.mark.parametrize("wrong", [[1, 2], [{"text": "好"}], [["好"]]])
def test_other_lists_are_refused_in_a_sentence(wrong):
    with pytest.raises(ValueError, match="`chosen` holds neither texts nor chat messages"):
        list(group_rows([{"prompt": "问", "chosen": wrong, "rejected": ["坏"]}]))


def test_the_models_of_a_pair_keep_their_names(tmp_path):
    row = {**PLAIN[0], "chosen_model": "m", "rejected_model": "n"}
    path = write(tmp_path / "d.jsonl", [row])
    config = ViewConfig(dataset=str(path), view="pairs", out=tmp_path / "pairs.jsonl")
    write_view(config)
    pair = json.loads(config.out.read_text(encoding="utf-8"))
    assert (pair["chosen_model"], pair["rejected_model"]) == ("m", "n")
