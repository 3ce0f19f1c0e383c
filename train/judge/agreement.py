"""How far a judge agrees with the rule judge, before it is trusted with rewards.

    python -m train.judge.agreement --cases artifacts/demo/corpus/train.jsonl \
        --trajectories artifacts/demo/grpo-default.run/trajectories --out artifacts/agreement \
        --judge '{"type": "endpoint", "base_url": "http://127.0.0.1:8001/v1", "model": "qwen"}'

Rules read what the grammar allows; a model may read more. Where they differ on answers that parse,
one of them is wrong, and the table says where to look.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from pydantic import Field

from curt.config import Config, run
from curt.corpus.store import read_cases
from curt.dialogue import parse_completion
from curt.files import write_atomic, write_json
from curt.html import render_text
from train.judge import (
    Grade,
    JudgeQuestion,
    JudgeSettings,
    JudgeUnavailableError,
    RuleJudge,
    Task,
    make_judge,
)


class JudgeAgreementConfig(Config):
    """Judge against rule judge on completions of a run."""

    judge: JudgeSettings
    """The judge to examine."""
    trajectories: Path
    """Folder of a GRPO run's rollouts."""
    cases: Path
    """Case file with the references."""
    tasks: list[Task] = list(get_args(Task))
    """What to ask about."""
    limit: int = Field(300, ge=1)
    """Completions to ask about, drawn at random."""
    seed: int = 7
    out: Path
    """Folder to write agreement.json and agreement.md into."""


def main(config: JudgeAgreementConfig) -> None:
    """Ask both judges, and show and write the tables."""
    figures = measure_agreement(config)
    page = render_text("agreement.md.j2", tasks=figures["tasks"])
    write_atomic(config.out / "agreement.md", page)
    write_json(config.out / "agreement.json", figures)
    sys.stdout.write(page)


def measure_agreement(config: JudgeAgreementConfig) -> dict[str, Any]:
    """Figures by task. Raises ValueError when a completion's case is not in the case file."""
    from train.data.trajectories import read_rollouts

    references = {case.id: case.verdict for case in read_cases(config.cases)}
    rows = read_rollouts(config.trajectories).select(["case_id", "completion"]).to_pylist()
    drawn = random.Random(config.seed).sample(rows, min(config.limit, len(rows)))
    if missing := [row["case_id"] for row in drawn if row["case_id"] not in references]:
        raise ValueError(
            f"case {missing[0]} is not in {config.cases}: give the run's own case file"
        )
    judge, rule = make_judge(config.judge), RuleJudge()
    figures = {}
    for task in config.tasks:
        questions = [
            JudgeQuestion(task, parse_completion(row["completion"]), references[row["case_id"]])
            for row in drawn
        ]
        figures[task] = compare_grades(judge.grade(questions), rule.grade(questions))
    return {"judge": config.judge.model_dump(mode="json"), "tasks": figures}


def compare_grades(judged: Sequence[Grade | None], ruled: Sequence[Grade | None]) -> dict[str, Any]:
    """Agreement of two judges; questions the first failed on are counted and left out.

    `kappa` is Cohen's: agreement beyond that of chance, None where chance alone agrees always.
    `confusion` counts pairs (rule, judge). `month_difference` is the mean distance of the errors
    in months where both give one, None without any.
    """
    pairs = [(r, j) for r, j in zip(ruled, judged, strict=True) if r is not None and j is not None]
    months = [
        abs(r.error_months - j.error_months)
        for r, j in pairs
        if r.error_months is not None and j.error_months is not None
    ]
    labels = [(_label(r), _label(j)) for r, j in pairs]
    return {
        "n": len(judged),
        "failed": len(judged) - len(pairs),
        "agreement": fmean(r == j for r, j in labels) if labels else None,
        "kappa": cohen_kappa(labels),
        "month_difference": fmean(months) if months else None,
        "confusion": [
            {"rule": rule, "judge": judge, "count": count}
            for (rule, judge), count in sorted(Counter(labels).items())
        ],
    }


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """(observed - chance) / (1 - chance) agreement (Cohen, 1960)."""
    if not pairs:
        return None
    first, second = (Counter(side) for side in zip(*pairs, strict=True))
    count = len(pairs)
    chance = sum(first[label] * second[label] for label in first) / count**2
    observed = sum(a == b for a, b in pairs) / count
    return None if chance == 1 else (observed - chance) / (1 - chance)


def _label(grade: Grade) -> str:
    """Errors in months agree when both are none, or both some."""
    if grade.error_months is None:
        return str(grade.level)
    return "right" if grade.error_months == 0 else "off"


if __name__ == "__main__":
    run(JudgeAgreementConfig, main, expected=(JudgeUnavailableError, OSError, ValueError))
