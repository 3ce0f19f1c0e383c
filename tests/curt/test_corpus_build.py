from __future__ import annotations

import json
import sys

import pytest

from curt.corpus.__main__ import CorpusConfig, build_corpus, main
from curt.corpus.store import read_cases
from tests.curt.test_dedup import FACT, OTHER
from tests.curt.test_judgments import document


def cail_line(fact: str, months: int = 8) -> str:
    term = {"death_penalty": False, "life_imprisonment": False, "imprisonment": months}
    meta = {"relevant_articles": [264], "accusation": ["盗窃"], "punish_of_money": 0,
            "criminals": ["某"], "term_of_imprisonment": term}  # fmt: skip
    return json.dumps({"fact": fact, "meta": meta}, ensure_ascii=False)


@pytest.fixture
def cail(tmp_path):
    folder = tmp_path / "cail"
    folder.mkdir()
    third = "2018年，被告人赵某多次进入邻村农户家中，窃取家禽数只，销赃得款五百元，已全部挥霍。"
    lines = {
        "train": [FACT, FACT + "。", OTHER, f"另，{third}", "{broken"],
        "dev": [OTHER],
        "test": [third, third],
    }
    for split, facts in lines.items():
        rows = [f if f == "{broken" else cail_line(f) for f in facts]
        (folder / f"{split}.json").write_text("\n".join(rows), encoding="utf-8")
    return folder


def test_repeats_and_test_cases_are_dropped_and_everything_is_accounted_for(tmp_path, cail):
    summary = build_corpus(CorpusConfig(cail=cail, out=tmp_path / "out"))
    assert summary["counts"] == {"test": 1, "dev": 1, "train": 1}
    assert summary["dropped"]["train"] == {
        "exact duplicate": 1, "test case": 2, "not JSON in UTF-8": 1,
    }  # fmt: skip
    assert summary["dropped"]["test"] == {"exact duplicate": 1}
    read = {"train": 5, "dev": 1, "test": 2}
    for split, count in read.items():
        assert count == summary["counts"][split] + sum(summary["dropped"][split].values())
    (case,) = read_cases(tmp_path / "out" / "train.jsonl")
    assert case.fact == FACT
    removed = (tmp_path / "out" / "removed.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(removed) == 4
    assert all(FACT[:20] not in line for line in removed)  # ids, no facts


def test_cases_that_break_a_rule_are_counted_by_its_name(tmp_path, cail):
    with open(cail / "train.json", "a", encoding="utf-8") as file:
        file.write(
            "\n" + cail_line("盗窃手机一部。") + "\n" + cail_line("上诉人赵某不服。" + FACT[30:])
        )
    dropped = build_corpus(CorpusConfig(cail=cail, out=tmp_path / "out"))["dropped"]["train"]
    assert (dropped["too short"], dropped["appeal"]) == (1, 1)


def test_filters_can_be_switched_off(tmp_path, cail):
    config = CorpusConfig(cail=cail, out=tmp_path / "out", near_duplicates=None, contamination=None)
    assert build_corpus(config)["counts"] == {"test": 2, "dev": 1, "train": 4}


def test_generated_cases_are_not_filtered(tmp_path):
    """They follow templates: every case resembles another."""
    config = CorpusConfig(out=tmp_path / "out", train=50, dev=5, test=5)
    assert build_corpus(config)["counts"] == {"test": 5, "dev": 5, "train": 50}


def test_judgments_are_split_by_document(tmp_path):
    ruling = "一、被告人甲某犯盗窃罪，判处拘役五个月。二、被告人乙某犯盗窃罪，判处拘役四个月。"
    founds = [
        f"{FACT}第{n}起，地点为{n * 977}号仓库，数量{n * 31}件，时间为{n}月。" * 2
        for n in range(30)
    ]
    rows = [json.dumps({"document": document(ruling, found=f"经审理查明，{f}")}) for f in founds]
    path = tmp_path / "judgments.jsonl"
    path.write_text("\n".join([*rows, "{"]), encoding="utf-8")
    config = CorpusConfig(
        judgments=path, out=tmp_path / "out", near_duplicates=None, contamination=None
    )
    summary = build_corpus(config)
    assert sum(summary["counts"].values()) == 60
    assert summary["dropped"]["reading"] == {"not a JSON object with a document": 1}
    sets = {
        split: {
            case.id.rsplit("-", 1)[0] for case in read_cases(tmp_path / "out" / f"{split}.jsonl")
        }
        for split in ("train", "dev", "test")
    }
    assert not sets["train"] & (sets["dev"] | sets["test"])
    again = build_corpus(
        config.model_copy(update={"out": tmp_path / "again", "near_duplicates": 0.9})
    )
    assert all(count % 2 == 0 for count in again["counts"].values())  # both defendants, or none


def test_two_sources_are_refused(tmp_path, monkeypatch):
    given = ["corpus", "--cail", "a", "--judgments", "b", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit, match="not both"):
        main()
    assert not (tmp_path / "out").exists()
