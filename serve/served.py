"""What is served: an answer with how it came about, and the model that gave it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from curt.artifact import MANIFEST, ArtifactError, Manifest
from curt.dialogue import Completion, ParseFailure, parse_completion
from curt.engines.protocol import Generation
from curt.law.verdict import Verdict

if TYPE_CHECKING:
    from curt.classifier.model import Findings, Prediction

Source = Literal["model", "fallback", "overruled"]
DegradedReason = Literal[
    "deadline", "unreadable_answer", "answer_too_long", "overloaded", "worker_failed"
]


class Model(BaseModel):
    """The model that answered."""

    name: str
    manifest: str
    """First 12 hex digits of the manifest's SHA-256."""
    precision: str
    variant: str = "default"
    """Which of several models that are served side by side."""


@dataclass(frozen=True)
class Served:
    """A generation with what the pool granted it.

    `usual_thinking` is what the model takes for half of its cases where it may, and
    `allowed_alone` what the deadline would have left the request on an idle server; 0 where that
    is not known. `fallback` is the classifier's answer where the model gave no full verdict.
    `unserved` says why the model never ran at all; the generation is then empty. `findings` are
    those of the model's reader. The text is parsed once.
    """

    generation: Generation
    thinking_allowed: int
    stated_budget: int
    queue_ms: float
    fallback: Prediction | None = None
    unserved: DegradedReason | None = None
    usual_thinking: int = 0
    allowed_alone: int = 0
    findings: Findings | None = None
    overruled: Verdict | None = None
    """What stands in place of the model's verdict, because where they differ the classifier is
    right more often: its charges, articles and term with the model's probation and fine."""

    @property
    def short_thinking(self) -> Literal["load", "deadline"] | None:
        """Why less thinking was allowed than the model usually takes; None if it was enough."""
        if self.thinking_allowed >= self.usual_thinking:
            return None
        return "load" if self.thinking_allowed < self.allowed_alone else "deadline"

    @property
    def source(self) -> Source:
        """Who gave the verdict."""
        if self.fallback is not None:
            return "fallback"
        return "model" if self.overruled is None else "overruled"

    @cached_property
    def completion(self) -> Completion:
        """The generation's text, parsed."""
        return parse_completion(self.generation.text)

    @cached_property
    def degraded_reason(self) -> DegradedReason | None:
        """Why the model gave no full verdict, or None if it did."""
        return self.unserved or why_degraded(self.generation, self.completion)

    @property
    def model_verdict(self) -> Verdict | None:
        """The model's own full verdict; a classifier's in its place does not count."""
        if self.degraded_reason is not None:
            return None
        assert isinstance(self.completion.verdict, Verdict)
        return self.completion.verdict

    @property
    def verdict(self) -> Verdict | None:
        """The verdict to reply with: the model's if full, else the classifier's, else none."""
        if self.degraded_reason is None:
            return self.overruled or self.model_verdict
        return self.fallback.verdict if self.fallback else None


@dataclass(frozen=True, slots=True)
class Identity:
    """Which model answers: name, manifest hash and what the manifest says."""

    model: Model
    manifest: Manifest
    manifest_sha256: str = ""

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> Identity:
        """The identity of a model folder whose manifest has been verified.

        Raises ArtifactError where another one lies there by now.
        """
        data = (folder / MANIFEST).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if Manifest.model_validate_json(data) != manifest:
            raise ArtifactError(f"{folder.name} was changed while it was read")
        name = folder.resolve().name
        model = Model(name=name, manifest=digest[:12], precision=manifest.precision)
        return cls(model, manifest, digest)


def why_degraded(generation: Generation, completion: Completion) -> DegradedReason | None:
    """Why a generation holds no full verdict, or None when it does.

    An answer that was cut counts as none even if its first lines parse: 罚金：2000 may be the
    beginning of 20000元.
    """
    if generation.finish == "deadline":
        return "deadline"
    if generation.finish == "length":
        return "answer_too_long"
    return "unreadable_answer" if isinstance(completion.verdict, ParseFailure) else None
