"""Single tasks from whole cases: charge, article, term, ruling, and the verdict that joins them.

    python -m curt.corpus tasks --corpus artifacts/demo/corpus --out artifacts/tasks \
        --train 4000 --test 1000

A row is `{id, task, instruction, fact, answer}`. Answers are lines of the answer grammar in
`curt.dialogue`, the ruling is the operative part of a judgment. By default every case gives a row
of each task, so 4,000 rows over four tasks take 1,000 cases.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import Field, field_validator

from curt.config import Config
from curt.corpus.case import Case
from curt.corpus.store import find_cases, read_cases
from curt.dialogue import (
    PROMPT_VERSION,
    TASK_INSTRUCTIONS,
    normalise_fact,
    render_answer,
    render_ruling,
)
from curt.dialogue.answer import ARTICLES_LINE, CHARGES_LINE, PROBATION_LINE, TERM_LINE
from curt.files import sha256, whole_folder, write_json, write_rows
from curt.law.verdict import COUNTED_KINDS, Term, Verdict

logger = logging.getLogger(__name__)

Task = Literal["charge", "article", "term", "ruling", "verdict"]
TaskRow = dict[str, str]
Member = TypeVar("Member")

TASKS: tuple[Task, ...] = get_args(Task)
COLUMNS = ("id", "task", "instruction", "fact", "answer")
TERM_STEPS_MONTHS = (6, 12, 36, 60, 120)
"""Upper ends of the bins that counted terms fall into; one more is open."""

_FIELDS: Mapping[Task, tuple[str, ...]] = {
    "charge": (CHARGES_LINE.name,),
    "article": (ARTICLES_LINE.name,),
    "term": (TERM_LINE.name, PROBATION_LINE.name),
}


class TasksConfig(Config):
    """Sets of single tasks, drawn from a corpus."""

    corpus: Path
    """Corpus folder with train and test cases, or one case file to draw both sets from."""
    out: Path
    """Folder to write the sets and manifest.json into."""
    train: int = Field(4000, ge=1)
    """Training rows in all."""
    test: int = Field(1000, ge=1)
    """Test rows in all."""
    tasks: list[Task] = ["charge", "article", "term", "ruling"]
    """Tasks, in equal parts: some of charge, article, term, ruling, verdict."""
    every_task: bool = True
    """Give each case as every task; otherwise each case gives one row."""
    format: Literal["jsonl", "parquet"] = "jsonl"
    """Format of the sets."""
    seed: int = 7

    @field_validator("tasks")
    @classmethod
    def _distinct(cls, tasks: list[Task]) -> list[Task]:
        if not tasks or len(set(tasks)) < len(tasks):
            raise ValueError(f"tasks {tasks}: give at least one, and each once")
        return tasks


def write_tasks(config: TasksConfig) -> None:
    """Make the sets and say what they hold. Raises ValueError on bad input."""
    manifest = build_tasks(config)
    for name, counts in manifest["sets"].items():
        logger.info(
            "%s: %d rows of %d cases in %d strata, %s",
            name, counts["rows"], counts["cases"], len(counts["strata"]), counts["tasks"],
        )  # fmt: skip


def build_task(case: Case, task: Task) -> TaskRow:
    """A row of one task; its id is the case's with the task behind it."""
    return {
        "id": f"{case.id}/{task}",
        "task": task,
        "instruction": TASK_INSTRUCTIONS[task],
        "fact": normalise_fact(case.fact),
        "answer": render_task_answer(case.verdict, task),
    }


def render_task_answer(verdict: Verdict, task: Task) -> str:
    """What a task asks of a verdict, in the answer grammar; the ruling in words."""
    if task == "ruling":
        return render_ruling(verdict)
    answer = render_answer(verdict)
    if task == "verdict":
        return answer
    lines = [line for line in answer.splitlines() if line.partition("：")[0] in _FIELDS[task]]
    return "\n".join(lines)


def build_tasks(config: TasksConfig) -> dict[str, Any]:
    """Write train and test sets and the manifest, all or nothing, and return the manifest.

    Cases with the same facts count once, and no facts stand in both sets. Raises ValueError when
    the corpus is too small or rows can't be shared out in equal parts.
    """
    needed = {name: _count_cases(name, rows, config) for name, rows in _sizes(config).items()}
    files = _case_files(config.corpus)
    chosen = _draw(files, needed, config.seed)
    manifest: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "prompt_version": PROMPT_VERSION,
        "corpus_files": {str(file): sha256(file) for file in sorted(set(files.values()))},
        "sets": {},
        "files": {},
    }
    with whole_folder(config.out) as folder:
        for name in ("train", "test"):
            cases = list(_pick(files[name], chosen[name]))
            rows = list(_to_rows(cases, config, name))
            path = folder / f"{name}.{config.format}"
            write_rows(path, rows, compression="zstd")
            manifest["sets"][name] = _count(rows, cases)
            manifest["files"][path.name] = sha256(path)
        write_json(folder / "manifest.json", manifest)
    return manifest


