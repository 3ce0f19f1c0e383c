"""From folders to the report: verify, measure what is missing, choose, write."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.compare.choice import choose
from compress.compare.measure import (
    Store,
    identify,
    measure_closeness,
    measure_quality,
    shares_tokenizer,
)
from compress.compare.page import render_page
from compress.compare.rows import Closeness, Identity, Measured, Quality, make_rows
from compress.compare.settings import ReportConfig
from compress.compare.speed import Speed, measure_speeds
from compress.compare.weights import fp32_bytes
from compress.prompts import sample_prompts
from curt.artifact import Manifest, load_manifest
from curt.corpus.case import Case
from curt.corpus.store import read_cases
from curt.engines import Engine
from curt.evaluate import EvaluateConfig
from curt.files import sha256, write_atomic, write_json

log = logging.getLogger(__name__)

RUNNABLE = ("hf", "ort-genai")

OpenEngine = Callable[[Path], Engine]


def write_report(config: ReportConfig, open_engine: OpenEngine) -> dict[str, Any]:
    """Write report.json and report.html; returns what report.json holds.

    Raises ArtifactError, before anything is measured, when any folder is not what its manifest
    says; ValueError when the corpus holds no case.
    """
    limits = load_manifest(config.parent, expect="hf")
    budget = limits.max_thinking_tokens if config.budget is None else config.budget
    identities = [identify(f, config.parent) for f in (config.parent, *config.artifacts)]
    measured = [Measured(identity=i, notes=_notes(i, config)) for i in identities]
    store = Store(config.out / "kept")
    if not config.speed_only:
        measured = _add_quality(config, limits, budget, measured, store, open_engine)
    measured = _add_speeds(config, measured, store)
    rows = make_rows(measured, fp32_bytes(config.parent) / 1e6)
    choice = choose(rows)
    settings = {**config.model_dump(mode="json"), "budget": budget}
    report = {
        "settings": settings,
        "choice": choice.model_dump(mode="json"),
        "rows": [row.model_dump(mode="json") for row in rows],
    }
    write_json(config.out / "report.json", report)
    write_atomic(config.out / "report.html", render_page(rows, choice, settings))
    return report


def _notes(identity: Identity, config: ReportConfig) -> list[str]:
    """What will be missing of a folder, and why."""
    if identity.format not in RUNNABLE:
        return [f"{identity.format}: no engine on this machine runs it; only its size is known"]
    if not config.speed_only and not shares_tokenizer(config.parent, Path(identity.folder)):
        return ["another tokenizer than the parent's: no KL between them"]
    return []


def _add_quality(
    config: ReportConfig,
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


def _add_speeds(config: ReportConfig, measured: list[Measured], store: Store) -> list[Measured]:
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


def _draw_prompts(config: ReportConfig, limits: Manifest, cases: list[Case]) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.parent)
    return sample_prompts(cases, tokenizer, limits, config.kl_prompts, config.seed)
