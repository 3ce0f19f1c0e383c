"""Reasoning that a model wrote itself: what is kept, and how a stopped run goes on."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from curt.artifact import READER
from curt.classifier.candidates import load_reader
from curt.corpus.build.pipeline import CorpusConfig, build_corpus
from curt.corpus.case import OWN, Case
from curt.corpus.store import find_cases, read_cases
from curt.dialogue import render_completion
from curt.files import write_rows
from curt.law.verdict import Term, Verdict
from tests.compress.classifier.test_train import make_fallback
from tests.compress.onnx.exports import make_untied_model
from train import star
from train.data.trajectories import read_rollouts
from train.data.verification import VerificationSettings
from train.loop.sampler import sample_completions
from train.star import NO_REASONING, StarConfig, collect_reasonings

THEFT = Verdict(("盗窃",), ("264",), Term("fixed", 9))
CASE = Case("c-1", "被告人张某窃得财物价值36000元。", THEFT, "test")
WORKED = "36千5+18=23；从犯3未遂3；23×40%=9"
RIGHT = render_completion(WORKED, THEFT)
SLIP = render_completion("36千5+18=24；从犯3未遂3；24×40%=9", THEFT)
WRONG = render_completion(WORKED, Verdict(("诈骗",), ("266",), Term("fixed", 9)))
BARE = render_completion("", THEFT)


@pytest.mark.parametrize(
    ("texts", "kept"),
    [
        ([WRONG, SLIP, BARE, RIGHT], WORKED),
        ([WRONG, SLIP, "没有结论"], ""),
        ([BARE], ""),
        ([], ""),
    ],
)
def test_the_first_reasoning_that_leads_to_the_courts_verdict_is_kept(
    texts: list[str], kept: str
) -> None:
    settings = VerificationSettings(checks=StarConfig.model_fields["checks"].default)
    assert star._first_accepted(texts, CASE, settings) == kept


@pytest.fixture
def config(tmp_path: Path, micro_model: Path) -> StarConfig:
    corpus = tmp_path / "corpus"
    build_corpus(CorpusConfig(out=corpus, train=12, dev=4, test=4))
    return StarConfig(
        model=micro_model, corpus=corpus, out=tmp_path / "own", samples=2, budget=8, batch=8
    )


def test_a_model_that_knows_nothing_gives_no_case_a_reasoning(config: StarConfig) -> None:
    summary = collect_reasonings(config)
    before = list(read_cases(find_cases(config.corpus, "train")))
    after = list(read_cases(find_cases(config.out, "train")))
    assert [case.id for case in after] == [case.id for case in before]
    assert not any(case.reasonings for case in after)
    assert summary["reasonings"][NO_REASONING] == len(after)
    card = (config.out / "card.html").read_text(encoding="utf-8")
    assert f"0 of {len(after):,} training cases carry a reasoning" in card
    assert find_cases(config.out, "dev").read_bytes() == (config.corpus / "dev.jsonl").read_bytes()


def test_generated_cases_join_with_their_own_reasoning(config: StarConfig) -> None:
    file = find_cases(config.corpus, "train")
    beside = {"generated": file, "most_generated": 3}
    collect_reasonings(config.model_copy(update=beside))
    after = list(read_cases(find_cases(config.out, "train")))
    assert after[-3:] == list(read_cases(file, 3))
    assert not any(case.reasonings for case in after[:-3])
    assert "beside them" in (config.out / "card.html").read_text(encoding="utf-8")


def test_a_stopped_run_asks_only_what_is_left(
    config: StarConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.model_copy(update={"batch": 4})
    asked: list[int] = []

    def sample(model: Any, prompts: list[list[int]], **options: Any) -> list[list[int]]:
        asked.append(len(prompts))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return sample_completions(model, prompts, **options)

    monkeypatch.setattr("train.loop.sampler.sample_completions", sample)
    with pytest.raises(KeyboardInterrupt):
        collect_reasonings(config)
    with pytest.raises(ValueError, match="unfinished run with other temperature"):
        collect_reasonings(config.model_copy(update={"temperature": 0.5}))
    collect_reasonings(config)
    assert asked == [8] * 4  # twelve cases, four at a time, the second four twice

    unbroken = config.model_copy(update={"out": tmp_path / "unbroken"})
    collect_reasonings(unbroken)
    rows, others = (
        read_rollouts(c.out.with_name(f"{c.out.name}.run") / "trajectories").to_pylist()
        for c in (config, unbroken)
    )
    assert [row["token_ids"] for row in rows] == [row["token_ids"] for row in others]
    assert len({row["case_id"] for row in rows}) == 12


def test_accepted_reasoning_goes_into_the_corpus(
    config: StarConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(star, "_first_accepted", lambda texts, case, settings: WORKED)
    summary = collect_reasonings(config.model_copy(update={"cases": 5}))
    assert summary["reasonings"][OWN] == 5
    kept = list(read_cases(find_cases(config.out, "train")))
    assert [case.reasonings for case in kept] == [{OWN: WORKED}] * 5 + [{}] * 7


def test_a_case_whose_reader_was_wrong_is_asked_with_the_courts_charge(
    config: StarConfig, micro_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_untied_model(
        tmp_path / "read", micro_model, reader=make_fallback(tmp_path / "fallback")
    )
    cases = list(read_cases(find_cases(config.corpus, "train")))
    candidates = tmp_path / "candidates.jsonl"
    wrong = "参考：没有的罪10；1；8个月"
    write_rows(candidates, [{"id": case.id, "text": wrong} for case in cases[:6]])
    tokenizer = AutoTokenizer.from_pretrained(model)

    def follow(_: object, prompts: list[list[int]], **__: object) -> list[list[int]]:
        """What a model writes whose verdict is always the line's first charge."""
        lines = [re.findall(r"参考：(\D+)\d", tokenizer.decode(ids)) for ids in prompts]
        answers = [render_completion("想", replace(THEFT, charges=(line[0],))) for line in lines]
        return [[*tokenizer.encode(answer), 0] for answer in answers]

    monkeypatch.setattr("train.loop.sampler.sample_completions", follow)
    once = {"model": model, "candidates": candidates, "cases": 6, "checks": ("charge",)}
    summary = collect_reasonings(config.model_copy(update=once | {"rationalize": False}))
    assert summary["reasonings"][OWN] == 0
    summary = collect_reasonings(config.model_copy(update=once | {"out": tmp_path / "again"}))
    known = load_reader(model / READER).classifier.decider.labels.charges
    assert summary["reasonings"][OWN] == sum(
        set(c.verdict.charges) <= set(known) for c in cases[:6]
    )
    assert summary["reasonings"][OWN] > 0
