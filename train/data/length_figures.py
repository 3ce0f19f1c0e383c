"""Where reasoning is spent: by correctness, by difficulty, and against the stated budget.

    python -m train.data.length_figures --evaluation artifacts/demo/eval/grpo-default.json
    python -m train.data.length_figures \
        --trajectories artifacts/demo/grpo-default.run/trajectories \
        --corpus artifacts/demo/corpus/train.jsonl

A penalty that works shortens right answers to easy cases first; one that harms shortens the hard
ones too, and accuracy there pays for it. The mean length alone shows neither.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import Field

from curt.config import Config, run
from curt.corpus.store import read_cases
from curt.files import write_atomic
from curt.scores.metrics import length_statistics


@dataclass(frozen=True, slots=True)
class LengthRow:
    """One completion. `circumstances` counts what bears on the sentence; None where unknown."""

    exact: bool
    thinking_tokens: int
    circumstances: int | None = None
    stated_budget: int | None = None
    cut: bool = False
    """Whether the thinking was ended by force."""


class LengthFiguresConfig(Config):
    """Length figures of an evaluation, or of a run's rollouts."""

    evaluation: Path | None = None
    """Report of `curt.evaluate`."""
    trajectories: Path | None = None
    """Folder of a GRPO run's rollouts."""
    corpus: Path | None = None
    """Case file of the rollouts, for the difficulty of each case; without it, no such table."""
    last_steps: int | None = Field(None, ge=1)
    """Use only the rollouts of the newest so many steps."""
    out: Path | None = None
    """Folder to write length-figures.json and length-figures.md into."""


def main(config: LengthFiguresConfig) -> None:
    """Show the tables, and write them where asked to."""
    figures = read_figures(config)
    page = render_markdown(figures)
    if config.out:
        write_atomic(config.out / "length-figures.md", page)
        text = json.dumps(figures, ensure_ascii=False, indent=2)
        write_atomic(config.out / "length-figures.json", text + "\n")
    sys.stdout.write(page)


def read_figures(config: LengthFiguresConfig) -> dict[str, Any]:
    """Figures of the configured source.

    Raises ValueError unless exactly one source is given and it holds what the figures need.
    """
    if (config.evaluation is None) == (config.trajectories is None):
        raise ValueError("give --evaluation or --trajectories, and not both")
    if config.evaluation:
        report = json.loads(config.evaluation.read_text(encoding="utf-8"))
        figures = describe_lengths(rows_of_evaluation(report))
        return {**figures, "obedience": obedience_of_evaluation(report)}
    from train.data.trajectories import read_rollouts

    assert config.trajectories
    table = read_rollouts(config.trajectories)
    columns = ["step", "case_id", "exact", "thinking_tokens", "budget", "truncated"]
    rollouts = table.select(columns).to_pylist()
    if config.last_steps:
        first = max(r["step"] for r in rollouts) - config.last_steps + 1
        rollouts = [r for r in rollouts if r["step"] >= first]
    circumstances = (
        {case.id: len(case.traits) for case in read_cases(config.corpus)} if config.corpus else {}
    )
    rows = rows_of_rollouts(rollouts, circumstances)
    return {**describe_lengths(rows), "obedience": describe_obedience(rows)}


def rows_of_evaluation(report: Mapping[str, Any]) -> list[LengthRow]:
    """The headline cases of an evaluation report.

    Raises ValueError when the report was written by a version that kept no rows.
    """
    missing = [key for key in ("thinking_lengths", "exact_cases") if key not in report]
    if missing:
        raise ValueError(f"the report lacks {' and '.join(missing)}: evaluate the model again")
    lengths, exact = report["thinking_lengths"], report["exact_cases"]
    circumstances = report.get("circumstances", [None] * len(lengths))
    return [
        LengthRow(bool(e), n, c, report.get("stated_budget"))
        for n, e, c in zip(lengths, exact, circumstances, strict=True)
    ]


def rows_of_rollouts(
    rollouts: Iterable[Mapping[str, Any]], circumstances: Mapping[str, int]
) -> list[LengthRow]:
    """Rollouts of the trajectory store; `circumstances` gives their number by case id.

    Raises ValueError when it knows some cases but not all.
    """
    rows = []
    for rollout in rollouts:
        case = rollout["case_id"]
        if circumstances and case not in circumstances:
            raise ValueError(f"case {case} is not in the corpus: give the run's own case file")
        rows.append(
            LengthRow(
                bool(rollout["exact"]),
                rollout["thinking_tokens"],
                circumstances.get(case),
                rollout["budget"],
                rollout["truncated"],
            )
        )
    return rows


