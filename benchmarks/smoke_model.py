"""A pair of exports that `benchmarks.smoke` makes for itself where no demo run is at hand.

The weights are random, in the demo model's shape: what a token costs does not depend on what a
model has learnt. Its answers say nothing, so nothing is judged by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compress.onnx.export import ExportOrtConfig, export_ort
from curt.artifact import write_artifact
from curt.corpus.build.pipeline import CorpusConfig, build_corpus
from curt.corpus.store import read_cases

CASES = 64
HIDDEN, HEADS, KV_HEADS, FFN, VOCAB = 192, 3, 1, 576, 2400
MAX_KL = 100.0  # random weights have nothing to lose


@dataclass(frozen=True, slots=True)
class Subjects:
    """What is measured. The last three are None where there is nothing to compare with."""

    name: str
    served: Path
    cases: Path
    fp32: Path | None = None
    penalised: Path | None = None
    warm_start: Path | None = None


def find_demo(run: Path) -> Subjects | None:
    """What a demo run left, or None when its served export or its cases are not there."""
    served, cases = run / "ort-w8a8", run / "corpus" / "test.jsonl"
    if not (served / "manifest.json").is_file() or not cases.is_file():
        return None
    rest = {
        name: folder if (folder / "manifest.json").is_file() else None
        for name, folder in (
            ("fp32", run / "ort-fp32"),
            ("penalised", run / "grpo-default"),
            ("warm_start", run / "warm-start"),
        )
    }
    return Subjects("demo", served, cases, **rest)


def make_subjects(folder: Path) -> Subjects:
    """Write a corpus, a random model and its exports into `folder`: about half a minute."""
    import torch
    from transformers import GenerationConfig

    from train.warm_start.scratch import build_model
    from train.warm_start.shape import Shape
    from train.warm_start.tokenizer import corpus_texts, train_tokenizer

    build_corpus(
        CorpusConfig(train=CASES * 4, dev=CASES, test=CASES, seed=7, out=folder / "corpus")
    )
    cases = list(read_cases(folder / "corpus" / "train.jsonl"))
    tokenizer = train_tokenizer(corpus_texts(cases), VOCAB)
    torch.manual_seed(0)
    model = build_model(
        Shape(hidden=HIDDEN, heads=HEADS, kv_heads=KV_HEADS, ffn=FFN, vocab=VOCAB), tokenizer
    )
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    describe = {
        "format": "hf",
        "precision": "fp32",
        "stage": "random",
        "base": "the demo's shape, random weights: speed only",
        "max_fact_tokens": 200,
        "max_thinking_tokens": 128,
    }
    with write_artifact(folder / "model", describe) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    test = folder / "corpus" / "test.jsonl"
    for precision in ("w8a8", "fp32"):
        export_ort(
            ExportOrtConfig(
                model=folder / "model",
                out=folder / precision,
                precision=precision,
                cases=test,
                prompts=4,
                continuation_tokens=16,
                max_kl=MAX_KL,
            )
        )
    return Subjects("made", folder / "w8a8", test, folder / "fp32")
