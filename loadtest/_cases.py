"""Which case each arrival brings: a mix by length, every case new to the server."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest._arrivals import number_fact

LENGTHS = ("short", "medium", "long")


@dataclass(frozen=True, slots=True)
class Sent:
    """One request as it goes out; `length` is the bucket its facts fall into."""

    payload: Mapping[str, Any]
    request_id: str
    length: str

    @property
    def deadline_ms(self) -> int:
        """The deadline stated in the payload."""
        return int(self.payload["deadline_ms"])


@dataclass(frozen=True, slots=True)
class CaseMix:
    """Facts by length and how often each length comes; made by `mix_cases`."""

    facts: Mapping[str, Sequence[str]]
    weights: Mapping[str, float]
    bounds_chars: tuple[int, int]
    seed: int

    def request_of(self, index: int, run: int, deadline_ms: int) -> Sent:
        """The `index`-th request of run number `run`: the same for the same seed, never twice.

        The docket number in front of the facts makes the text new to any cache.
        """
        draw = random.Random(f"{self.seed} {index}")
        length = draw.choices(list(self.weights), list(self.weights.values()))[0]
        facts = self.facts[length]
        return Sent(
            {
                "fact": number_fact(facts[draw.randrange(len(facts))], run, index),
                "deadline_ms": deadline_ms,
                "include_reasoning": False,
            },
            f"lt-{run}-{index}",
            length,
        )

    def describe(self) -> dict[str, Any]:
        """What a report says of the mix; no text of a case."""
        total = sum(self.weights.values())
        return {
            "short_up_to_chars": self.bounds_chars[0],
            "medium_up_to_chars": self.bounds_chars[1],
            "shares": {name: weight / total for name, weight in self.weights.items()},
            "cases": {name: len(self.facts[name]) for name in self.weights},
        }


def parse_mix(text: str) -> dict[str, float]:
    """Weights by length from "short:50,medium:40,long:10"; empty for an empty text.

    Raises ValueError naming the part that can't be read.
    """
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = part.partition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = -1.0
        if name not in LENGTHS or name in weights or not 0 <= weight < float("inf"):
            raise ValueError(f"mix {part!r}: use for example short:50,medium:40,long:10")
        weights[name] = weight
    if weights and not sum(weights.values()) > 0:
        raise ValueError(f"mix {text!r} brings no cases: let one weight be more than 0")
    return {name: weight for name, weight in weights.items() if weight}


def parse_bounds(text: str) -> tuple[int, int] | None:
    """Two lengths in characters from "100,300"; None for an empty text.

    Raises ValueError when it is anything else.
    """
    if not text:
        return None
    try:
        short, medium = (int(part) for part in text.split(","))
    except ValueError:
        short, medium = 1, 0
    if not 0 < short <= medium:
        raise ValueError(f"length bounds {text!r}: use two rising lengths such as 100,300")
    return short, medium


def mix_cases(
    facts: Sequence[str],
    seed: int,
    *,
    weights: Mapping[str, float] | None = None,
    bounds_chars: tuple[int, int] | None = None,
) -> CaseMix:
    """Sort facts into short, medium and long, and weigh the three.

    Without `weights` lengths come as they are found; without `bounds_chars` the corpus is cut
    into thirds. Raises ValueError where a length with a weight has no case, or without facts.
    """
    if not facts:
        raise ValueError("no cases to mix: give a corpus with at least one")
    lengths = sorted(len(fact) for fact in facts)
    last = len(lengths) - 1
    short, medium = bounds_chars or (lengths[last // 3], lengths[2 * last // 3])
    by_length: dict[str, list[str]] = {name: [] for name in LENGTHS}
    for fact in facts:
        by_length[LENGTHS[(len(fact) > short) + (len(fact) > medium)]].append(fact)
    found = {name: float(len(rows)) for name, rows in by_length.items() if rows}
    for name in weights or {}:
        if name not in found:
            raise ValueError(
                f"the mix asks for {name} cases and the corpus has none (short up to {short} "
                f"characters, medium up to {medium}): set --length-bounds or another --mix"
            )
    return CaseMix(by_length, dict(weights) if weights else found, (short, medium), seed)
