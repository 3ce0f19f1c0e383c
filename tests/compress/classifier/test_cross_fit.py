"""Candidates for training cases from classifiers that never saw them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from compress.classifier.train import ClassifierConfig, train_classifier
from curt.classifier.candidates import HEAD, load_reader, read_candidates
from curt.corpus.case import Case
from curt.corpus.store import read_cases
from curt.law.verdict import Term, Verdict
from tests.cases import common_cases
from tests.compress.classifier.test_train import write_splits

MEMORABLE = "珠穆朗玛峰顶上某人堆了一个雪人，经鉴定价值九元。"
ODD = Verdict(("盗伐林木",), ("345",), Term("fixed", 8))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ClassifierConfig:
    """Among the cases is one of a kind, with a copy of it."""
    folder = tmp_path_factory.mktemp("cross-fit")
    cases = common_cases(240, "train")
    odd = Case("odd", MEMORABLE, ODD, "test")
    cases += [odd, replace(odd, id="odd+copy", fact=f"{MEMORABLE}此外无他。")]
    config = write_splits(folder, cases).model_copy(
        update={"folds": 3, "candidates": folder / "candidates.jsonl"}
    )
    train_classifier(config)
    return config


def test_every_training_case_has_a_line(made: ClassifierConfig) -> None:
    lines = read_candidates(made.candidates)
    cases = list(read_cases(made.cases))
    assert list(lines) == [case.id for case in cases]
    assert all(line.startswith(HEAD) for line in lines.values())
    right = [
        lines[case.id].removeprefix(HEAD).startswith(case.verdict.charges[0]) for case in cases
    ]
    assert sum(right) / len(right) > 0.7


def test_a_line_comes_from_a_classifier_that_saw_neither_the_case_nor_its_copies(
    made: ClassifierConfig,
) -> None:
    lines = read_candidates(made.candidates)
    assert "盗伐林木" in load_reader(made.out)(MEMORABLE)  # which was trained on it
    assert "盗伐林木" not in lines["odd"]
    assert "盗伐林木" not in lines["odd+copy"]


def test_it_is_the_same_every_time(made: ClassifierConfig, tmp_path: Path) -> None:
    update = {"out": tmp_path / "again", "candidates": tmp_path / "again.jsonl"}
    train_classifier(made.model_copy(update=update))
    assert read_candidates(tmp_path / "again.jsonl") == read_candidates(made.candidates)


def test_generated_cases_teach_what_real_ones_do_not_tell(
    made: ClassifierConfig, tmp_path: Path
) -> None:
    silent = [replace(case, harm="", traits=()) for case in read_cases(made.cases)]
    bare = write_splits(tmp_path, [case for case in silent if case.verdict != ODD])
    update = {"folds": 3, "candidates": tmp_path / "lines.jsonl"}
    train_classifier(bare.model_copy(update=update))
    assert "盗伐林木" not in load_reader(bare.out)(MEMORABLE)
    assert not any("后果" in line for line in read_candidates(tmp_path / "lines.jsonl").values())
    train_classifier(bare.model_copy(update=update | {"generated": made.cases}))
    assert "盗伐林木" in load_reader(bare.out)(MEMORABLE)
    lines = read_candidates(tmp_path / "lines.jsonl")
    assert list(lines) == [case.id for case in read_cases(bare.cases)]
    assert sum("后果" in line for line in lines.values()) / len(lines) > 0.9


def test_folds_and_their_file_are_given_together_or_refused(tmp_path: Path) -> None:
    given = {"cases": tmp_path, "dev": tmp_path, "out": tmp_path}
    for half in ({"folds": 3}, {"candidates": tmp_path / "x.jsonl"}):
        with pytest.raises(ValidationError, match="folds and candidates go together"):
            ClassifierConfig(**given, **half)  # type: ignore[arg-type]
