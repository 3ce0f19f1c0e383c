"""Verification of distilled reasoning: every completion checked, the checks kept beside it.

    python -m train.data.verify --trajectories '["artifacts/demo/grpo-default.run/trajectories"]' \
        --corpus artifacts/demo/corpus/train.jsonl --out artifacts/verified.parquet
    python -m train.data.verify --dataset public.jsonl --corpus cases.jsonl --out verified.parquet \
        --judge '{"type": "endpoint", "base_url": "http://127.0.0.1:8001/v1", "model": "qwen"}'

A row is a completion as in the view `long`, with `verified`, `verdict_reason`, a column
`check_NAME` for each check of `train.data.verification`, and the `reference` answer. The reference
is found by the case's id, or by the facts in the prompt. The counts go to a file of the same name
that ends in .json. `train.data.views` selects on these columns.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from pydantic import Field

from curt.config import run
from curt.corpus.case import Case
from curt.corpus.store import read_cases
from curt.dialogue import (
    ELLIPSIS,
    Completion,
    ParseFailure,
    normalise_fact,
    parse_answer,
    parse_completion,
    render_answer,
)
from curt.files import write_json, write_rows
from curt.law.verdict import Verdict
from curt.scores.metrics import is_exact
from train.data.candidates import Candidate, CandidateGroup
from train.data.sources import TableConfig, read_source
from train.data.verification import (
    CHECKS,
    JUDGE_PREFIX,
    REASONING_CHECKS,
    Verification,
    VerificationSettings,
    add_grades,
    conclude,
    verify,
)
from train.judge import (
    Judge,
    JudgeQuestion,
    JudgeSettings,
    JudgeUnavailableError,
    Task,
    make_judge,
)

logger = logging.getLogger(__name__)

CHECK_PREFIX = "check_"
NO_REFERENCE = "no reference"
_HEAD = 12  # characters of a fact that find the cases it may be of


class VerifyConfig(TableConfig):
    """Which completions to verify, against which cases, how strictly."""

    corpus: Path
    """Case file with the reference verdicts."""
    settings: VerificationSettings = VerificationSettings()
    """What to accept."""
    judge: JudgeSettings | None = None
    """Asked about what passes the rules; none by default."""
    batch: int = Field(1000, ge=1)
    """Completions that a judge sees at once."""


def main(config: VerifyConfig) -> None:
    """Verify as configured and say how much was accepted."""
    summary = verify_dataset(config)
    logger.info(
        "%d of %d completions verified (%.1f%%), rejected for %s; %d without a reference",
        summary["verified"], summary["n"], 100 * summary["share"], summary["reasons"],
        summary["without_reference"],
    )  # fmt: skip


class References:
    """Reference verdicts of completions: stored beside them, or those of a case file."""

    def __init__(self, cases: Iterable[Case]) -> None:
        self._by_id: dict[str, Verdict] = {}
        self._by_head: dict[str, list[tuple[str, Verdict]]] = {}
        for case in cases:
            self._by_id[case.id] = case.verdict
            fact = normalise_fact(case.fact)
            self._by_head.setdefault(fact[:_HEAD], []).append((fact, case.verdict))

    def find(self, candidate: Candidate) -> Verdict | None:
        """The reference; None where none is known, or several cases fit the prompt.

        Raises ValueError for a stored reference that is no answer.
        """
        stored = candidate.columns.get("reference")
        if stored is not None:
            verdict = parse_answer(stored)
            if isinstance(verdict, ParseFailure):
                raise ValueError(f"a stored reference can't be read ({verdict.reason}): drop it")
            return verdict
        case_id = candidate.columns.get("case_id")
        if case_id is not None:
            return self._by_id.get(case_id)
        return self._by_prompt(candidate.prompt)

    def _by_prompt(self, prompt: str) -> Verdict | None:
        """By the line of the prompt that is a case's facts, whole or cut in the middle."""
        found = {
            verdict
            for line in map(normalise_fact, prompt.splitlines())
            for fact, verdict in self._by_head.get(line[:_HEAD], ())
            if line == fact or _is_clipped(line, fact)
        }
        return found.pop() if len(found) == 1 else None


@dataclass
class VerificationCounts:
    """Counts over verified completions."""

    n: int = 0
    verified: int = 0
    without_reference: int = 0
    exact: int = 0
    exact_failing_reasoning: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    exact_reasons: Counter[str] = field(default_factory=Counter)
    checks: dict[str, Counter[str]] = field(default_factory=dict)
    exact_checks: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, outcome: Verification | None, *, exact: bool) -> None:
        """Count one completion; `exact` says whether its verdict is the reference."""
        self.n += 1
        if outcome is None:
            self.without_reference += 1
            return
        self.verified += outcome.accepted
        self.exact += exact
        if not outcome.accepted:
            self.reasons[outcome.reason] += 1
            self.exact_reasons[outcome.reason] += exact
        self.exact_failing_reasoning += exact and any(
            outcome.checks[name] is False for name in REASONING_CHECKS
        )
        for name, held in outcome.checks.items():
            told = {True: "passed", False: "failed", None: "not applicable"}[held]
            self.checks.setdefault(name, Counter())[told] += 1
            if exact:
                self.exact_checks.setdefault(name, Counter())[told] += 1

    def to_json(self) -> dict[str, Any]:
        """The counts, the commonest reason first."""
        return {
            "n": self.n,
            "verified": self.verified,
            "share": self.verified / self.n if self.n else 0.0,
            "without_reference": self.without_reference,
            "reasons": dict(self.reasons.most_common()),
            "checks": {name: dict(counts) for name, counts in self.checks.items()},
            "exact": {
                "n": self.exact,
                "failing_a_reasoning_check": self.exact_failing_reasoning,
                "reasons": {k: v for k, v in self.exact_reasons.most_common() if v},
                "checks": {name: dict(counts) for name, counts in self.exact_checks.items()},
            },
        }


