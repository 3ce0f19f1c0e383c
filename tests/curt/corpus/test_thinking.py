from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from curt.corpus.case import Case
from curt.corpus.thinking import CUT, NONE, draw_thinking
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
