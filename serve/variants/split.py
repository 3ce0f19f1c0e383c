"""How traffic is split between variants: pure functions.

The variant of every request is drawn by itself, not by its user or its case: requests are what the
test of a canary counts, and those of one user are alike. No client can choose its variant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}$")]
TrialRole = Literal["canary", "shadow", "weight"]
Role = Literal["live", TrialRole]


@dataclass(frozen=True, slots=True)
class Trial:
    """What a variant does beside the live one, and the share of requests it gets."""

    role: TrialRole
    share: float


@dataclass(frozen=True, slots=True)
class Split:
    """How traffic is split.

    A canary and weights answer their shares of all requests, and the live variant the rest. A
    shadow gets copies of its share of what the live one answers.
    """

    live: str
    trials: dict[str, Trial] = field(default_factory=dict)

    def named(self, role: TrialRole) -> str | None:
        """The variant in a role that only one can have, if any."""
        return next((name for name, trial in self.trials.items() if trial.role == role), None)

    def share_of(self, name: str) -> float:
        """The share of requests that a variant answers."""
        shares = {n: trial.share for n, trial in self.trials.items() if trial.role != "shadow"}
        return 1 - sum(shares.values()) if name == self.live else shares.get(name, 0.0)

    def assign(self, draw: float) -> str:
        """The variant that answers a request, by a number drawn evenly from 0 to 1."""
        for name in self.trials:
            share = self.share_of(name)
            if draw < share:
                return name
            draw -= share
        return self.live

    def without(self, name: str) -> Split:
        """The same split after a variant other than the live one has left it."""
        return Split(self.live, {n: trial for n, trial in self.trials.items() if n != name})

    def with_role(self, name: str, role: Role, share: float | None = None) -> Split:
        """The split with one variant in a new role, where it replaces another canary or shadow.

        A new live variant gets everything. Raises ValueError where role or share makes no sense.
        """
        if role == "live":
            if self == Split(name):
                raise ValueError(f"{name} is live already")
            return Split(name)
        if name == self.live:
            raise ValueError(f"{name} is live: its share is what others leave")
        replaced = None if role == "weight" else self.named(role)
        rest = self.without(name).without(replaced or name)
        free = 1.0 if role == "shadow" else rest.share_of(self.live)
        if share is None or not 0 < share < free:
            raise ValueError(f"a share of {share} as {role}: use one above 0 and below {free:g}")
        return Split(self.live, rest.trials | {name: Trial(role, share)})
