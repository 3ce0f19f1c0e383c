"""What the front and a worker say to each other, and how it crosses their pipe.

The front sends a `Request` and reads some `Reasoning` (where the request asks for its text) and
then one `Reply`. While a request is under way the front may send `Cancel`, which the worker looks
for between two steps of the engine; one that comes too late is dropped. A worker's first message
is `Calibrated` or `LoadFailed`.

Messages are JSON, never pickles: what comes back from a process that reads strangers' text is
data.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import get_args

from pydantic import TypeAdapter
from pydantic_core import from_json, to_json

from curt.classifier.model import Findings
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
    """A finished generation, with what the reader of the model folder found in the fact."""

    generation: Generation
    findings: Findings | None = None


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

_READERS: dict[str, TypeAdapter[Message]] = {
    kind.__name__: TypeAdapter(kind) for kind in get_args(Message)
}


def encode(message: Message) -> bytes:
    """A message as it crosses the pipe; see `decode`."""
    return to_json([type(message).__name__, message])


def decode(data: bytes) -> Message:
    """Inverse of `encode`. Raises ValueError, KeyError or TypeError on anything else."""
    kind, given = from_json(data)
    return _READERS[kind].validate_python(given)
