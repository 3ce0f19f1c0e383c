"""Measure one artifact after another; what is measured once is kept under its content's hash."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from compress.compare.rows import Closeness, Identity, Quality
from compress.compare.weights import folder_bytes, weight_bytes
from compress.onnx.parity import measure_parity
from curt.artifact import MANIFEST, load_manifest
from curt.corpus.case import Case
from curt.dialogue import ParseFailure, parse_completion
from curt.engines import Engine
from curt.evaluate import EvaluateConfig, run_budget, score_outcomes
from curt.files import sha256, write_json
from curt.law.verdict import Verdict

log = logging.getLogger(__name__)

# Raise with any change to what is measured: older results are then measured again.
MEASURE_VERSION = 1

T = TypeVar("T")


class Store:
    """Results in a folder, each under a hash of everything it depends on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def remember(
        self, kind: str, key: Sequence[object], shape: type[T] | Any, measure: Callable[[], T]
    ) -> T:
        """The stored result for a key, or a new one, measured and stored.

        A stored result that does not read back as `shape` is measured again.
        """
        text = json.dumps([MEASURE_VERSION, kind, *key], default=str)
        path = self._folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        adapter: TypeAdapter[T] = TypeAdapter(shape)
        if path.is_file():
            try:
                return adapter.validate_json(path.read_bytes())
            except ValidationError:
                log.warning("%s is not readable: measuring again", path)
        result = measure()
        write_json(path, adapter.dump_python(result, mode="json"))
        return result


def identify(folder: Path, parent: Path) -> Identity:
    """Verify a folder, file by file, and describe it. Raises ArtifactError on an altered one."""
    manifest = load_manifest(folder)
    origin = manifest.parent
    return Identity(
        name=folder.resolve().name,
        folder=str(folder),
        manifest_sha256=sha256(folder / MANIFEST),
        format=manifest.format,
        precision=manifest.precision,
        stage=manifest.stage,
        made_from=origin.path if origin else manifest.base,
        of_this_parent=bool(origin and origin.manifest_sha256 == sha256(parent / MANIFEST)),
        recipe=manifest.config,
        weights_mb=weight_bytes(folder) / 1e6,
        folder_mb=folder_bytes(folder) / 1e6,
    )


def measure_quality(
    engine: Engine, cases: Sequence[Case], config: EvaluateConfig, budget: int
) -> Quality:
    """Answer every case under one thinking budget, stated and enforced, as evaluation does."""
    outcomes = run_budget(engine, cases, budget, config)
    return Quality(
        engine=engine.name,
        scores=score_outcomes(outcomes),
        exact_cases=[o.exact for o in outcomes],
        verdicts=[verdict_key(parse_completion(o.generation.text).verdict) for o in outcomes],
        thinking_lengths=[o.generation.thinking_tokens for o in outcomes],
    )


def verdict_key(verdict: Verdict | ParseFailure) -> str:
    """What makes two verdicts the same: charges, articles and principal penalty."""
    if isinstance(verdict, ParseFailure):
        return ""
    charges, articles = ";".join(sorted(verdict.charges)), ";".join(sorted(verdict.articles))
    return f"{charges}|{articles}|{verdict.term.kind} {verdict.term.months}"


def shares_tokenizer(parent: Path, artifact: Path) -> bool:
    """Whether both folders hold the very same tokenizer."""
    return sha256(parent / "tokenizer.json") == sha256(artifact / "tokenizer.json")


def measure_closeness(
    parent: Path, artifact: Path, prompts: Sequence[list[int]], continuation_tokens: int
) -> Closeness:
    """Next-token distributions of parent and artifact along the parent's greedy completions.

    Raises ValueError when the two don't share a tokenizer: their distributions are then over
    different things.
    """
    if not shares_tokenizer(parent, artifact):
        raise ValueError(f"{artifact} has another tokenizer than {parent}: no KL between them")
    if load_manifest(artifact).format == "ort-genai":
        row = measure_parity(parent, artifact, prompts, continuation_tokens)
        return Closeness(
            kl=row["kl"],
            argmax_agreement=row["argmax_agreement"],
            positions=int(row["compared_positions"]),
        )
    return _compare_transformers(parent, artifact, prompts, continuation_tokens)


def _compare_transformers(
    parent: Path, artifact: Path, prompts: Sequence[list[int]], continuation_tokens: int
) -> Closeness:
    """As `compress.onnx.parity` does for ONNX Runtime, for two Hugging Face folders."""
    import torch
    from torch.nn.functional import log_softmax
    from transformers import AutoModelForCausalLM

    models: list[Any] = [
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for folder in (parent, artifact)
    ]
    context = min(model.config.max_position_embeddings for model in models)
    kl_sum, same, positions = 0.0, 0, 0
    for prompt in prompts:
        ids = torch.tensor([prompt])  # (1, T)
        if (room := context - len(prompt)) < 1:
            raise ValueError(f"a prompt of {len(prompt)} tokens fills the context of {context}")
        with torch.inference_mode():
            whole = models[0].generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=min(continuation_tokens, room),
                pad_token_id=0,
            )
            left, right = (
                log_softmax(model(whole).logits[0, len(prompt) - 1 : -1].double(), -1)
                for model in models
            )  # (tokens, vocabulary)
        kl_sum += float((left.exp() * (left - right)).sum())
        same += int((left.argmax(-1) == right.argmax(-1)).sum())
        positions += len(left)
    return Closeness(kl=kl_sum / positions, argmax_agreement=same / positions, positions=positions)
