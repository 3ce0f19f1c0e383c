"""What the front and a worker say to each other, and how it crosses their pipe.

The front sends a `Request` and reads some `Reasoning` (where the request asks for its text) and
then one `Reply`. While a request is under way the front may send `Cancel`, which the worker looks
for between two steps of the engine; one that comes too late is dropped. A worker's first message
is `Calibrated` or `LoadFailed`.

Messages are JSON, never pickles: what comes back from a process that reads strangers' text is
data. They are plain dataclasses without validation: both ends are ours, and each request waits
for two of them.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from curt.dialogue import LeftOut
from curt.engines.budget import Observation
from curt.engines.protocol import Generation, Request


@dataclass(frozen=True, slots=True)
class Calibrate:
    """Time a few generations while nothing else waits. Answered by `Calibrated`."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the request under way."""


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Some more of the reasoning, as whole characters."""

    text: str


@dataclass(frozen=True, slots=True)
class Generated:
    """A finished generation."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Timings of a few generations."""

    observations: tuple[Observation, ...]


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The request was stopped as asked."""


@dataclass(frozen=True, slots=True)
class EngineRaised:
    """The engine raised on a request: the error's type and where it came from.

    Its message stays in the worker, for it may quote the fact.
    """

    error: str
    stack: tuple[str, ...]

    @classmethod
    def by(cls, error: Exception) -> EngineRaised:
        """The message about a caught exception."""
        frames = traceback.extract_tb(error.__traceback__)
        stack = (f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames)
        return cls(type(error).__name__, tuple(stack))


@dataclass(frozen=True, slots=True)
class EngineBusy:
    """A remote engine has more to do than it takes; it may be asked again after so long."""

    retry_after_s: float


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The worker could not load its model and ends."""

    reason: str


Order = Request | Calibrate
"""What a worker does next."""
Reply = Generated | Calibrated | Cancelled | EngineRaised | EngineBusy
"""How an order ends."""
Message = Order | Cancel | Reasoning | Reply | LoadFailed

_READERS: Mapping[str, Callable[[dict[str, Any]], Message]] = {
    "Request": lambda given: Request(**given),
    "Calibrate": lambda _: Calibrate(),
    "Cancel": lambda _: Cancel(),
    "Reasoning": lambda given: Reasoning(given["text"]),
    "Generated": lambda given: Generated(_read_generation(given["generation"])),
    "Calibrated": lambda given: Calibrated(
        tuple(Observation(**each) for each in given["observations"])
    ),
    "Cancelled": lambda _: Cancelled(),
    "EngineRaised": lambda given: EngineRaised(given["error"], tuple(given["stack"])),
    "EngineBusy": lambda given: EngineBusy(given["retry_after_s"]),
    "LoadFailed": lambda given: LoadFailed(given["reason"]),
}


def encode(message: Message) -> bytes:
    """A message as it crosses the pipe; see `decode`."""
    return _write([type(message).__name__, message]).encode()


def decode(data: bytes) -> Message:
    """Inverse of `encode`. Raises ValueError, KeyError or TypeError on anything else."""
    kind, given = json.loads(data)
    return _READERS[kind](given)


def _read_generation(given: dict[str, Any]) -> Generation:
    return Generation(**given | {"left_out": LeftOut(**given["left_out"])})


def _fields_of(value: object) -> dict[str, object]:
    """The fields of a dataclass; `asdict` would copy each value as well."""
    if not is_dataclass(value):
        raise TypeError(f"{type(value).__name__} is no part of a message")
    return {each.name: getattr(value, each.name) for each in fields(value)}


_write = json.JSONEncoder(ensure_ascii=False, default=_fields_of).encode
