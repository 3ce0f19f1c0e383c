"""What is counted in an hour or a day, in bounded memory, and the mix of a training corpus."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, RootModel, ValidationError
from pydantic.dataclasses import dataclass

from curt.config import FrozenModel
from curt.corpus.store import read_cases
from curt.law.statutes import CHARGES

HOUR_S, DAY_S = 3_600, 86_400
OTHER = "其他"  # stands for unknown charges, so that no text of a client becomes a label

# Upper bounds; a value beyond the last falls into one more bin.
FACT_CHARS = (50, 100, 150, 200, 300, 400, 500, 700, 1000, 1500, 2000, 3000, 5000, 10_000)
THINKING_TOKENS = (0, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)
LATENCY_MS = (
    10, 25, 50, 75, 100, 150, 200, 250, 300, 350, 375, 400, 425, 450, 500, 750, 1000, 2000, 5000,
)  # fmt: skip


@dataclass(slots=True)
class BinnedCounts:
    """A histogram with fixed bounds, and the sum of what fell into it."""

    bounds: Annotated[tuple[int, ...], Field(exclude=True)]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)
        if len(self.counts) != len(self.bounds) + 1:
            raise ValueError(f"{len(self.counts)} bins for {len(self.bounds)} bounds")

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def merge(self, other: BinnedCounts) -> None:
        """Add another's counts."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def quantile(self, share: float) -> float | None:
        """Value below which that share lies, linear within a bin; None where there is none.

        What lies beyond the last bound counts as that bound.
        """
        wanted = share * sum(self.counts)
        if not wanted:
            return None
        passed = 0
        for position, count in enumerate(self.counts[:-1]):
            if count and passed + count >= wanted:
                low = self.bounds[position - 1] if position else 0
                return low + (self.bounds[position] - low) * (wanted - passed) / count
            passed += count
        return float(self.bounds[-1])


@dataclass(slots=True)
class DriftTally:
    """What is counted of the answers and the feedback of some span of time."""

    answers: int = 0
    degraded: int = 0
    feedback: int = 0
    wrong: int = 0
    charges: Counter[str] = field(default_factory=Counter)
    fact_chars: BinnedCounts = field(default_factory=lambda: BinnedCounts(FACT_CHARS))
    thinking_tokens: BinnedCounts = field(default_factory=lambda: BinnedCounts(THINKING_TOKENS))
    latency_ms: BinnedCounts = field(default_factory=lambda: BinnedCounts(LATENCY_MS))

    def add_answer(
        self,
        charges: Sequence[str],
        fact_chars: int,
        thinking_tokens: int,
        total_ms: float,
        *,
        degraded: bool,
    ) -> None:
        """Count an answer."""
        self.answers += 1
        self.degraded += degraded
        for charge in charges:
            self.charges[charge if charge in CHARGES else OTHER] += 1
        self.fact_chars.add(fact_chars)
        self.thinking_tokens.add(thinking_tokens)
        self.latency_ms.add(total_ms)

    def add_feedback(self, *, is_wrong: bool) -> None:
        """Count one piece of feedback."""
        self.feedback += 1
        self.wrong += is_wrong

    def shares(self) -> dict[str, float | None]:
        """The headline figures; None where nothing was counted."""
        answers = self.answers
        p99_ms = self.latency_ms.quantile(0.99)
        return {
            "answers": float(answers),
            "degraded_share": self.degraded / answers if answers else None,
            "fact_chars_median": self.fact_chars.quantile(0.5),
            "thinking_tokens_mean": self.thinking_tokens.total / answers if answers else None,
            "latency_p99_seconds": None if p99_ms is None else p99_ms / 1e3,
            "wrong_share": self.wrong / self.feedback if self.feedback else None,
        }

    @classmethod
    def sum(cls, tallies: Iterable[DriftTally]) -> DriftTally:
        """Several spans as one."""
        whole = cls()
        for tally in tallies:
            for name in _NUMBERS:
                setattr(whole, name, getattr(whole, name) + getattr(tally, name))
            whole.charges.update(tally.charges)
            for name in _SPREADS:
                getattr(whole, name).merge(getattr(tally, name))
        return whole

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable row; see `from_json`."""
        row: dict[str, Any] = RootModel(self).model_dump()
        return row

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> DriftTally:
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError on a malformed row."""
        spreads = {name: BinnedCounts(bounds, **row[name]) for name, bounds in _SPREADS.items()}
        return cls(**row | spreads)


_NUMBERS = ("answers", "degraded", "feedback", "wrong")
_SPREADS = {
    "fact_chars": FACT_CHARS,
    "thinking_tokens": THINKING_TOKENS,
    "latency_ms": LATENCY_MS,
}


class ChargeMix(FrozenModel):
    """What a training corpus holds: cases a charge (all of several charges), lengths of facts."""

    cases: int
    charges: dict[str, NonNegativeInt] = Field(min_length=1)
    fact_chars_median: float | None


def read_mix(path: Path) -> ChargeMix:
    """A mix made by `python -m serve.drift mix`. Raises ValueError or OSError when it is none."""
    try:
        return ChargeMix.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(
            f"{path} holds no mix of charges: make it with `python -m serve.drift mix`"
        ) from error


def read_corpus_mix(path: Path) -> ChargeMix:
    """The mix of a case file. Raises ValueError when it is none, or empty."""
    tally = DriftTally()
    for case in read_cases(path):
        tally.add_answer(case.verdict.charges, len(case.fact), 0, 0.0, degraded=False)
    if not tally.answers:
        raise ValueError(f"{path} holds no cases: give the training split")
    median = tally.fact_chars.quantile(0.5)
    return ChargeMix(
        cases=tally.answers, charges=dict(tally.charges.most_common()), fact_chars_median=median
    )
