from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from compress.prompts import sample_prompts
from curt.corpus.store import read_cases
from curt.dialogue import THINK_END, THINK_START, Prompts, parse_completion
from tests.compress.onnx.exports import write_cases


def test_no_case_names_the_remedy(micro_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(micro_model)
    asked = Prompts(tokenizer, 200)
    with pytest.raises(ValueError, match="name another file"):
        sample_prompts([], asked, 64, 7, seed=3)


def test_prompts_are_seeded_and_run_through_the_budgets(micro_model: Path, tmp_path: Path) -> None:
    cases = list(read_cases(write_cases(tmp_path / "cases.jsonl", 12)))
    tokenizer = AutoTokenizer.from_pretrained(micro_model)
    asked = Prompts(tokenizer, 200)
    prompts = sample_prompts(cases, asked, 64, 7, seed=3)
    assert prompts == sample_prompts(cases, asked, 64, 7, seed=3)
    assert len(sample_prompts(cases, asked, 64, 99, seed=3)) == 12
    texts = [tokenizer.decode(ids) for ids in prompts]
    assert all(text.endswith(THINK_START) for text in texts)
    stated = [int(text.split("思考预算：")[1].split("<")[0]) for text in texts]
    assert stated == [0, 8, 16, 24, 32, 48, 64]


def test_examples_hold_a_readable_completion(micro_model: Path, tmp_path: Path) -> None:
    cases = list(read_cases(write_cases(tmp_path / "cases.jsonl", 1)))
    tokenizer = AutoTokenizer.from_pretrained(micro_model)
    asked = Prompts(tokenizer, 200)
    [ids] = sample_prompts(cases, asked, 64, 1, seed=0, with_completion=True)
    completion = parse_completion(tokenizer.decode(ids).partition(THINK_START)[2])
    assert completion.verdict == cases[0].verdict
    assert completion.thinking == "现金8000元。"
    assert THINK_END not in completion.thinking
