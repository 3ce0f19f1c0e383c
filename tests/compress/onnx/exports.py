"""Small parents and their exports, made once per session and shared by the tests of exports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, Qwen3ForCausalLM

from compress.onnx.export import ExportOrtConfig, export_ort
from compress.onnx.speculation import add_likeliest
from curt.artifact import load_manifest, write_artifact
from curt.corpus.case import Case
from curt.dialogue import THINK_END, THINK_START
from curt.law.verdict import Term, Verdict
from tests.micro import FACTS


def write_cases(path: Path, count: int = 6) -> Path:
    """A corpus file of a few cases with the micro model's facts."""
    verdict = Verdict(("盗窃",), ("264",), Term("fixed", 8), 8000)
    rows = [
        Case(f"case-{i}", FACTS[i % 2], verdict, "test", {"full": "现金8000元。"}).to_json()
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def make_untied_model(
    folder: Path,
    micro: Path,
    *,
    chain: Mapping[int, int] | None = None,
    seed: int = 1,
    reader: Path | None = None,
) -> Path:
    """A model folder whose output layer is its own, so that it does not echo its last token.

    With `chain`, every layer passes its input through and token `t` is always followed by
    `chain[t]`; without, weights are random and so is what it writes, special tokens aside.
    """
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(micro)
    config.tie_word_embeddings = False
    model = Qwen3ForCausalLM(config)
    tokenizer = AutoTokenizer.from_pretrained(micro)
    if chain is None:
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                torch.nn.init.normal_(weight, std=0.15)
            elif "layernorm" in name:  # AWQ folds factors in here: ones would hide a slip
                torch.nn.init.uniform_(weight, 0.2, 2.0)
        with torch.no_grad():
            unsaid = tokenizer.convert_tokens_to_ids([THINK_START, THINK_END])
            model.lm_head.weight[[*tokenizer.all_special_ids, *unsaid]] = 0.0
            model.lm_head.weight[len(tokenizer) :] = 0.0
    else:
        with torch.no_grad():
            torch.nn.init.normal_(model.model.embed_tokens.weight)
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            model.lm_head.weight.zero_()
            for token, following in chain.items():
                model.lm_head.weight[following] += model.model.embed_tokens.weight[token]
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    limits = load_manifest(micro)
    describe = {
        "format": "hf",
        "precision": "fp32",
        "stage": "test",
        "base": "untied",
        "max_fact_tokens": limits.max_fact_tokens - (20 if reader else 0),  # for its line
        "max_thinking_tokens": limits.max_thinking_tokens,
    }
    with write_artifact(folder, describe, reader=reader) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder


def export_config(model: Path, out: Path, **settings: object) -> ExportOrtConfig:
    """Settings of an export that takes seconds, its cases written beside `out`."""
    cases = write_cases(out.parent / "cases.jsonl")
    quick = {"cases": cases, "calibration": cases, "calibration_cases": 2, "prompts": 2,
             "continuation_tokens": 8}  # fmt: skip
    return ExportOrtConfig.model_validate({"model": model, "out": out, **quick, **settings})


def export(model: Path, out: Path, precision: str = "fp32", *, likeliest: bool = False) -> Path:
    """The ONNX Runtime artifact of a model folder."""
    export_ort(
        export_config(
            model, out, precision=precision, tell_likeliest=likeliest, calibration_cases=4,
            prompts=4, continuation_tokens=24, max_kl=1.0,
        )
    )  # fmt: skip
    return out


def tell_likeliest(artifact: Path, out: Path) -> Path:
    """A copy of an export whose graph tells the likeliest tokens."""
    manifest = load_manifest(artifact, expect="ort-genai")
    describe = manifest.model_dump(exclude={"tools", "created", "files"})
    with write_artifact(out, describe) as folder:
        for name in manifest.files:
            shutil.copyfile(artifact / name, folder / name)
        add_likeliest(folder / "model.onnx")
    return out
