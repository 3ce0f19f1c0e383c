"""Which variant a request goes to: pure functions of its key and of how traffic is split.

Weighted rendezvous hashing: every variant draws an exponential waiting time from the key, at a
rate of its weight, and the first one wins. Raising a weight only takes keys from others to it,
lowering it only sends its own away, and no key ever moves between two whose weights stay.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from curt.config import FrozenModel
from curt.dialogue import normalise_fact

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,31}$"
Role = Literal["live", "canary", "shadow", "weight"]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class TrafficShare(FrozenModel):
    """A variant and the share of requests it gets, from 0 to 1."""

    name: Name
    share: float = Field(gt=0, le=1)


class Split(FrozenModel):
    """How traffic is split.

    The canary takes its share first; the rest goes by `weights`, or all to `live` where there are
    none. The shadow sees copies of a share of what `live` answers.
    """

    live: Name
    weights: dict[Name, float] = Field(default_factory=dict)
    canary: TrafficShare | None = None
    shadow: TrafficShare | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Split:
        for name, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"weight {weight} of {name}: use a number from 0 up")
        if self.weights and not self.weights.get(self.live):
            raise ValueError(f"weights without {self.live}, the live one: give it one above 0")
        answering = {self.live, *self.weights}
        if self.canary and self.canary.name in answering:
            raise ValueError(f"{self.canary.name} has traffic already: it can't be the canary too")
        if self.shadow and self.shadow.name in answering | {self.canary and self.canary.name}:
            raise ValueError(f"{self.shadow.name} answers requests: it can't be the shadow too")
        return self

    @property
    def names(self) -> set[str]:
        """Every variant that has a part in this split."""
        others = {each.name for each in (self.canary, self.shadow) if each}
        return {self.live, *self.weights} | others

    def assign(self, key: str) -> str:
        """The variant that answers requests of this key."""
        if self.canary and unit(key, f"canary:{self.canary.name}") < self.canary.share:
            return self.canary.name
        return pick(self.weights, key) if self.weights else self.live

    def shadow_for(self, key: str) -> str | None:
        """The variant that gets a copy of requests of this key, if any."""
        if self.shadow and unit(key, f"shadow:{self.shadow.name}") < self.shadow.share:
            return self.shadow.name
        return None

    def share_of(self, name: str) -> float:
        """The share of keys that a variant answers."""
        canary = self.canary.share if self.canary else 0.0
        if self.canary and self.canary.name == name:
            return canary
        weights = self.weights or {self.live: 1.0}
        return (1 - canary) * weights.get(name, 0.0) / sum(weights.values())

    def without(self, name: str) -> Split:
        """The same split after a variant other than the live one has left it."""
        weights = {each: weight for each, weight in self.weights.items() if each != name}
        return Split(
            live=self.live,
            weights={} if set(weights) <= {self.live} else weights,
            canary=None if self.canary and self.canary.name == name else self.canary,
            shadow=None if self.shadow and self.shadow.name == name else self.shadow,
        )

    def with_role(self, name: str, role: Role, share: float | None) -> Split:
        """The split with one variant in a new role.

        `share` is from 0 to 1; as a weight it is what the variant gets beside the other arms, who
        keep their proportions. Raises ValueError where the role or the share makes no sense.
        """
        if role == "live":
            if self == Split(live=name):
                raise ValueError(f"{name} is live already")
            return Split(live=name)
        if name == self.live:
            raise ValueError(f"{name} is live: its share is what others leave")
        if share is None or not 0 < share < 1:
            raise ValueError(f"a share of {share} as {role}: use one above 0 and below 1")
        rest = self.without(name)
        if role == "weight":
            arms = rest.weights or {self.live: 1.0}
            scale = (1 - share) / sum(arms.values())
            weights = {arm: weight * scale for arm, weight in arms.items()} | {name: share}
            return Split(**{**dict(rest), "weights": weights})
        return Split(**{**dict(rest), role: TrafficShare(name=name, share=share)})


def routing_key(fact: str, user: str | None = None) -> str:
    """What a request is assigned by: its user where one is named, else the hash of its case."""
    if user is not None:
        return f"user:{user}"
    return "case:" + hashlib.sha256(normalise_fact(fact).encode()).hexdigest()


def unit(key: str, salt: str) -> float:
    """A number in (0, 1) that looks random and depends on key and salt alone."""
    digest = hashlib.blake2b(f"{salt}\0{key}".encode(), digest_size=6).digest()
    return (int.from_bytes(digest) + 0.5) / 2**48  # more bits might round up to 1


def pick(weights: dict[str, float], key: str) -> str:
    """The variant of a key by weighted rendezvous hashing.

    The least of -ln(u) / weight wins (Schindelhauer and Schomaker 2005, logarithmic method).
    Raises ValueError where no weight is above 0.
    """
    waits = {
        name: -math.log(unit(key, name)) / weight for name, weight in weights.items() if weight > 0
    }
    if not waits:
        raise ValueError(f"weights {weights}: give at least one above 0")
    return min(waits, key=lambda name: (waits[name], name))
