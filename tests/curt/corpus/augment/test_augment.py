from __future__ import annotations

import json
import logging
import random
import re
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.__main__ import augment as augment_command
from curt.corpus.augment.command import AugmentConfig, augment
from curt.corpus.augment.distractors import (
    GENERAL,
    MOST,
    PARTICULAR,
    NoRoomError,
    add_distractors,
    find_joints,
    split_sentences,
)
from curt.corpus.generate.calculus import circumstances, offences
from curt.corpus.generate.generator import generate_cases
from curt.corpus.read.cail import read_records
from curt.corpus.read.extract import extract_reasoning
from curt.corpus.store import read_cases, write_cases
from curt.files import sha256, write_json
from tests.train.judge.judge_server import Reply, judge_server

# Words by which each claim says that it does not count.
DOES_NOT_COUNT = re.compile(
    r"与本案(?:定罪量刑)?无关|不予认定|不予采纳|另案处理|另一民事案件|不计入本案"
)


@pytest.fixture(scope="module")
def cases():
    return list(generate_cases(150, "augment"))


def distract(case, seed=1, count=2):
    return add_distractors(case, random.Random(seed), count)


def added_sentences(before: str, after: str) -> list[str]:
    """The sentences that are new; asserts that the rest stands as it stood."""
    kept = split_sentences(before)
    new = []
    for sentence in split_sentences(after):
        if kept and sentence == kept[0]:
            kept.pop(0)
        else:
            new.append(sentence)
    assert kept == []
    return new


# --- distractors -----------------------------------------------------------------------------


def test_distractors_stand_between_the_sentences_and_say_that_they_do_not_count(cases):
    for case in cases:
        for count in (1, 2, 3):
            new = added_sentences(case.fact, distract(case, case.id, count).fact)
            assert len(new) == count
            assert all(DOES_NOT_COUNT.search(sentence) for sentence in new)
            assert all(re.search("[0-9]", sentence) for sentence in new)


def test_verdict_reasonings_and_evidence_stay(cases):
    for case in cases:
        more = distract(case)
        assert (more.verdict, more.reasonings) == (case.verdict, case.reasonings)
        assert extract_reasoning(more.fact) == extract_reasoning(case.fact)
        assert more.id == f"{case.id}+distractors"
        assert more.source == "generated+distractors"
        assert more.traits == (*case.traits, "distractors")


def test_no_distractor_names_a_person_or_an_amount_of_the_case(cases):
    for case in cases:
        names = set(re.findall(r"([一-鿿]某)(?![市区县镇公])", case.fact))
        amounts = set(re.findall(r"([0-9]+)(?:元|克)", case.fact))
        for sentence in added_sentences(case.fact, distract(case, count=3).fact):
            assert not {n for n in names if n in sentence}
            assert not amounts & set(re.findall(r"([0-9]+)(?:元|克)", sentence))


def test_the_same_draws_give_the_same_and_others_do_not(cases):
    assert [distract(c, 5) for c in cases] == [distract(c, 5) for c in cases]
    assert [distract(c, 5).fact for c in cases] != [distract(c, 6).fact for c in cases]


def test_claims_that_fit_the_charge_come_where_nothing_contradicts_them(cases):
    thefts = [c for c in generate_cases(600, "thefts") if c.verdict.charges == ("盗窃",)]
    told = {c.id: distract(c, c.id).fact for c in thefts}
    assert any("被害人另称" in fact or "最初报称" in fact for fact in told.values())
    for case in thefts:
        if "未遂" in case.traits:
            assert not re.search("被害人另称|最初报称", told[case.id])
        if {"未成年", "老年"} & set(case.traits):
            assert "合法借款" not in told[case.id]


def test_claims_speak_of_known_charges_and_traits_and_of_no_circumstance():
    for claim in (*GENERAL, *PARTICULAR):
        assert claim.charges <= offences().keys()
        assert claim.not_with <= circumstances().keys()
        assert DOES_NOT_COUNT.search(claim.text)
        assert not re.search(
            "自首|投案|谅解|退赔|退缴|累犯|判处|立功|坦白|供述|从犯|未遂", claim.text
        )
        assert claim.text[-1] not in "。；"
    assert all(not claim.charges and not claim.not_with for claim in GENERAL)


def test_a_case_of_unknown_traits_takes_neutral_claims_alone(cases):
    starts = [claim.text.split("{")[0] for claim in PARTICULAR if not claim.text.startswith("{")]
    for case in cases:
        real = type(case)(**{**{f: getattr(case, f) for f in case.__slots__}, "source": "cail2018"})
        for sentence in added_sentences(real.fact, distract(real, case.id, 3).fact):
            assert not any(sentence.startswith(start) for start in starts)


