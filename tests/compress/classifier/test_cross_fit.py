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


def test_it_is_the_same_every_time_and_weaker_with_a_smaller_share(
    made: ClassifierConfig, tmp_path: Path
) -> None:
    def fit(name: str, **changes: float) -> dict[str, str]:
        update = {"out": tmp_path / name, "candidates": tmp_path / f"{name}.jsonl", **changes}
        train_classifier(made.model_copy(update=update))
        return read_candidates(tmp_path / f"{name}.jsonl")

    cases = list(read_cases(made.cases))

    def count_right(lines: dict[str, str]) -> int:
        return sum(lines[c.id].removeprefix(HEAD).startswith(c.verdict.charges[0]) for c in cases)

    whole = read_candidates(made.candidates)
    assert fit("again") == whole
    assert count_right(fit("weak", fold_share=0.08)) < count_right(whole)


def test_folds_and_their_file_are_given_together_or_refused(tmp_path: Path) -> None:
    given = {"cases": tmp_path, "dev": tmp_path, "out": tmp_path}
    for half in ({"folds": 3}, {"candidates": tmp_path / "x.jsonl"}):
        with pytest.raises(ValidationError, match="folds and candidates go together"):
            ClassifierConfig(**given, **half)  # type: ignore[arg-type]
