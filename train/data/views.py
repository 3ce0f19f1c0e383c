"""Views of logged completions as datasets to train on.

    python -m train.data.views --trajectories '["artifacts/demo/grpo-default.run/trajectories"]' \
        --view shortest --out artifacts/views/shortest.parquet
    python -m train.data.views --dataset public.jsonl --view pairs --out pairs.jsonl \
        --filters '{"thinking_tokens": {"max": 64}}'
    python -m train.data.views --dataset verified.parquet --view shortest --out sft.parquet \
        --verified_only true

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

import logging
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pydantic import Field

from curt.config import run
from curt.files import write_rows
from train.data.candidates import Candidate, CandidateGroup, Range, select
from train.data.sources import TableConfig, read_source
from train.data.verify import keep_verified

logger = logging.getLogger(__name__)

View = Literal["long", "wide", "best", "shortest", "pairs", "negatives"]
Pairing = Literal["reward", "length", "rest"]
_SHARED = ("case_id", "budget", "penalty", "config_sha256")  # by a whole group


class ViewConfig(TableConfig):
    """What to read, which rows to make of it."""

    view: View
    """long, wide, best, shortest, pairs or negatives."""
    filters: dict[str, Range] = {}
    """Bounds on columns, before the view is made: {"raw_format": {"min": 1}}."""
    verified_only: bool = False
    """Keep only completions that are verified, before the view is made; see `train.data.verify`."""
    checks: list[str] = []
    """Keep only completions that fail none of these checks, whatever else they fail."""
    pairing: Pairing = "reward"
    """Pairs: the best against the worst, the shortest right against the longest right, or the
    shortest right against each that is wrong or longer."""
    min_margin: float = Field(0.0, ge=0)
    """Pairs: by how much the chosen reward must be above the rejected one."""
    dedup: bool = False
    """Keep one row a prompt, the one with most reward (least thinking in views about length)."""

    @property
    def by_length(self) -> bool:
        """Whether the view looks for short thinking, not for reward."""
        return self.view == "shortest" or (self.view == "pairs" and self.pairing != "reward")


def main(config: ViewConfig) -> None:
    """Write a view and say how many rows it has."""
    logger.info("%d rows in %s", write_view(config), config.out)


def write_view(config: ViewConfig) -> int:
    """Write the configured view in one go and return its number of rows.

    Raises ValueError when the source can't be read or nothing is left of it.
    """
    groups = read_source(config)
    if config.verified_only or config.checks:
        groups = keep_verified(groups, config.checks)
    rows = list(make_view(config, select(groups, config.filters)))
    if config.dedup:
        rows = drop_repeats(rows, by_length=config.by_length)
    if not rows:
        raise ValueError(f"no row is left for the view {config.view}: widen the filters")
    write_rows(config.out, rows)
    return len(rows)


def make_view(config: ViewConfig, groups: Iterable[CandidateGroup]) -> Iterator[dict[str, Any]]:
    """Rows of the configured view, in the order of the groups.

    Groups that lack every reward are left out of views that rank by it, and counted in the log.
    """
    ranked = config.view in ("wide", "best", "pairs") and not config.by_length
    unrewarded = 0
    for group in groups:
        if ranked and all(candidate.reward is None for candidate in group):
            unrewarded += 1
        elif config.view == "pairs":
            yield from pairs(group, config.pairing, config.min_margin)
        else:
            yield from VIEWS[config.view](group)
    if unrewarded:
        logger.warning("%d groups without any reward are left out", unrewarded)


def long(group: CandidateGroup) -> list[dict[str, Any]]:
    """Every completion."""
    return [candidate.to_row() for candidate in group]


def wide(group: CandidateGroup) -> list[dict[str, Any]]:
    """One row, the best response first; those without a reward come last."""
    row: dict[str, Any] = {"prompt": group[0].prompt, **_shared(group[0])}
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
    return [candidate.to_row() for candidate in _right(group)[:1]]


def negatives(group: CandidateGroup) -> list[dict[str, Any]]:
    """Completions known to be wrong."""
    return [candidate.to_row() for candidate in group if candidate.exact is False]


def pairs(group: CandidateGroup, pairing: Pairing, min_margin: float) -> list[dict[str, Any]]:
    """Best and worst by reward, shortest and longest of the right ones, or shortest and each other.

    But under "reward" the margin is in tokens, and counts between right ones; a pair under "length"
    that the rewards contradict is left out.
    """
    right = _right(group)
    if pairing == "rest":
        longer = [c for c in right if _length(c) > _length(right[0]) + min_margin]
        wrong = [c for c in group if c.exact is False]
        return [_pair(right[0], c) for c in longer + wrong] if right else []
    rewarded = [c for c in _ranked(group) if c.reward is not None]
    ranked = right if pairing == "length" else rewarded
    if len(ranked) < 2:
        return []
    chosen, rejected = ranked[0], ranked[-1]
    gain = _reward(chosen) - _reward(rejected)
    margin = _length(rejected) - _length(chosen) if pairing == "length" else gain
    contradicted = gain < 0 and None not in (chosen.reward, rejected.reward)
    if margin <= 0 or margin < min_margin or contradicted:
        return []
    return [_pair(chosen, rejected)]


def _pair(chosen: Candidate, rejected: Candidate) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": chosen.prompt, **_shared(chosen)}
    row |= {"chosen": chosen.completion, "rejected": rejected.completion}
    for role, candidate in (("chosen", chosen), ("rejected", rejected)):
        row[f"{role}_reward"] = candidate.reward
        row[f"{role}_thinking_tokens"] = candidate.thinking_tokens
        row[f"{role}_model"] = candidate.source
        row[f"{role}_truncated"] = candidate.columns.get("truncated", False)
    return row


VIEWS = {"long": long, "wide": wide, "best": best, "shortest": shortest, "negatives": negatives}


def drop_repeats(
    rows: Iterable[dict[str, Any]], *, by_length: bool = False
) -> list[dict[str, Any]]:
    """One row a known prompt: of most reward, or least thinking; the earliest of equals."""
    kept: dict[str | int, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        key = row["prompt"] or number  # some public pairs come without
        if key not in kept or _worth(row, by_length) > _worth(kept[key], by_length):
            kept[key] = row
    return list(kept.values())


def _ranked(group: CandidateGroup) -> list[Candidate]:
    """Most reward first, shorter thinking first among equals, no reward last."""
    return sorted(group, key=lambda c: (c.reward is None, -_reward(c), _length(c)))


def _right(group: CandidateGroup) -> list[Candidate]:
    """Right completions of known length, the shortest first."""
    return sorted((c for c in group if c.exact and c.thinking_tokens is not None), key=_length)


def _reward(candidate: Candidate) -> float:
    return 0.0 if candidate.reward is None else candidate.reward


def _length(candidate: Candidate) -> int:
    return 0 if candidate.thinking_tokens is None else candidate.thinking_tokens


def _shared(candidate: Candidate) -> dict[str, Any]:
    return {name: candidate.columns[name] for name in _SHARED if name in candidate.columns}


def _worth(row: dict[str, Any], by_length: bool) -> float:
    if by_length:
        return -float(row.get("thinking_tokens", row.get("chosen_thinking_tokens")))
    known = (row.get(name) for name in ("reward", "reward_1", "chosen_reward"))
    return next((value for value in known if value is not None), float("-inf"))


if __name__ == "__main__":
    run(ViewConfig, main)
