"""Which answers may be given again, and to whom: what the cache knows of the values it keeps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from pydantic import TypeAdapter

from curt.dialogue import state_budget
from curt.engines.protocol import Generation
from serve.served import Served

T = TypeVar("T")


class Policy(Protocol[T]):
    """What the cache must know about the values it keeps."""

    def encode(self, value: T) -> bytes:
        """A value that has a level as JSON."""
        ...

    def decode(self, data: bytes) -> T:
        """The value a later request reads. Raises ValueError on JSON of anything else."""
        ...

    def level(self, value: T) -> int | None:
        """The stated budget a value was made with; None for one that must not be kept."""
        ...

    def shareable(self, value: T) -> bool:
        """Whether a concurrent request for the same may have this value too."""
        ...

    def suits(self, value: T, budget_tokens: int, most_tokens: int | None) -> bool:
        """Whether a value answers who would be granted `budget_tokens` and allows `most_tokens`."""
        ...


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What is kept of a served request: all but how long it took and what came of failing."""

    generation: Generation
    thinking_allowed: int
    stated_budget: int
    fact_clipped: bool


_VERDICT = TypeAdapter(_Verdict)


class ServedPolicy:
    """Keeps whole verdicts: nothing degraded, nothing whose thinking was cut."""

    def encode(self, value: Served) -> bytes:
        """The verdict as JSON, with no time spent on it: a later request costs none."""
        generation = replace(value.generation, prefill_ms=0.0, decode_ms=0.0)
        kept = _Verdict(generation, value.thinking_allowed, value.stated_budget, value.fact_clipped)
        return _VERDICT.dump_json(kept)

    def decode(self, data: bytes) -> Served:
        """The verdict of that JSON. Raises ValueError on anything else."""
        kept = _VERDICT.validate_json(data, strict=True)
        return Served(
            kept.generation, kept.thinking_allowed, kept.stated_budget, kept.fact_clipped, 0.0
        )

    def level(self, value: Served) -> int | None:
        """The stated budget of a verdict the model came to by itself, otherwise None."""
        if value.unserved or value.fallback or value.generation.thinking_cut:
            return None
        if value.degraded_reason:
            return None
        return value.stated_budget

    def shareable(self, value: Served) -> bool:
        """All but what a deadline stopped: another request may have longer."""
        return not value.unserved and value.generation.finish != "deadline"

    def suits(self, value: Served, budget_tokens: int, most_tokens: int | None) -> bool:
        """Whether it keeps within the cap, and a larger budget would have made it no better."""
        if most_tokens is not None and value.generation.thinking_tokens > most_tokens:
            return False
        if value.thinking_allowed >= budget_tokens:
            return True
        # Within a level the prompt is the same, and thinking that ended by itself would end again.
        same_prompt = value.stated_budget >= state_budget(budget_tokens)
        return same_prompt and not value.generation.thinking_cut
