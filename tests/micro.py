"""A micro model folder with random weights: every stage can load it, none learns from it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig

from curt.artifact import write_artifact
from curt.dialogue import SYSTEM, render_answer
from curt.law.verdict import Term, Verdict
from train.warm_start.scratch import ModelSize, build_model
from train.warm_start.tokenizer import train_tokenizer

FACTS = (
    "2020年3月5日，被告人张某在某市某超市窃取他人现金8000元，归案后如实供述，认罪认罚。",
    "被告人李某醉酒后驾驶小型轿车，经鉴定其血液中乙醇含量为150mg/100ml。",
)


def make_micro_model(folder: Path, *, seed: int = 0) -> Path:
    """Write a model folder (two layers, about 0.5 M parameters) with a valid manifest."""
    torch.manual_seed(seed)
    verdict = Verdict(("盗窃",), ("264",), Term("fixed", 8), 8000)
    tokenizer = train_tokenizer([SYSTEM, *FACTS, render_answer(verdict)] * 4, vocab_size=400)
    shape = ModelSize(
        hidden=128,
        layers=2,
        heads=2,
        kv_heads=1,
        head_dim=64,
        ffn=256,
        context=512,
        rope_theta=50_000.0,  # not the default, so that an export that loses it is caught
    )
    model = build_model(shape, tokenizer)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    describe = {
        "format": "hf",
        "precision": "fp32",
        "stage": "test",
        "base": "micro",
        "max_fact_tokens": 200,
        "max_thinking_tokens": 64,
    }
    with write_artifact(folder, describe) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder
