"""The contract every engine keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from curt.artifact import Manifest
from curt.dialogue import MAX_ANSWER_TOKENS

Finish = Literal["stop", "length", "deadline"]


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to complete.

    `fact` is a raw fact: the engine normalises, clips and renders it with its own tokenizer.
    `stated_budget` is the thinking budget written in the prompt; `thinking_limit` the number of
    thinking tokens after which the end of thinking is forced. `deadline_s` is a
    `time.monotonic()` instant after which generation stops where it is.
    """

    fact: str
    stated_budget: int
    thinking_limit: int
    answer_limit: int = MAX_ANSWER_TOKENS
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """What came back. `text` follows the prompt: `{thinking}</think>{answer}`.

    `thinking_tokens` excludes the end-of-thinking token; `thinking_cut` says that the limit
    closed the thinking rather than the model.
    """

    text: str
    prompt_tokens: int
    thinking_tokens: int
    answer_tokens: int
    thinking_cut: bool
    finish: Finish
    prefill_ms: float
    decode_ms: float


class Engine(Protocol):
    """A loaded model folder."""

    name: str
    manifest: Manifest

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Greedy completions, in order."""
        ...
