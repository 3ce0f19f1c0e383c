"""The contract every engine keeps."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from curt.artifact import Manifest
from curt.dialogue import MAX_ANSWER_TOKENS, LeftOut, Prompts
from curt.dialogue.excerpt import NOTHING

Finish = Literal["stop", "length", "deadline"]
Phase = Literal["prefill", "thinking", "close", "answer", "end"]


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to complete.

    `fact` is a raw fact: the engine renders it as its model reads facts. `candidates` is the line
    of candidates before it; where it is None the model folder's own reader proposes them.
    `stated_budget` is the thinking budget written in the prompt; `thinking_limit` the number of
    thinking tokens after which the end of thinking is forced. `deadline_s` is a
    `time.monotonic()` instant after which generation stops where it is. Set `tell_text=False` if
    you ignore the text of steps: an engine may save itself the decoding. `traceparent` is the W3C
    header that an engine over HTTP sends along.
    """

    fact: str
    stated_budget: int
    thinking_limit: int
    answer_limit: int = MAX_ANSWER_TOKENS
    deadline_s: float | None = None
    tell_text: bool = True
    candidates: str | None = None
    traceparent: str | None = None

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline_s is not None and time.monotonic() >= self.deadline_s

    def fit_thinking(self, prompt_tokens: int, context_tokens: int) -> int:
        """The thinking limit, lowered where the context is too short for it.

        Raises ValueError on limits that make no sense, and where not even the answer fits.
        """
        if self.thinking_limit < 0 or self.answer_limit < 1:
            raise ValueError(
                f"limits of {self.thinking_limit} thinking and {self.answer_limit} answer "
                "tokens: use 0 or more and 1 or more"
            )
        room = context_tokens - prompt_tokens - self.answer_limit - 1
        if room < 0:
            raise ValueError(
                f"a prompt of {prompt_tokens} and an answer of {self.answer_limit} tokens do "
                f"not fit the model's context of {context_tokens}: clip facts shorter"
            )
        return min(self.thinking_limit, room)


@dataclass(frozen=True, slots=True)
class Generation:
    """What came back. `text` follows the prompt: `{thinking}</think>{answer}`.

    `thinking_tokens` excludes the end-of-thinking token; `thinking_cut` says that the limit
    closed the thinking rather than the model. `decode_passes` counts the runs of the model after
    the prefill: fewer than tokens where an engine feeds several at once, None where it can't tell.
    `answer_passes` are those of them after the one that read the end of thinking. `held` counts
    tokens of the answer that its grammar would not let the model write. `left_out` says
    how much of the fact did not fit the prompt; `candidates` is the line of candidates in it, empty
    where it had none.
    """

    text: str
    prompt_tokens: int
    thinking_tokens: int
    answer_tokens: int
    thinking_cut: bool
    finish: Finish
    prefill_ms: float
    decode_ms: float
    decode_passes: int | None = None
    answer_passes: int | None = field(default=None, compare=False)
    held: int = field(default=0, compare=False)
    left_out: LeftOut = NOTHING
    candidates: str = ""


@dataclass(frozen=True, slots=True)
class GenerationStep:
    """One event of a stream: a prefilled chunk, a token with the text it completed, or the end.

    `text` may be empty while a character still waits for its last byte, and throughout where the
    request wants none told. Only the last step, whose phase is "end", carries the whole
    `generation`.
    """

    phase: Phase
    text: str = ""
    generation: Generation | None = None


class Engine(Protocol):
    """A loaded model folder."""

    name: str
    manifest: Manifest

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Greedy completions, in order."""
        ...


@runtime_checkable
class StreamingEngine(Engine, Protocol):
    """An engine that tells of its work while it goes on, and can be stopped in the middle."""

    def stream(self, request: Request) -> Generator[GenerationStep, None, None]:
        """Complete a request step by step; closing the generator stops the work.

        Between two steps lie milliseconds, so that a client who left or a deadline that passed
        costs little.
        """
        ...


@runtime_checkable
class PromptingEngine(Protocol):
    """An engine that renders the prompts itself."""

    prompts: Prompts


def last_generation(steps: Generator[GenerationStep, None, None]) -> Generation:
    """The generation that a stream ends with."""
    for step in steps:
        if step.generation:
            return step.generation
    raise AssertionError("a stream ends with its generation")