def verify_dataset(config: VerifyConfig) -> dict[str, Any]:
    """Write the verified rows and their counts, and return the counts.

    Raises ValueError when the source can't be read or none of it has a reference, and
    JudgeUnavailableError when a judge fails too often.
    """
    references = References(read_cases(config.corpus))
    judge = make_judge(config.judge) if config.judge else None
    candidates = (c for g in read_source(config) for c in g)
    counts, rows = VerificationCounts(), []
    while batch := list(islice(candidates, config.batch)):
        found = [references.find(candidate) for candidate in batch]
        outcomes = verify_batch(batch, found, config.settings, judge)
        for candidate, reference, outcome in zip(batch, found, outcomes, strict=True):
            counts.add(outcome, exact=_is_exact(candidate, reference))
            rows.append(add_checks(candidate, reference, outcome).to_row())
    if counts.without_reference == counts.n:
        raise ValueError(
            f"none of {counts.n} completions has a reference in {config.corpus}: give the case "
            "file that their prompts were made of"
        )
    summary = {
        **counts.to_json(),
        "judge": dict(judge.counts) if judge else None,
        "config": config.model_dump(mode="json"),
    }
    write_rows(config.out, rows)
    write_json(config.out.with_suffix(".json"), summary)
    return summary


def verify_batch(
    candidates: Sequence[Candidate],
    references: Sequence[Verdict | None],
    settings: VerificationSettings,
    judge: Judge | None = None,
) -> list[Verification | None]:
    """One verification a candidate, None without a reference.

    The judge sees all questions at once, so that its requests overlap.
    """
    completions = [parse_completion(candidate.completion) for candidate in candidates]
    outcomes = [
        None if reference is None else verify(completion, reference, settings)
        for completion, reference in zip(completions, references, strict=True)
    ]
    if judge is None:
        return outcomes
    passed = [number for number, outcome in enumerate(outcomes) if outcome and outcome.accepted]
    questions = [
        JudgeQuestion(task, completions[number], _known(references[number]))
        for number in passed
        for task in settings.judge_tasks
    ]
    grades = iter(judge.grade(questions))
    for number in passed:
        graded = {task: next(grades) for task in settings.judge_tasks}
        outcomes[number] = add_grades(_known(outcomes[number]), graded, settings)
    return outcomes


def add_checks(
    candidate: Candidate, reference: Verdict | None, outcome: Verification | None
) -> Candidate:
    """The candidate with `verified`, `verdict_reason`, its checks and the reference as columns."""
    columns: dict[str, Any] = dict(candidate.columns)
    columns["verified"] = outcome is not None and outcome.accepted
    columns["verdict_reason"] = NO_REFERENCE if outcome is None else outcome.reason
    for name in CHECKS if outcome is None else outcome.checks:
        columns[f"{CHECK_PREFIX}{name}"] = None if outcome is None else outcome.checks[name]
    columns["reference"] = None if reference is None else render_answer(reference)
    return replace(candidate, columns=columns)


def keep_verified(
    groups: Iterable[CandidateGroup], checks: Sequence[str]
) -> Iterator[list[Candidate]]:
    """Groups with the candidates that are verified; emptied groups are left out.

    With `checks`, those must not fail, whatever else does; without, `verified` decides. Raises
    ValueError, once all groups are through, when no candidate was verified, and on an unknown
    check.
    """
    known = {*CHECKS, *(f"{JUDGE_PREFIX}{task}" for task in get_args(Task))}
    if unknown := sorted(set(checks) - known):
        raise ValueError(f"unknown checks {unknown}: use some of {sorted(known)}")
    seen = unchecked = 0
    for group in groups:
        told = [c for c in group if c.columns.get("verdict_reason", NO_REFERENCE) != NO_REFERENCE]
        seen, unchecked = seen + len(group), unchecked + len(group) - len(told)
        if kept := [candidate for candidate in told if _holds(candidate.columns, checks)]:
            yield kept
    if unchecked and unchecked == seen:
        raise ValueError(
            f"none of {seen} completions was verified: run `python -m train.data.verify` on them"
        )
    if unchecked:
        logger.warning("%d completions without checks or a reference are left out", unchecked)


def _holds(columns: Mapping[str, Any], checks: Sequence[str]) -> bool:
    if not checks:
        return bool(columns["verified"])
    stored = {name: columns.get(f"{CHECK_PREFIX}{name}") for name in CHECKS}
    judged = [name for name in checks if name.startswith(JUDGE_PREFIX)]
    # A judge's check must be there and hold: what it was not asked about has not passed.
    consent = all(columns.get(f"{CHECK_PREFIX}{name}") is True for name in judged)
    return consent and conclude(stored, checks).accepted


def _is_clipped(line: str, fact: str) -> bool:
    """Whether a line is the facts with their middle left out."""
    head, mark, tail = line.partition(ELLIPSIS)
    short = len(head) + len(tail) < len(fact)
    return bool(mark) and short and fact.startswith(head) and fact.endswith(tail)


def _is_exact(candidate: Candidate, reference: Verdict | None) -> bool:
    completion: Completion = parse_completion(candidate.completion)
    return reference is not None and is_exact(completion.verdict, reference)


def _known(value: Any) -> Any:
    assert value is not None  # only completions with a reference pass the rules
    return value


if __name__ == "__main__":
    run(VerifyConfig, main, expected=(JudgeUnavailableError, OSError, ValueError))
