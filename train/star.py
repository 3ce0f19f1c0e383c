"""Reasoning for real cases from the model itself: what led to the court's verdict is kept.

    python -m train.star --model artifacts/cail/warm-start --corpus artifacts/cail/corpus \
        --candidates artifacts/cail/candidates.jsonl --out artifacts/cail/corpus-own

Real judgments come without reasoning that a model could learn. Here it reasons about each training
case several times; the first reasoning that ends in the court's verdict and passes the checks of
`train.data.verification` becomes the case's own. Where none does and the reader had proposed
another charge, it is asked once more with the court's charge proposed (rationalization): else it
would learn to reason from those cases alone whose reader was right. Trained on these, it can be
asked again (STaR, arXiv 2203.14465; RAFT, arXiv 2304.06767). The folder holds the corpus with the
verbosity "own" in place of others; its card says how many cases have such a reasoning. All samples
stay under `{out}.run/trajectories`. Stop with Ctrl-C at any time; the same command goes on.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import Field

from curt.artifact import MANIFEST, load_manifest
from curt.checkpoint import Checkpoint, read_checkpoint
from curt.classifier.candidates import Reader, load_prompts, parse_candidates, read_candidates
from curt.config import Config, run
from curt.corpus.build.card import render_card
from curt.corpus.case import OWN, Case
from curt.corpus.store import find_cases, read_cases, write_cases
from curt.dialogue import Prompts, parse_completion
from curt.files import close_run, sha256, whole_folder, write_atomic, write_json
from train.data.sampling import sample_log
from train.data.trajectories import iterate_groups
from train.data.verification import CheckName, VerificationSettings, verify
from train.runs.checkpoints import open_run

logger = logging.getLogger(__name__)

NO_REASONING = "none accepted"


class StarConfig(Config):
    """Settings of a round."""

    model: Path
    """Model folder that reasons."""
    corpus: Path
    """Corpus folder whose training cases are asked."""
    candidates: Path | None = None
    """Cross-fitted candidates of those cases; the model's own reader's where there are none."""
    out: Path
    """Corpus folder to write."""
    cases: int | None = Field(None, ge=1)
    """Ask about the first so many cases only; the others get no reasoning."""
    generated: Path | None = None
    """Case file to learn from beside: most real cases get no reasoning, and a model that learned
    from them alone would stop thinking."""
    most_generated: int = Field(3000, ge=1)
    """The first so many of its cases."""
    samples: int = Field(2, ge=1)
    """Completions of each case."""
    temperature: float = Field(0.8, gt=0)
    budget: int = Field(128, ge=1)
    """Thinking budget that the prompts state."""
    rationalize: bool = True
    """Ask again, with the court's charges as candidates, where the reader proposed others."""
    checks: tuple[CheckName, ...] = (
        *("charge", "article", "term"),
        *("arithmetic", "conclusion", "repetition"),
    )
    """What a completion must hold; see `train.data.verification`."""
    batch: int = Field(16, ge=1)
    """Cases at a time."""
    seed: int = 7


def collect_reasonings(config: StarConfig) -> dict[str, Any]:
    """Write the corpus with the model's own reasonings and return what its corpus.json says.

    Raises ValueError when the corpus or the candidates can't be read, ArtifactError when the model
    can't.
    """
    source = find_cases(config.corpus, "train")
    cases = list(read_cases(source))
    manifest = load_manifest(config.model)
    inputs = {"train": source, "model": config.model / MANIFEST}
    if config.generated:
        inputs["generated"] = config.generated
    run_dir = open_run(config.out, config.model_dump(mode="json"), inputs, ["trajectories/*"])
    beside = list(read_cases(config.generated, config.most_generated)) if config.generated else []
    asked = cases[: config.cases]
    known = read_candidates(config.candidates)
    checkpoint = read_checkpoint(config.model)
    prompts = load_prompts(config.model, checkpoint.tokenizer, manifest.max_fact_tokens)
    ask = partial(_ask, config, checkpoint, prompts, run_dir / "trajectories")
    found = ask(asked, known, first_step=1)
    misled = [case for case in asked if not found[case.id] and _misled(known.get(case.id), case)]
    if config.rationalize and misled and isinstance(prompts.reader, Reader):
        hints = {case.id: prompts.reader(case.fact, case.verdict.charges) for case in misled}
        found |= ask(misled, hints, first_step=len(asked) + 1)
    found |= dict.fromkeys((case.id for case in cases[len(asked) :]), "")
    counts = Counter(OWN if found[case.id] else NO_REASONING for case in cases)
    summary = json.loads((config.corpus / "corpus.json").read_text(encoding="utf-8"))
    summary["reasonings"] = {
        OWN: counts[OWN],
        NO_REASONING: counts[NO_REASONING],
        "generated": len(beside),
        "model": sha256(config.model / MANIFEST),
        "config": config.model_dump(mode="json"),
    }
    with whole_folder(config.out) as folder:
        for split in ("dev", "test"):
            path = find_cases(config.corpus, split)
            shutil.copy(path, folder / path.name)
        own = (replace(c, reasonings={OWN: found[c.id]} if found[c.id] else {}) for c in cases)
        write_cases(folder / source.name, chain(own, beside))
        write_json(folder / "corpus.json", summary)
        write_atomic(folder / "card.html", render_card(summary).encode())
    close_run(run_dir)
    return summary


def _ask(
    config: StarConfig,
    checkpoint: Checkpoint,
    prompts: Prompts,
    log: Path,
    cases: Sequence[Case],
    lines: Mapping[str, str],
    first_step: int,
) -> dict[str, str]:
    """The first accepted reasoning of each case after its line of candidates, or nothing.

    Samples are logged as steps from `first_step` on.
    """
    # Together prompts of one length, the longest first: the bar's estimate errs to the safe side.
    cases = sorted(cases, key=lambda case: -len(case.fact))
    questions = [
        {
            "prompt": prompts.text(case.fact, config.budget, lines.get(case.id)),
            "reference": json.dumps(case.verdict.to_json(), ensure_ascii=False),
            "budget": config.budget,
            "case_id": case.id,
        }
        for case in cases
    ]
    starts = range(0, len(questions), config.batch)
    parts = {n: questions[k : k + config.batch] for n, k in enumerate(starts, first_step)}
    sample_log(log, checkpoint, parts, config.samples, config.temperature, config.budget,
               config.seed)  # fmt: skip
    settings = VerificationSettings(checks=config.checks)
    by_id = {case.id: case for case in cases}
    groups = (group for group in iterate_groups(log) if group[0].step in parts)
    return {
        group[0].case_id: _first_accepted(
            [rollout.completion for rollout in group], by_id[group[0].case_id], settings
        )
        for group in groups
    }


def _misled(line: str | None, case: Case) -> bool:
    """Whether a line proposes another charge first than the court's."""
    if not line:
        return False
    return next(iter(parse_candidates(line).charges)) not in case.verdict.charges


def _first_accepted(texts: Sequence[str], case: Case, settings: VerificationSettings) -> str:
    for text in texts:
        completion = parse_completion(text)
        if completion.thinking and verify(completion, case.verdict, settings).accepted:
            return completion.thinking
    return ""


def work(config: StarConfig) -> None:
    """Ask, keep and write as the configuration says."""
    summary = collect_reasonings(config)
    logger.info("corpus %s: %s", config.out, {k: summary["reasonings"].get(k, 0)
                                              for k in (OWN, NO_REASONING)})  # fmt: skip


if __name__ == "__main__":
    run(StarConfig, work)
