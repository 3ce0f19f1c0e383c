"""Evaluate an engine on a corpus: accuracy, thinking tokens, and accuracy by thinking budget.

    python -m curt.evaluate --model artifacts/demo/grpo-default \
        --corpus artifacts/demo/corpus/test.jsonl --out artifacts/demo/eval/grpo-default.json
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import Field
from tqdm import tqdm

from curt.artifact import MANIFEST, READER
from curt.classifier.candidates import read_candidates
from curt.classifier.model import Classifier, load_classifier
from curt.config import Config, run
from curt.corpus.augment.counterfactuals import MOVES, STAYS, Pair, draw_pairs, invariant_pairs
from curt.corpus.case import AUGMENTATIONS, Case
from curt.corpus.generate.generator import SOURCE
from curt.corpus.store import read_cases
from curt.dialogue import ParseFailure, parse_completion, render_answer, state_budget
from curt.engines import Engine, Generation, Request
from curt.engines.onnx.cost import ReasoningCost, read_cost
from curt.engines.registry import open_engine
from curt.files import sha256, write_json
from curt.law.term_scale import severity
from curt.law.verdict import Verdict
from curt.scores.metrics import is_exact, length_statistics, score_verdicts
from curt.scores.statistics import share

logger = logging.getLogger(__name__)


class EvaluateConfig(Config):
    """What to evaluate on what."""

    model: Path
    """Model folder; its manifest's format picks the engine."""
    corpus: Path = Path("artifacts/demo/corpus/test.jsonl")
    """Case file."""
    out: Path
    """JSON file to write."""
    limit: int | None = None
    """Use only the first so many cases."""
    budgets: list[int] = [0, 8, 16, 32, 64, 128]
    """Thinking budgets to state and enforce; the largest gives the headline scores."""
    stated_budget: int | None = None
    """State this budget in every prompt and only enforce `budgets`: truncation at inference."""
    thinking_limit: int | None = None
    """Enforce this limit everywhere and only state `budgets`: does the model obey by itself?"""
    budget_limit: int | None = None
    """Cases for the smaller budgets; all when not given."""
    batch: int = 100
    """Sequences at once, where the engine batches."""
    threads: int = 1
    """Threads of the ONNX Runtime engine."""
    examples: int = 6
    """Worked examples to keep; 0 for a corpus whose text must not leave it."""
    candidates: Path | None = None
    """Cross-fitted candidates for the prompts of cases that the model's reader was trained on, of
    `compress.classifier.train`; the reader's own for cases without."""
    cost: Path | None = None
    """ONNX Runtime folder whose passes price the model's reasoning; the model must have guesses."""
    counterfactuals: int = Field(0, ge=0)
    """Cases to ask again with one thing changed: the corpus' own where real, else drawn anew."""
    classifier: Path | None = None
    """Classifier folder that answers the same cases and pairs; the model's reader by default."""


@dataclass(frozen=True, slots=True)
class EvaluatedCase:
    """One case answered under one budget."""

    case: Case
    generation: Generation

    @property
    def exact(self) -> bool:
        """Whether the verdict is the reference."""
        return is_exact(parse_completion(self.generation.text).verdict, self.case.verdict)