def describe_lengths(rows: Sequence[LengthRow]) -> dict[str, Any]:
    """Thinking tokens by correctness, and by number of circumstances with accuracy.

    `overthinking` is the mean length of wrong verdicts over that of right ones, None where a side
    is empty or right ones don't think; above 1, length is spent where it doesn't help.
    """
    right = [r for r in rows if r.exact]
    wrong = [r for r in rows if not r.exact]
    known = sorted({r.circumstances for r in rows if r.circumstances is not None})
    ratio = None
    if right and wrong and (mean := fmean(r.thinking_tokens for r in right)):
        ratio = fmean(r.thinking_tokens for r in wrong) / mean
    return {
        "by_correctness": {
            name: _lengths(side) for name, side in (("right", right), ("wrong", wrong)) if side
        },
        "overthinking": ratio,
        "by_circumstances": [
            _by_circumstances(count, [r for r in rows if r.circumstances == count])
            for count in known
        ],
    }


def describe_obedience(rows: Sequence[LengthRow]) -> list[dict[str, Any]]:
    """One row a stated budget: how long the thinking was, and how often it ended by it unforced."""
    levels = sorted({r.stated_budget for r in rows if r.stated_budget is not None})
    table = []
    for level in levels:
        members = [r for r in rows if r.stated_budget == level]
        within = sum(r.thinking_tokens <= level and not r.cut for r in members)
        table.append(
            {
                "budget": level,
                **_lengths(members),
                "within": within / len(members),
                "exact": fmean(r.exact for r in members),
            }
        )
    return table


def obedience_of_evaluation(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same table from the budgets of an evaluation report.

    It says what the model does by itself only where the evaluation enforced a wider limit than it
    stated (`thinking_limit`). Raises ValueError when the report lacks a column.
    """
    columns = {
        "budget": "budget",
        "n": "n",
        "mean": "mean_thinking",
        "p95": "p95_thinking",
        "within": "within",
        "exact": "exact",
    }
    missing = {old for row in report["by_budget"] for old in columns.values() if old not in row}
    if missing:
        raise ValueError(
            f"the report's budgets lack {', '.join(sorted(missing))}: evaluate the model again"
        )
    return [{new: row[old] for new, old in columns.items()} for row in report["by_budget"]]


def render_markdown(figures: Mapping[str, Any]) -> str:
    """The tables as a page of Markdown; a table without rows is left out."""
    parts = []
    if sides := figures["by_correctness"]:
        rows = [{"verdict": name, **side} for name, side in sides.items()]
        parts.append("## Thinking tokens by correctness\n\n" + _table(rows))
    if (ratio := figures["overthinking"]) is not None:
        parts.append(f"Wrong verdicts take {ratio:.2f} times the thinking of right ones.")
    if rows := figures["by_circumstances"]:
        parts.append("## Thinking tokens by number of circumstances\n\n" + _table(rows))
    if rows := figures["obedience"]:
        parts.append("## Thinking tokens under a stated budget\n\n" + _table(rows))
    return "\n\n".join(parts) + "\n"


def _lengths(rows: Sequence[LengthRow]) -> dict[str, Any]:
    statistics = length_statistics([r.thinking_tokens for r in rows])
    return {"n": len(rows), **statistics}


def _by_circumstances(count: int, rows: Sequence[LengthRow]) -> dict[str, Any]:
    right = [r.thinking_tokens for r in rows if r.exact]
    wrong = [r.thinking_tokens for r in rows if not r.exact]
    return {
        "circumstances": count,
        **_lengths(rows),
        "right_mean": fmean(right) if right else None,
        "wrong_mean": fmean(wrong) if wrong else None,
        "exact": len(right) / len(rows),
    }


SHARES = frozenset({"exact", "within"})


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names)]
    lines += [[_cell(name, row[name]) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(name: str, value: float | str | None) -> str:
    if value is None:
        return "–"
    if name in SHARES:
        return f"{value:.1%}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run(LengthFiguresConfig, main)
