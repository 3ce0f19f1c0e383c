"""Compare artifacts with the parent they were made from: one table, one page, one default.

    python -m compress.compare --parent artifacts/demo/grpo-default \
        --artifacts '["artifacts/demo/ort-fp32", "artifacts/demo/ort-int4"]' \
        --corpus artifacts/demo/corpus/test.jsonl --limit 100 --out artifacts/demo/choice

Every result is kept under the hash of what it depends on, so a stopped run goes on where it
was. Speeds are the exception: they are measured for all folders together or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError, model_validator

from compress.compare.choice import (
    ArtifactIdentity,
    Closeness,
    Measured,
    Quality,
    choose,
    make_rows,
)
from compress.compare.speed import Speed, measure_speeds
from compress.distance import compare_along_parent
from compress.folders import count_parameters, folder_bytes, load_model, weight_bytes
from compress.onnx.parity import measure_parity
from compress.prompts import sample_prompts
from curt.artifact import MANIFEST, Manifest, load_manifest
from curt.classifier.candidates import load_prompts
from curt.config import Config
from curt.corpus.case import Case
from curt.corpus.store import read_cases
from curt.dialogue import ParseFailure, parse_completion
from curt.engines import Engine
from curt.evaluate import EvaluateConfig, open_engine, run_budget, score_outcomes
from curt.files import sha256, write_atomic, write_json
from curt.law.verdict import Verdict

log = logging.getLogger(__name__)

# Raise with any change to what is measured: older results are then measured again.
MEASURE_VERSION = 2

RUNNABLE = ("hf", "ort-genai")

OpenEngine = Callable[[Path], Engine]
T = TypeVar("T")


class CompareConfig(Config):
    """Settings of `python -m compress.compare`."""

    parent: Path
    """The Hugging Face model folder the artifacts are compared with."""
    artifacts: list[Path]
    """Model folders to choose from, as a JSON list."""
    corpus: Path = Path("artifacts/demo/corpus/test.jsonl")
    """Case file for accuracy and KL."""
    out: Path
    """Folder for report.json, report.html and the kept results."""
    limit: int | None = None
    """Use only the first so many cases."""
    budget: int | None = None
    """Thinking budget in tokens, stated and enforced; the parent's largest when not given."""
    batch: int = 50
    """Sequences at once, where the engine batches."""
    speed_threads: tuple[int, ...] = (1, 2)
    """Thread counts to measure speed at."""
    speed_rounds: int = 5
    """Rounds of the speed measurement."""
    prompt_tokens: int = 500
    """Prompt length of the speed measurement, where the model's facts may be so long."""
    decode_tokens: int = 64
    """Tokens decoded after it."""
    kl_prompts: int = 16
    """Prompts to compare next-token distributions on."""
    kl_tokens: int = 96
    """Length limit of the parent's completion of each."""
    seed: int = 0

    @model_validator(mode="after")
    def _names_differ(self) -> CompareConfig:
        names = [folder.resolve().name for folder in (self.parent, *self.artifacts)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"more than one folder named {', '.join(twice)}: rename one")
        if not self.artifacts:
            raise ValueError("no artifacts: give at least one folder")
        return self


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


def write_report(config: CompareConfig, open_engine: OpenEngine) -> dict[str, Any]:
    """Write report.json and report.html; returns what report.json holds.

    Raises ArtifactError, before anything is measured, when any folder is not what its manifest
    says; ValueError when the corpus holds no case.
    """
    from compress.compare.page import render_page

    limits = load_manifest(config.parent, expect="hf")
    budget = limits.max_thinking_tokens if config.budget is None else config.budget
    identities = [identify(f, config.parent) for f in (config.parent, *config.artifacts)]
    measured = [Measured(identity=i, notes=_notes(i, config)) for i in identities]
    store = Store(config.out / "kept")
    measured = _add_quality(config, limits, budget, measured, store, open_engine)
    measured = _add_speeds(config, measured, store)
    rows = make_rows(measured, 4 * count_parameters(config.parent) / 1e6)
    choice = choose(rows)
    settings = {**config.model_dump(mode="json"), "budget": budget}
    report = {
        "settings": settings,
        "choice": choice.model_dump(mode="json"),
        "rows": [row.model_dump(mode="json") for row in rows],
    }
    write_json(config.out / "report.json", report)
    write_atomic(config.out / "report.html", render_page(rows, choice, settings))
    log.info("default: %s; page in %s", choice.name, config.out / "report.html")
    return report