def main(config: EvaluateConfig) -> None:
    """Evaluate and write the report."""
    report = evaluate(config)
    write_json(config.out, report)
    logger.info(
        "%s: exact %.3f, %.1f thinking tokens, on %d cases",
        config.model,
        report["scores"]["exact"],
        report["thinking_tokens"]["mean"],
        report["n"],
    )


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Run every budget and return the report. Raises ValueError when there is no case."""
    cases = list(read_cases(config.corpus, config.limit))
    if not cases:
        raise ValueError(f"{config.corpus} holds no case")
    if not config.budgets:
        raise ValueError("no budgets: give at least one")
    engine = open_engine(config.model, batch=config.batch, threads=config.threads)
    cost = ReasoningCost(config.model, read_cost(config.cost).cost) if config.cost else None
    widest = max(config.budgets)
    headline = run_budget(engine, cases, widest, config)
    by_budget = []
    for budget in sorted(set(config.budgets)):
        if budget == widest:
            outcomes = headline[: config.budget_limit]
        else:
            outcomes = run_budget(engine, cases[: config.budget_limit], budget, config)
        by_budget.append({"budget": budget, "n": len(outcomes), **summarise(outcomes, budget)})
        if cost:
            read = ((cost.tokenizer.encode(o.generation.text), budget) for o in outcomes)
            by_budget[-1]["mean_reasoning_ms"] = fmean(cost.measure(*each).ms for each in read)
    lengths = [o.generation.thinking_tokens for o in headline]
    return {
        "name": config.out.stem,
        "engine": engine.name,
        "model": str(config.model),
        "manifest_sha256": sha256(config.model / MANIFEST),
        "corpus": str(config.corpus),
        "corpus_sha256": sha256(config.corpus),
        "n": len(cases),
        "stated_budget": state_budget(
            widest if config.stated_budget is None else config.stated_budget
        ),
        "scores": score_outcomes(headline),
        "thinking_tokens": length_statistics(lengths),
        "thinking_lengths": lengths,
        "exact_cases": [o.exact for o in headline],
        "charges": ["；".join(o.case.verdict.charges) for o in headline],
        "circumstances": [count_circumstances(o.case) for o in headline],
        "by_budget": by_budget,
        "by_trait": by_group(headline, lambda o: f"{count_circumstances(o.case)} circumstances"),
        "by_correctness": by_group(headline, lambda o: "right" if o.exact else "wrong"),
        "classifier": score_classifier(cases, config),
        "counterfactuals": measure_counterfactuals(engine, cases, widest, config),
        "examples": [example(o) for o in headline[: config.examples]],
    }


def run_budget(
    engine: Engine, cases: Sequence[Case], budget: int, config: EvaluateConfig
) -> list[EvaluatedCase]:
    """Answer all cases under a budget, stated and enforced as configured, behind a progress bar."""
    stated = budget if config.stated_budget is None else config.stated_budget
    limit = budget if config.thinking_limit is None else config.thinking_limit
    batch = config.batch
    candidates = read_candidates(config.candidates)
    outcomes: list[EvaluatedCase] = []
    with tqdm(total=len(cases), desc=f"budget {budget}", unit="case", leave=False) as bar:
        for start in range(0, len(cases), batch):
            part = cases[start : start + batch]
            requests = [
                Request(
                    c.fact,
                    stated_budget=state_budget(stated),
                    thinking_limit=limit,
                    candidates=candidates.get(c.id),
                )
                for c in part
            ]
            generations = engine.generate(requests)
            outcomes += [EvaluatedCase(c, g) for c, g in zip(part, generations, strict=True)]
            bar.update(len(part))
    return outcomes


def score_outcomes(outcomes: Sequence[EvaluatedCase]) -> dict[str, float]:
    """All scores of `curt.scores.metrics.score_verdicts`."""
    verdicts = [parse_completion(o.generation.text).verdict for o in outcomes]
    return score_verdicts(verdicts, [o.case.verdict for o in outcomes])


def summarise(outcomes: Sequence[EvaluatedCase], budget: int) -> dict[str, Any]:
    """Scores and thinking tokens of one budget.

    `within` is the share that ended by it unforced, `held` that of answers whose grammar had to
    refuse a token of the model's.
    """
    scores = score_outcomes(outcomes)
    lengths = [o.generation.thinking_tokens for o in outcomes]
    statistics = length_statistics(lengths)
    ended = [
        o.generation.thinking_tokens <= budget and not o.generation.thinking_cut for o in outcomes
    ]
    return {
        "exact": scores["exact"],
        "mean_thinking": statistics["mean"],
        "p95_thinking": statistics["p95"],
        "within": sum(ended) / len(outcomes),
        "cut": sum(o.generation.thinking_cut for o in outcomes) / len(outcomes),
        "held": sum(o.generation.held > 0 for o in outcomes) / len(outcomes),
        "exact_cases": [o.exact for o in outcomes],
        "within_cases": ended,
        "scores": scores,
    }


def count_circumstances(case: Case) -> int:
    """How many circumstances the generator drew; what was done to a case later is none."""
    return len(set(case.traits) - AUGMENTATIONS)


def by_group(
    outcomes: Sequence[EvaluatedCase], name_of: Callable[[EvaluatedCase], str]
) -> dict[str, dict[str, float]]:
    """Exact accuracy and thinking tokens of each group of cases, by its name."""
    groups: dict[str, list[EvaluatedCase]] = {}
    for outcome in outcomes:
        groups.setdefault(name_of(outcome), []).append(outcome)
    return {
        name: {
            "n": len(members),
            "exact": sum(o.exact for o in members) / len(members),
            "mean_thinking": sum(o.generation.thinking_tokens for o in members) / len(members),
        }
        for name, members in sorted(groups.items())
    }


def score_classifier(cases: Sequence[Case], config: EvaluateConfig) -> dict[str, Any]:
    """What the classifier by itself makes of the cases, the cheapest rival; empty without one."""
    if not (classifier := _find_classifier(config)):
        return {}
    verdicts = [classifier.predict(case.fact).verdict for case in cases]
    truths = [case.verdict for case in cases]
    exact = [is_exact(verdict, truth) for verdict, truth in zip(verdicts, truths, strict=True)]
    return {"scores": score_verdicts(verdicts, truths), "exact_cases": exact}


def _find_classifier(config: EvaluateConfig) -> Classifier | None:
    reader = config.classifier or config.model / READER
    return load_classifier(reader) if config.classifier or reader.is_dir() else None


def measure_counterfactuals(
    engine: Engine, cases: Sequence[Case], budget: int, config: EvaluateConfig
) -> dict[str, Any]:
    """Whether what must not matter doesn't and what must does: by kind, with Wilson's interval.

    A pair holds with the same charges, articles and term where the verdict must stay, and with a
    term that moved in the right direction where it must move; `exact` is after the change. The same
    of the classifier, where there is one: it reads the fact as it is and costs half a millisecond.
    """
    real = [case for case in cases if not case.source.startswith(SOURCE)][: config.counterfactuals]
    names = [f"{SOURCE}-pairs-{number}" for number in range(config.counterfactuals)]
    groups = [list(invariant_pairs(case, random.Random(case.id))) for case in real] or [
        list(draw_pairs(name, random.Random(name))) for name in names
    ]
    asked = {side.fact: side for group in groups for p in group for side in (p.before, p.after)}
    own = config.model_copy(update={"candidates": None})  # made for a case, not for its other side
    outcomes = run_budget(engine, list(asked.values()), budget, own)
    answers = {o.case.fact: parse_completion(o.generation.text).verdict for o in outcomes}
    rival: dict[str, Any] = {}
    if asked and (classifier := _find_classifier(config)):
        alone = {fact: classifier.predict(fact).verdict for fact in asked}
        rival = judge_pairs(groups, alone)["by_kind"]
    return judge_pairs(groups, answers) | {"classifier": rival}


def judge_pairs(
    groups: Sequence[Sequence[Pair]], answers: Mapping[str, Verdict | ParseFailure]
) -> dict[str, Any]:
    """How often the pairs of each kind hold, and which kinds do in each group."""
    judged = [{pair.kind: judge_pair(pair, answers) for pair in group} for group in groups]
    by_kind = {}
    for kind in (*STAYS, *MOVES):
        if rows := [case[kind] for case in judged if kind in case]:
            held, before, after = (sum(column) / len(rows) for column in zip(*rows, strict=True))
            span = asdict(share(held, len(rows)))
            by_kind[kind] = span | {"exact_before": before, "exact": after}
    cases_held = [{kind: row[0] for kind, row in case.items()} for case in judged]
    return {"by_kind": by_kind, "cases": cases_held}


def judge_pair(pair: Pair, answers: Mapping[str, Verdict | ParseFailure]) -> tuple[bool, ...]:
    """Whether the answers to a pair do what its verdicts do, and whether each is right."""
    before, after = answers[pair.before.fact], answers[pair.after.fact]
    holds = False
    if isinstance(before, Verdict) and isinstance(after, Verdict):
        wanted = severity(pair.after.verdict.term) - severity(pair.before.verdict.term)
        moved = severity(after.term) - severity(before.term)
        holds = is_exact(after, before) if pair.kind in STAYS else moved * wanted > 0
    return holds, is_exact(before, pair.before.verdict), is_exact(after, pair.after.verdict)


def example(outcome: EvaluatedCase) -> dict[str, Any]:
    """A worked example for the report."""
    completion = parse_completion(outcome.generation.text)
    return {
        "fact": outcome.case.fact,
        "thinking": completion.thinking,
        "thinking_tokens": outcome.generation.thinking_tokens,
        "answer": completion.answer,
        "reference": render_answer(outcome.case.verdict),
        "exact": outcome.exact,
    }


if __name__ == "__main__":
    run(EvaluateConfig, main)