@pytest.mark.parametrize("count", [0, -1, MOST + 1])
def test_a_count_out_of_range_is_refused(cases, count):
    with pytest.raises(ValueError, match="use 1 to"):
        distract(cases[0], count=count)


def test_claims_that_would_change_the_evidence_find_no_room(cases):
    """an accident without a vehicle: any 车 would make blame of it"""
    fact = "经查，2015年发生事故，张某承担主要责任"
    real = type(cases[0])("a", fact, cases[0].verdict, "cail2018")
    for seed in range(40):
        assert "车" not in distract(real, seed, 3).fact
    assert issubclass(NoRoomError, ValueError)


@pytest.mark.parametrize(
    ("fact", "pieces"),
    [
        ("甲打乙。丙劝。", ["甲打乙。", "丙劝。"]),
        ("甲说：“走。去。”乙走。", ["甲说：“走。去。”乙走。"]),
        ("甲（乙。丙）来。丁去", ["甲（乙。丙）来。", "丁去"]),
        ("甲）打。乙来。", ["甲）打。", "乙来。"]),
        ("窃得3.5万元。", ["窃得3.5万元。"]),
        ("", []),
    ],
)
def test_sentences_end_outside_quotes_and_brackets(fact, pieces):
    assert split_sentences(fact) == pieces


@pytest.mark.parametrize(
    ("fact", "joints"),
    [
        ("甲打乙。丙某劝。", [4, 8]),
        ("甲打乙。左眼部挫伤。", [10]),
        ("甲打乙。其后逃离。", [9]),
        ("甲打乙。随后逃离。", [9]),
        ("甲打乙。3月5日又打。", [11]),
        ("甲打乙。经鉴定为轻伤。", [11]),
    ],
)
def test_nothing_comes_between_a_sentence_and_one_that_leans_on_it(fact, joints):
    assert find_joints(fact) == joints


def test_a_year_does_not_come_before_a_relative_date():
    fact = "甲打乙。丙某劝。丁某于同年5月到案。戊某作证。"
    assert find_joints(fact) == [4, 8, 18, 23]
    assert find_joints(fact, dated=True) == [18, 23]


@given(text=st.text(alphabet="甲乙。“”（）其3", max_size=30))
def test_sentences_joined_are_the_fact(text):
    assert "".join(split_sentences(text)) == text
    assert find_joints(text)[-1] == len(text)


def test_real_facts_stand_as_they_stood(real_cases: Path):
    with open(real_cases / "dev.json", encoding="utf-8") as file:
        real = [next(read_records(json.loads(line))) for line in islice(file, 200)]
    for case in real:
        more = distract(case, case.id)
        whole = case.fact if case.fact[-1] in "。！？" else f"{case.fact}。"
        assert len(added_sentences(whole, more.fact)) == 2
        assert extract_reasoning(more.fact) == extract_reasoning(case.fact)
        assert more.source == "cail2018+distractors"


# --- a corpus --------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    for split, count in (("train", 60), ("dev", 5), ("test", 7)):
        write_cases(folder / f"{split}.jsonl", generate_cases(count, f"a-{split}"))
    write_json(folder / "corpus.json", {"counts": {"train": 60, "dev": 5, "test": 7}})
    return folder


def configure(corpus: Path, **changes) -> AugmentConfig:
    return AugmentConfig(**{"corpus": corpus, "out": corpus.with_name("more")} | changes)


def test_a_corpus_grows_and_its_test_sets_stay(corpus):
    config = configure(corpus, distractor_share=1.0, paraphrase_share=1.0)
    summary = augment(config)
    train = list(read_cases(config.out / "train.jsonl"))
    refused = sum(summary["refused"].values())
    assert summary["kinds"]["original"] == summary["kinds"]["distractors"] == 60
    assert summary["kinds"]["local"] == 60 - refused
    assert len(train) == summary["counts"]["train"] == 180 - refused
    assert len({case.id for case in train}) == len(train)
    assert list(read_cases(corpus / "train.jsonl")) == [c for c in train if "+" not in c.id]
    for split in ("dev", "test"):
        file = f"{split}.jsonl"
        assert (config.out / file).read_bytes() == (corpus / file).read_bytes()
    assert (summary["counts"]["dev"], summary["counts"]["test"]) == (5, 7)


def test_new_cases_have_the_verdict_and_reasonings_of_their_original(corpus):
    config = configure(corpus, distractor_share=1.0, paraphrase_share=1.0)
    augment(config)
    originals = {case.id: case for case in read_cases(corpus / "train.jsonl")}
    new = [c for c in read_cases(config.out / "train.jsonl") if "+" in c.id]
    for case in new:
        original = originals[case.id.partition("+")[0]]
        assert (case.verdict, case.reasonings) == (original.verdict, original.reasonings)
        assert case.fact != original.fact
    assert {case.source for case in new} == {"generated+distractors", "generated+local"}
    assert {case.traits[-1] for case in new} == {"distractors", "paraphrase"}


