"""What a server wrote down of feedback, read back: the last word on each answer, and the facts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curt.law.verdict import Verdict

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Feedback:
    """The last word on one answer."""

    answer_id: str
    request_id: str
    at_s: float
    is_correct: bool
    correction: Verdict | None
    answered: Verdict | None
    source: str
    """Who gave the verdict: "model" or "fallback"."""
    model: str
    stated_budget: int
    thinking_tokens: int
    prompt_version: str

    @property
    def truth(self) -> Verdict | None:
        """The verdict that is right, as far as was said."""
        return self.answered if self.is_correct else self.correction


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact, and the reasoning that was told on it; none where that was not kept."""

    text: str
    thinking: str | None


def find_files(sources: Iterable[Path]) -> list[Path]:
    """The files of feedback in the order they were written. Raises ValueError where one is none."""
    files = []
    for source in sources:
        if source.is_dir():
            full = sorted(source.glob("feedback-[0-9]*.jsonl"), key=lambda p: (len(p.name), p.name))
            last = source / "feedback.jsonl"
            found = full + ([last] if last.is_file() else [])
            if not found:
                raise ValueError(f"{source} holds no feedback.jsonl: give a server's folder")
            files += found
        elif source.is_file():
            files.append(source)
        else:
            raise ValueError(f"no feedback in {source}: give files or folders that exist")
    return files


def read_latest(files: Iterable[Path], counts: Counter[str]) -> list[Feedback]:
    """The last word on every answer; lines that are none, and earlier words, are counted.

    The later time wins, then the later line.
    """
    latest: dict[str, Feedback] = {}
    for path in files:
        with open(path, "rb") as file:
            for line in file:
                counts["lines"] += 1
                try:
                    feedback = parse_feedback(json.loads(line))
                except (ValueError, KeyError, TypeError):
                    counts["unreadable line"] += 1
                    continue
                earlier = latest.get(feedback.answer_id)
                if earlier:
                    counts["superseded"] += 1
                if earlier is None or feedback.at_s >= earlier.at_s:
                    latest[feedback.answer_id] = feedback
    return list(latest.values())


def parse_feedback(row: Mapping[str, Any]) -> Feedback:
    """A line of feedback. Raises KeyError, TypeError or ValueError where it is none."""
    if row["schema"] != SCHEMA or row["verdict"] not in ("correct", "wrong"):
        raise ValueError("another schema")
    answer = row["answer"]
    return Feedback(
        answer_id=str(answer["answer_id"]),
        request_id=str(row["request_id"]),
        at_s=float(row["at_s"]),
        is_correct=row["verdict"] == "correct",
        correction=_read_verdict(row["correction"]),
        answered=_read_verdict(answer["verdict"]),
        source=str(answer["source"]),
        model=f"{answer['model']}@{answer['manifest']}",
        stated_budget=int(answer["stated_budget"]),
        thinking_tokens=int(answer["thinking_tokens"]),
        prompt_version=str(answer["prompt_version"]),
    )


def _read_verdict(row: Mapping[str, Any] | None) -> Verdict | None:
    return None if row is None else Verdict.from_json(row)


def read_facts(path: Path | None, wanted: set[str]) -> dict[str, Fact]:
    """The facts that are wanted, by answer id, or by request id where a line has no other.

    Raises ValueError naming the line that can't be read.
    """
    facts: dict[str, Fact] = {}
    if path is None:
        return facts
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                key = str(row.get("answer_id") or row["request_id"])
                fact = Fact(str(row["fact"]), row.get("thinking"))
            except (ValueError, KeyError, AttributeError):
                raise ValueError(
                    f"{path}:{number} is no fact: give lines with request_id and fact"
                ) from None
            if key in wanted:
                facts[key] = fact
    return facts
