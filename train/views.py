"""Views of logged completions as datasets to train on.

    python -m train.views --trajectories '["artifacts/demo/grpo-default.run/trajectories"]' \
        --view shortest --out artifacts/views/shortest.parquet
    python -m train.views --dataset public.jsonl --view pairs --out pairs.jsonl \
        --filters '{"thinking_tokens": {"max": 64}}'

| view | a row |
|---|---|
| long | a completion, with every reward in a column of its own |
| wide | a prompt with `response_1..N`, `response_1_model..`, `reward_1..N`, the best first |
| best | the best completion of a prompt (RAFT, arXiv 2304.06767) |
| shortest | the shortest right completion of a prompt; none where none is right |
| pairs | `prompt`, `chosen`, `rejected`, as preference trainers read them |
| negatives | a wrong completion, with its rewards |
"""

from __future__ import annotations

import io
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from curt.config import Config, load_config
from curt.files import write_atomic
from curt.logs import configure_logging
from train.candidates import Candidate, CandidateGroup, Range, from_rollouts, select

logger = logging.getLogger(__name__)

View = Literal["long", "wide", "best", "shortest", "pairs", "negatives"]
Pairing = Literal["reward", "length"]


class ViewConfig(Config):
    """What to read, which rows to make of it."""

    trajectories: list[Path] = []
    """Folders of GRPO runs."""
    dataset: str | None = None
    """A public dataset in their place: a file, or a hub id; see `train.public_datasets`."""
    view: View
    """long, wide, best, shortest, pairs or negatives."""
    out: Path
    """File to write: .parquet or .jsonl."""
    filters: dict[str, Range] = {}
    """Bounds on columns, before the view is made: {"raw_format": {"min": 1}}."""
    pairing: Pairing = "reward"
    """Pairs: the best against the worst, or the shortest right against the longest right."""
    min_margin: float = Field(0.0, ge=0)
    """Pairs: by how much the chosen reward must be above the rejected one."""
    dedup: bool = False
    """Keep one row a prompt, the one with most reward, however often it was sampled."""

    @model_validator(mode="after")
    def _one_source(self) -> ViewConfig:
        if bool(self.trajectories) == (self.dataset is not None):
            raise ValueError("give --trajectories or --dataset, and not both")
        if self.out.suffix not in (".parquet", ".jsonl"):
            raise ValueError(f"out {self.out}: end its name in .parquet or .jsonl")
        return self


def main() -> None:
    """Write a view; exits with a message on bad input."""
    config = load_config(ViewConfig)
    configure_logging()
    try:
        count = write_view(config)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    logger.info("%d rows in %s", count, config.out)


def write_view(config: ViewConfig) -> int:
    """Write the configured view in one go and return its number of rows.

    Raises ValueError when the source can't be read or nothing is left of it.
    """
    groups = select(read_groups(config), config.filters)
    rows = list(make_view(config, groups))
    if config.dedup:
        rows = drop_repeats(rows)
    if not rows:
        raise ValueError(f"no row is left for the view {config.view}: widen the filters")
    write_rows(config.out, rows)
    return len(rows)


def read_groups(config: ViewConfig) -> Iterator[list[Candidate]]:
    """The configured source, group by group."""
    if config.dataset is not None:
        from train.public_datasets import read_public

        yield from read_public(config.dataset)
        return
    from train.trajectories import iterate_groups

    for folder in config.trajectories:
        yield from from_rollouts(iterate_groups(folder))


def make_view(config: ViewConfig, groups: Iterable[CandidateGroup]) -> Iterator[dict[str, Any]]:
    """Rows of the configured view, in the order of the groups."""
    if config.view == "pairs":
        for group in groups:
            yield from pairs(group, config.pairing, config.min_margin)
    else:
        rows_of = VIEWS[config.view]
        for group in groups:
            yield from rows_of(group)


def long(group: CandidateGroup) -> list[dict[str, Any]]:
    """Every completion."""
    return [candidate.to_row() for candidate in group]


def wide(group: CandidateGroup) -> list[dict[str, Any]]:
    """One row, the best response first; those without a reward come last."""
    row: dict[str, Any] = {"prompt": group[0].prompt}
    for number, candidate in enumerate(_ranked(group), start=1):
        row[f"response_{number}"] = candidate.completion
        row[f"response_{number}_model"] = candidate.source
        row[f"reward_{number}"] = candidate.reward
    return [row]


def best(group: CandidateGroup) -> list[dict[str, Any]]:
    """The completion with most reward, the shorter one of equals; none without rewards."""
    first = _ranked(group)[0]
    return [] if first.reward is None else [first.to_row()]


def shortest(group: CandidateGroup) -> list[dict[str, Any]]:
    """The right completion with the fewest thinking tokens."""
    right = [c for c in group if c.exact and c.thinking_tokens is not None]
    return [min(right, key=_length).to_row()] if right else []


def negatives(group: CandidateGroup) -> list[dict[str, Any]]:
    """Completions known to be wrong."""
    return [candidate.to_row() for candidate in group if candidate.exact is False]


def pairs(group: CandidateGroup, pairing: Pairing, min_margin: float) -> list[dict[str, Any]]:
    """At most one pair: best and worst by reward, or shortest and longest of the right ones.

    Under "length" the margin is in tokens.
    """
    if pairing == "length":
        right = [c for c in group if c.exact and c.thinking_tokens is not None]
        if len(right) < 2:
            return []
        chosen, rejected = min(right, key=_length), max(right, key=_length)
        margin: float = _length(rejected) - _length(chosen)
    else:
        scored = [c for c in _ranked(group) if c.reward is not None]
        if len(scored) < 2:
            return []
        chosen, rejected = scored[0], scored[-1]
        margin = _reward(chosen) - _reward(rejected)
    if margin <= 0 or margin < min_margin:
        return []
    return [
        {
            "prompt": chosen.prompt,
            "chosen": chosen.completion,
            "rejected": rejected.completion,
            "chosen_reward": chosen.reward,
            "rejected_reward": rejected.reward,
            "chosen_thinking_tokens": chosen.thinking_tokens,
            "rejected_thinking_tokens": rejected.thinking_tokens,
        }
    ]


VIEWS: dict[str, Callable[[CandidateGroup], list[dict[str, Any]]]] = {
    "long": long,
    "wide": wide,
    "best": best,
    "shortest": shortest,
    "negatives": negatives,
}


def drop_repeats(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a prompt: the one with most reward, the earliest of equals."""
    kept: dict[str, dict[str, Any]] = {}
    for row in rows:
        before = kept.get(row["prompt"])
        if before is None or _worth(row) > _worth(before):
            kept[row["prompt"]] = row
    return list(kept.values())


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a table in one go; columns that some rows lack are empty there."""
    if path.suffix == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        write_atomic(path, "".join(f"{line}\n" for line in lines))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(Counter(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_atomic(path, buffer.getvalue())


def _ranked(group: CandidateGroup) -> list[Candidate]:
    """Most reward first, shorter thinking first among equals, no reward last."""
    return sorted(group, key=lambda c: (c.reward is None, -_reward(c), _length(c)))


def _reward(candidate: Candidate) -> float:
    return 0.0 if candidate.reward is None else candidate.reward


def _length(candidate: Candidate) -> int:
    return 0 if candidate.thinking_tokens is None else candidate.thinking_tokens


def _worth(row: dict[str, Any]) -> float:
    known = (row.get(name) for name in ("reward", "reward_1", "chosen_reward"))
    return next((value for value in known if value is not None), float("-inf"))


if __name__ == "__main__":
    main()