def test_the_summary_tells_settings_parent_and_files(corpus):
    config = configure(corpus)
    summary = augment(config)
    assert json.loads((config.out / "corpus.json").read_text(encoding="utf-8")) == summary
    assert summary["parent"]["corpus_sha256"] == sha256(corpus / "corpus.json")
    assert summary["parent"]["sets_sha256"]["dev"] == summary["files"]["dev.jsonl"]["sha256"]
    assert summary["config"]["distractors"] == 2
    assert {file.name for file in config.out.iterdir()} == {*summary["files"], "corpus.json"}


def test_the_same_seed_writes_the_same_and_shares_are_kept(corpus):
    one, two = configure(corpus), configure(corpus, out=corpus.with_name("two"))
    first, second = augment(one), augment(two)
    assert first["files"] == second["files"]
    assert 15 <= first["kinds"]["distractors"] <= 45
    other = augment(configure(corpus, seed=8))
    assert other["files"]["train.jsonl"] != first["files"]["train.jsonl"]


def test_nothing_asked_for_is_the_corpus_again(corpus):
    config = configure(corpus, distractor_share=0.0, paraphrases=[])
    assert augment(config)["kinds"] == {"original": 60}
    assert (config.out / "train.jsonl").read_bytes() == (corpus / "train.jsonl").read_bytes()


def test_tables_stay_tables(corpus):
    write_cases(corpus / "train.parquet", read_cases(corpus / "train.jsonl"))
    (corpus / "train.jsonl").unlink()
    config = configure(corpus)
    summary = augment(config)
    assert len(list(read_cases(config.out / "train.parquet"))) == summary["counts"]["train"]


def test_a_model_paraphrases_and_what_it_gets_wrong_is_counted(corpus):
    def behaviour(body, number):
        text = body["messages"][1]["content"]
        return Reply(f"经查，{text}" if number % 2 else f"经查，{text}另有99元。")

    with judge_server(behaviour) as server:
        config = configure(
            corpus,
            distractor_share=0.0,
            paraphrases=["local", "direct"],
            paraphrase_share=1.0,
            endpoint={"base_url": server.url, "model": "m", "cache": corpus.with_name("c.sqlite")},
        )
        summary = augment(config)
        asked = len(server.requests)
        again = augment(config)
        assert len(server.requests) == asked == 60
    assert summary["kinds"]["direct"] == again["kinds"]["direct"] == 30
    assert summary["refused"]["direct: figures"] == 30


def test_a_model_that_does_not_answer_leaves_no_folder_and_logs_no_fact(corpus, caplog):
    caplog.set_level(logging.INFO)
    with judge_server(lambda *_: Reply(status=500, body=b"{}")) as server:
        arguments = [
            "--corpus", str(corpus), "--out", str(corpus.with_name("more")),
            "--paraphrases", '["direct"]', "--paraphrase_share", "1.0",
            "--endpoint.base_url", server.url, "--endpoint.model", "m", "--endpoint.retries", "0",
        ]  # fmt: skip
        with pytest.raises(SystemExit, match=r"failed_status_500.*same command again") as stopped:
            augment_command(arguments)
    assert [path.name for path in corpus.parent.iterdir()] == ["corpus"]
    assert "被告人" not in f"{stopped.value} {caplog.text}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": "corpus"}, "give another folder"),
        ({"paraphrases": ["back"]}, "need an endpoint"),
        ({"paraphrases": ["local", "local"]}, "name each way once"),
        ({"distractors": 9}, "less than or equal to 6"),
    ],
)
def test_settings_that_make_no_sense_are_refused(corpus, changes, message):
    if "out" in changes:
        changes = {"out": corpus}
    with pytest.raises(ValueError, match=message):
        configure(corpus, **changes)


@pytest.mark.parametrize("lacking", ["corpus.json", "dev.jsonl"])
def test_a_folder_that_is_no_corpus_is_refused(corpus, lacking):
    (corpus / lacking).unlink()
    with pytest.raises(ValueError, match=lacking):
        augment(configure(corpus))
    assert not corpus.with_name("more").exists()


def test_an_augmented_corpus_is_not_augmented_again(corpus):
    first = configure(corpus)
    augment(first)
    with pytest.raises(ValueError, match=r"augmented already: give .*corpus"):
        augment(configure(first.out, out=corpus.with_name("third")))


def test_what_augmentation_marks_is_known_to_evaluation():
    from curt.corpus.augment import command as augment
    from curt.corpus.augment import distractors as augment_distractors
    from curt.corpus.case import AUGMENTATIONS

    assert {augment.TRAIT, augment_distractors.TRAIT} == AUGMENTATIONS
