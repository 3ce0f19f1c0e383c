"""Groups of candidates from GRPO runs, from files of rows and from public datasets.

Three shapes of public datasets are known by their columns:

- wide: a prompt with `response_1..N` and, where scored, `reward_1..N` or `score_1..N`, and
  `response_i_model`;
- long: rows of prompt, response and reward; neighbours with the same prompt are a group;
- preference: `chosen` and `rejected`, as text, chat messages or lists of texts, with or without
  `prompt`, and `chosen_model`.

An `instruction` is asked together with its `input`. Rows without a prompt or a response are left
out; a reward that is not finite is none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pydantic import model_validator

from curt.corpus.read.files import read_head
from curt.files import read_rows
from train.data.candidates import FIELDS, Candidate, SourceConfig
from train.data.trajectories import Rollout, iterate_groups

PROMPTS = ("prompt", "instruction", "question", "query", "problem", "conversations")
RESPONSES = ("response", "completion", "answer", "output", "generation")
REWARDS = ("reward", "score", "rating")
SUFFIXES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}

_NUMBERED = re.compile(r"response_(\d+)")
_OWN = ("prompt", "completion", "reward", "exact", "thinking_tokens", "checkpoint_sha256")
_REWARDS = {"reward_raw": "raw", "reward_weighted": "weighted"}


class TableConfig(SourceConfig):
    """Base of the commands that make a file of rows from logged or public completions."""

    out: Path
    """File to write: .parquet or .jsonl."""

    @model_validator(mode="after")
    def _one_source_and_a_known_format(self) -> Self:
        if bool(self.trajectories) == (self.dataset is not None):
            raise ValueError("give --trajectories or --dataset, and not both")
        if self.out.suffix not in (".parquet", ".jsonl"):
            raise ValueError(f"out {self.out}: end its name in .parquet or .jsonl")
        return self


def read_source(config: SourceConfig) -> Iterator[list[Candidate]]:
    """Groups of the configured dataset or runs.

    A file of rows that `curt.files.write_rows` wrote keeps all of its columns.
    """
    if config.dataset is not None:
        own = read_own(Path(config.dataset))
        yield from read_public(config.dataset) if own is None else own
        return
    for folder in config.trajectories:
        yield from from_rollouts(iterate_groups(folder))


def from_rollouts(groups: Iterable[Sequence[Rollout]]) -> Iterator[list[Candidate]]:
    """Groups of a GRPO run; rewards become columns `raw_charge`, `weighted_charge`."""
    for group in groups:
        yield [_from_rollout(rollout) for rollout in group]


def _from_rollout(rollout: Rollout) -> Candidate:
    row = asdict(rollout)
    columns = {name: row[name] for name in row if name not in (*_OWN, *_REWARDS)}
    for name, prefix in _REWARDS.items():
        columns |= {f"{prefix}_{reward}": value for reward, value in row[name].items()}
    return Candidate(
        prompt=rollout.prompt,
        completion=rollout.completion,
        reward=rollout.reward,
        exact=bool(rollout.exact),
        thinking_tokens=rollout.thinking_tokens,
        source=f"{rollout.checkpoint_sha256[:12]}+{rollout.step - 1}",
        columns=columns,
    )


def from_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Candidate]]:
    """Groups of candidates from rows of `Candidate.to_row`; inverse of it.

    Neighbours of one prompt are a group, or those of one step and group where rows name them.
    """

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return row["prompt"], row.get("step"), row.get("group")

    for _, members in groupby(rows, key=key):
        yield [
            Candidate(
                **{name: row[name] for name in FIELDS},
                columns={name: value for name, value in row.items() if name not in FIELDS},
            )
            for row in members
        ]


def read_own(path: Path) -> Iterator[list[Candidate]] | None:
    """Groups of a file of such rows (.jsonl or .parquet); None when it is no such file."""
    if not path.is_file() or path.suffix not in (".jsonl", ".parquet"):
        return None
    rows = read_rows(path)
    first = next(rows, None)
    if first is None or not set(FIELDS) <= first.keys():
        return None
    return from_rows(chain([first], rows))


def read_public(name: str, split: str = "train") -> Iterator[list[Candidate]]:
    """Groups of a local .jsonl, .json, .csv or .parquet file, or of a dataset on the hub, streamed.

    Raises ValueError when the file is of no known kind or the columns of no known shape, or when
    a file is broken.
    """
    from datasets import load_dataset

    path = Path(name)
    if path.suffix in SUFFIXES or path.exists():
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{name}: give a file ending in {', '.join(SUFFIXES)}, or a hub id")
        if not path.is_file():
            raise ValueError(f"{name} is not there: give a file or a hub id")
        read_head(path)
    try:
        if kind := SUFFIXES.get(path.suffix):
            rows = load_dataset(kind, data_files=str(path), split="train", streaming=True)
        else:
            rows = load_dataset(name, split=split, streaming=True)
        yield from group_rows(rows)
    except pa.ArrowException as error:
        raise ValueError(f"{name} can't be read ({error}): give a whole file") from error


def group_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Candidate]]:
    """Groups of candidates from rows of any known shape; the first row decides which."""
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return
    everything = chain([first], rows)
    prompt = _first(PROMPTS, first)
    response = _first(RESPONSES, first)
    if {"chosen", "rejected"} <= first.keys():
        for row in _filled(everything, *filter(None, ("chosen", "rejected", prompt))):
            yield _from_preference(row, prompt)
    elif prompt and any(_NUMBERED.fullmatch(name) for name in first):
        for row in _filled(everything, prompt):
            yield _from_wide(row, prompt)
    elif prompt and response:
        whole = _filled(everything, prompt, response)
        for _, members in groupby(whole, key=lambda row: _asked(row, prompt)):
            yield [_from_long(row, prompt, response) for row in members]
    else:
        raise ValueError(
            f"columns {sorted(first)} are of no known shape: need a prompt ({', '.join(PROMPTS)}) "
            "with response_1..N, or with one response and its reward, or chosen and rejected"
        )


def _filled(rows: Iterable[Mapping[str, Any]], *names: str) -> Iterator[Mapping[str, Any]]:
    return (row for row in rows if all(row[name] is not None for name in names))


def _from_wide(row: Mapping[str, Any], prompt: str) -> list[Candidate]:
    numbers = sorted(int(match[1]) for name in row if (match := _NUMBERED.fullmatch(name)))
    return [
        Candidate(
            prompt=_asked(row, prompt),
            completion=_text(row[f"response_{number}"]),
            reward=_number(row.get(f"reward_{number}", row.get(f"score_{number}"))),
            source=str(row.get(f"response_{number}_model") or ""),
        )
        for number in numbers
        if row[f"response_{number}"] is not None
    ]


def _from_long(row: Mapping[str, Any], prompt: str, response: str) -> Candidate:
    reward = _first(REWARDS, row)
    return Candidate(
        prompt=_asked(row, prompt),
        completion=_text(row[response]),
        reward=_number(row[reward]) if reward else None,
        source=str(row.get("model") or row.get("source") or ""),
    )


def _from_preference(row: Mapping[str, Any], prompt: str | None) -> list[Candidate]:
    chosen = row["chosen"]
    if prompt is None and isinstance(chosen, list) and not all(isinstance(c, str) for c in chosen):
        text = _text(chosen[:-1], "chosen")  # all but the last message is what was asked
    else:
        text = _asked(row, prompt) if prompt else ""
    return [
        Candidate(text, answer, reward, source=str(row.get(f"{role}_model") or ""))
        for role, reward in (("chosen", 1.0), ("rejected", 0.0))
        for answer in _answers(row[role], role)
    ]


def _asked(row: Mapping[str, Any], prompt: str) -> str:
    """The prompt; an Alpaca instruction with the input it is about."""
    given = row.get("input") if prompt == "instruction" else None
    return "\n".join(_text(part) for part in (row[prompt], given) if part)


def _answers(value: Any, role: str) -> list[str]:
    """One answer, of chat messages the last; or each text of a list."""
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return value
    return [_text(value[-1:] if isinstance(value, list) else value, role)]


def _text(value: Any, column: str = "prompt") -> str:
    """Text, or the contents of chat messages one after another. Raises ValueError on others."""
    messages = [value] if isinstance(value, dict) else value
    if not isinstance(messages, list):
        return str(value)
    try:
        return "\n".join(str(m["content"] if "content" in m else m["value"]) for m in messages)
    except (KeyError, TypeError):
        raise ValueError(
            f"`{column}` holds neither texts nor chat messages: give a text, a list of texts, or "
            "messages with role and content"
        ) from None


def _number(value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward {value!r} is no number: leave such rows out") from error
    return number if math.isfinite(number) else None


def _first(names: Iterable[str], row: Mapping[str, Any]) -> str | None:
    return next((name for name in names if name in row), None)