def term_bin(term: Term) -> str:
    """The bin of a principal penalty: "to 36 months", "over 120 months", or its kind."""
    if term.kind not in COUNTED_KINDS:
        return term.kind
    step = next((step for step in TERM_STEPS_MONTHS if term.months <= step), None)
    return f"to {step} months" if step else f"over {TERM_STEPS_MONTHS[-1]} months"


def stratum_of(verdict: Verdict) -> str:
    """The first charge and the bin of the term."""
    return f"{verdict.charges[0]} {term_bin(verdict.term)}"


def share_seats(sizes: Mapping[str, int], seats: int) -> dict[str, int]:
    """How many of `seats` each stratum gets: one each, the rest in proportion (Sainte-Laguë).

    Where seats are fewer than strata, the largest get one each. Raises ValueError when there are
    more seats than members.
    """
    if seats > sum(sizes.values()):
        raise ValueError(f"{seats} seats for {sum(sizes.values())} members: give fewer seats")
    order = sorted((name for name in sizes if sizes[name]), key=lambda name: (-sizes[name], name))
    shares = dict.fromkeys(sizes, 0) | dict.fromkeys(order[:seats], 1)
    # A stratum's claim to its next seat is its size over twice the seats it has and one.
    claims = [(-sizes[name] / 3, name) for name in order]
    heapq.heapify(claims)
    for _ in range(seats - sum(shares.values())):
        while True:
            _, name = heapq.heappop(claims)
            if shares[name] < sizes[name]:
                break
        shares[name] += 1
        heapq.heappush(claims, (-sizes[name] / (2 * shares[name] + 1), name))
    return shares


def draw_stratified(
    strata: Mapping[str, Sequence[Member]], count: int, rng: random.Random
) -> list[Member]:
    """Draw `count` members without repeats, shared out over the strata by `share_seats`."""
    shares = share_seats({name: len(members) for name, members in strata.items()}, count)
    return [m for name in sorted(strata) for m in rng.sample(strata[name], shares[name])]


def _sizes(config: TasksConfig) -> dict[str, int]:
    return {"test": config.test, "train": config.train}


def _count_cases(name: str, rows: int, config: TasksConfig) -> int:
    if rows % len(config.tasks):
        raise ValueError(
            f"{rows} {name} rows over {len(config.tasks)} tasks are no equal parts: give a "
            f"multiple of {len(config.tasks)}"
        )
    return rows // len(config.tasks) if config.every_task else rows


def _case_files(corpus: Path) -> dict[str, Path]:
    if corpus.is_file():
        return {"train": corpus, "test": corpus}
    if not corpus.is_dir():
        raise ValueError(f"no corpus {corpus}: make one with `python -m curt.corpus build`")
    return {name: find_cases(corpus, name) for name in ("train", "test")}


def _draw(files: Mapping[str, Path], needed: Mapping[str, int], seed: int) -> dict[str, set[int]]:
    """Line numbers of the cases of each set. The test set is drawn first and keeps its facts."""
    taken: set[bytes] = set()
    chosen: dict[str, set[int]] = {}
    for name, count in needed.items():
        strata: dict[str, list[tuple[bytes, int]]] = {}
        seen = set(taken)
        for number, case in enumerate(read_cases(files[name])):
            digest = hashlib.sha256(normalise_fact(case.fact).encode()).digest()[:16]
            if digest not in seen:
                seen.add(digest)
                strata.setdefault(stratum_of(case.verdict), []).append((digest, number))
        available = sum(map(len, strata.values()))
        if available < count:
            raise ValueError(
                f"{files[name]} has {available} cases with facts of their own for the {name} set "
                f"and {count} are needed: ask for fewer --{name} rows or build a larger corpus"
            )
        drawn = draw_stratified(strata, count, random.Random(f"{seed}:{name}"))
        chosen[name] = {number for _, number in drawn}
        taken |= {digest for digest, _ in drawn}
    return chosen


def _pick(file: Path, numbers: set[int]) -> Iterator[Case]:
    return (case for number, case in enumerate(read_cases(file)) if number in numbers)


def _to_rows(cases: Iterable[Case], config: TasksConfig, name: str) -> Iterator[TaskRow]:
    shuffled = list(cases)
    random.Random(f"{config.seed}:{name}:order").shuffle(shuffled)
    for number, case in enumerate(shuffled):
        own = config.tasks if config.every_task else [config.tasks[number % len(config.tasks)]]
        yield from (build_task(case, task) for task in own)


def _count(rows: Sequence[TaskRow], cases: Sequence[Case]) -> dict[str, Any]:
    def ordered(counts: Counter[str]) -> dict[str, int]:
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    strata = Counter(stratum_of(case.verdict) for case in cases)
    return {
        "rows": len(rows),
        "cases": len(cases),
        "tasks": dict(Counter(row["task"] for row in rows)),
        "charges": ordered(Counter(c for case in cases for c in case.verdict.charges)),
        "terms": ordered(Counter(term_bin(case.verdict.term) for case in cases)),
        "strata": ordered(strata),
    }
