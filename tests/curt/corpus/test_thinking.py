from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from curt.corpus.case import Case
from curt.corpus.thinking import CUT, NONE, draw_thinking
from curt.dialogue import encode
from curt.law.verdict import Term, Verdict


def test_budgets_hold_the_thinking_they_are_stated_with(micro_model: Path):
    tokenizer = AutoTokenizer.from_pretrained(micro_model)
    verdict = Verdict(("盗窃",), ("264",), Term("fixed", 9))
    reasonings = {"full": "现金8000元，数额较大，基准8；累犯+10，合计+10；8×110%=9。"}
    case = Case("x", "被告人窃取现金8000元。", verdict, "test", reasonings)
    rng = random.Random(0)
    for name, low in (("full", 1), (NONE, 0), (CUT, 1)):
        for _ in range(20):
            ids, budget = draw_thinking(rng, case, tokenizer, {name: 1.0}, 64)
            assert low <= len(ids) <= 64 if low else ids == []
            assert len(ids) <= budget
    silent = Case("y", case.fact, verdict, "test", {})
    drawn = [draw_thinking(rng, silent, tokenizer, {NONE: 0.1, "full": 1.0}, 64) for _ in range(20)]
    assert drawn == [([], 0)] * 20
    with pytest.raises(ValueError, match="give none a weight"):
        draw_thinking(rng, case, tokenizer, {"terse": 1.0}, 64)


def test_a_budget_drawn_first_gets_the_fullest_reasoning_that_fits_it(micro_model: Path):
    tokenizer = AutoTokenizer.from_pretrained(micro_model)
    verdict = Verdict(("盗窃",), ("264",), Term("fixed", 9))
    texts = {
        "full": "数额较大，基准刑八个月，累犯从重。" * 2,
        "mini": "8；9",
        "gap": "数额较大，基准刑",
    }
    case = Case("x", "被告人窃取现金8000元。", verdict, "test", texts)
    lengths = {name: len(encode(tokenizer, text)) for name, text in texts.items()}
    assert lengths["mini"] < 8 < lengths["gap"] < 24 < lengths["full"] <= 96
    rng = random.Random(0)
    weights = {"full": 0.5, "mini": 0.1, "gap": 0.2, NONE: 0.1, CUT: 0.1}

    def draw(share: float) -> list[tuple[list[int], int]]:
        return [draw_thinking(rng, case, tokenizer, weights, 96, share) for _ in range(300)]

    drawn = draw(1.0)
    assert {budget for _, budget in drawn} == {0, 8, 16, 24, 32, 48, 64, 96}
    for ids, budget in drawn:
        fitting = [lengths[n] for n in ("full", "mini") if lengths[n] <= budget]
        assert len(ids) == max(fitting, default=0)
    short = [budget for ids, budget in draw(0.0) if len(ids) == lengths["mini"]]
    assert max(short) == 96  # as ever: a budget that fits the reasoning