def _notes(identity: ArtifactIdentity, config: CompareConfig) -> list[str]:
    """What will be missing of a folder, and why."""
    if identity.format not in RUNNABLE:
        return [f"{identity.format}: no engine on this machine runs it; only its size is known"]
    if not shares_tokenizer(config.parent, Path(identity.folder)):
        return ["another tokenizer than the parent's: no KL between them"]
    return []


def _add_quality(
    config: CompareConfig,
    limits: Manifest,
    budget: int,
    measured: list[Measured],
    store: Store,
    open_engine: OpenEngine,
) -> list[Measured]:
    """Accuracy and closeness of every folder that an engine here runs."""
    cases = list(read_cases(config.corpus, config.limit))
    if not cases:
        raise ValueError(f"{config.corpus} holds no case")
    corpus = sha256(config.corpus)
    prompts = _draw_prompts(config, limits, cases)
    done = []
    for one in measured:
        if one.identity.format not in RUNNABLE:
            done.append(one)
            continue
        folder = Path(one.identity.folder)

        def evaluate(folder: Path = folder) -> Quality:
            settings = EvaluateConfig(
                model=folder, corpus=config.corpus, out=config.out, batch=config.batch
            )
            return measure_quality(open_engine(folder), cases, settings, budget)

        def compare(folder: Path = folder) -> Closeness:
            return measure_closeness(config.parent, folder, prompts, config.kl_tokens)

        key = [one.identity.manifest_sha256, corpus, config.limit]
        quality = store.remember("quality", [*key, budget], Quality, evaluate)
        log.info("%s: exact %.3f", one.identity.name, quality.scores["exact"])
        found: dict[str, Any] = {"quality": quality}
        if one is not measured[0] and shares_tokenizer(config.parent, folder):
            key += [measured[0].identity.manifest_sha256]
            key += [config.kl_prompts, config.kl_tokens, config.seed]
            found["closeness"] = store.remember("closeness", key, Closeness, compare)
        done.append(one.model_copy(update=found))
    return done


def _add_speeds(config: CompareConfig, measured: list[Measured], store: Store) -> list[Measured]:
    """Speeds of all folders that an engine here runs, from one run of alternating rounds."""
    able = [one.identity for one in measured if one.identity.format in RUNNABLE]
    settings: dict[str, Any] = {
        "threads": config.speed_threads,
        "rounds": config.speed_rounds,
        "prompt_tokens": config.prompt_tokens,
        "decode_tokens": config.decode_tokens,
    }

    def measure() -> list[list[Speed]]:
        return measure_speeds([Path(identity.folder) for identity in able], **settings)

    # The machine too: a copied folder of kept results must not bring another one's speeds.
    key = [[identity.manifest_sha256 for identity in able], settings, platform.node()]
    speeds = store.remember("speed", key, list[list[Speed]], measure)
    by_name = {identity.name: own for identity, own in zip(able, speeds, strict=True)}
    return [
        one.model_copy(update={"speeds": by_name.get(one.identity.name, [])}) for one in measured
    ]


def _draw_prompts(config: CompareConfig, limits: Manifest, cases: list[Case]) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.parent)
    prompts = load_prompts(config.parent, tokenizer, limits.max_fact_tokens)
    return sample_prompts(
        cases, prompts, limits.max_thinking_tokens, config.kl_prompts, config.seed
    )


def identify(folder: Path, parent: Path) -> ArtifactIdentity:
    """Verify a folder, file by file, and describe it. Raises ArtifactError on an altered one."""
    manifest = load_manifest(folder)
    origin = manifest.parent
    return ArtifactIdentity(
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
    else:
        row = _compare_transformers(parent, artifact, prompts, continuation_tokens)
    return Closeness(
        kl=row["kl"],
        argmax_agreement=row["argmax_agreement"],
        positions=int(row["compared_positions"]),
    )


def _compare_transformers(
    parent: Path, artifact: Path, prompts: Sequence[list[int]], continuation_tokens: int
) -> dict[str, float]:
    """As `compress.onnx.parity` does for ONNX Runtime, for two Hugging Face folders."""
    import torch

    left, right = load_model(parent), load_model(artifact)
    context = min(model.config.max_position_embeddings for model in (left, right))

    def read_child(prompt: list[int], continuation: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            whole = torch.tensor([[*prompt, *continuation]])
            logits: torch.Tensor = right(whole).logits[0, len(prompt) - 1 : -1]
        return logits

    distance = compare_along_parent(left, read_child, prompts, continuation_tokens, context)
    return distance.to_full_row()


def work(config: CompareConfig) -> None:
    """Measure what is missing and write the report."""
    write_report(config, partial(open_engine, batch=config.batch))
