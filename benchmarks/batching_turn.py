"""What one request of a batch is through with: pure bookkeeping, the same for every decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Limits:
    """Token limits of every request, and the ids that end thinking and answer."""

    thinking: int
    answer: int
    close: int
    eos: tuple[int, ...]


@dataclass(slots=True)
class Turn:
    """One request's tokens so far, under the rules of `curt.engines.onnxruntime_genai`."""

    job: int
    prompt: list[int]
    limits: Limits
    thinking: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    closed: bool = False
    over: bool = False

    def __post_init__(self) -> None:
        if self.limits.thinking == 0:  # closed before it begins
            self.prompt = [*self.prompt, self.limits.close]
            self.closed = True

    @property
    def tokens(self) -> int:
        """Tokens written, the end of thinking among them."""
        return len(self.thinking) + len(self.answer) + (self.closed and self.limits.thinking > 0)

    def take(self, logits: Logits) -> int | None:
        """The token that follows, for the model to read next; None when the request is over."""
        assert not self.over, "a finished request asks for no token"
        if not self.closed:  # it can't end before its thinking does
            logits = logits.copy()
            logits[list(self.limits.eos)] = -np.inf
        token = int(logits.argmax())
        if not self.closed and len(self.thinking) == self.limits.thinking:
            token = self.limits.close
        if self.closed:
            if token in self.limits.eos:
                self.over = True
                return None
            self.answer.append(token)
            self.over = len(self.answer) == self.limits.answer
            return None if self.over else token
        if token == self.limits.close:
            self.closed = True
        else:
            self.thinking.append(token)
        return token


def pad_left(prompts: Sequence[Sequence[int]], pad: int) -> NDArray[np.int32]:
    """Prompts of a batch, right-aligned: (rows, longest). Raises ValueError without a token."""
    if not prompts or not all(prompts):
        raise ValueError("a prompt without a token: give one or more tokens a row")
    width = max(map(len, prompts))
    ids = np.full((len(prompts), width), pad, np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[width - len(prompt) :] = prompt
    return ids


class Rows:
    """Which turn is in which row of a batch; the rows in use are always the first ones."""

    def __init__(self, capacity: int) -> None:
        """Room for `capacity` turns."""
        self.capacity = capacity
        self.turns: list[Turn] = []

    def add(self, turn: Turn) -> int:
        """The row of a new turn."""
        assert len(self.turns) < self.capacity, "the batch is full"
        self.turns.append(turn)
        return len(self.turns) - 1

    def remove_finished(self) -> tuple[list[Turn], list[tuple[int, int]]]:
        """Take out what is over: those turns, and the moves (from row, to row) that fill the gaps.

        Moves are to be made in order; none reads a row that an earlier one has overwritten.
        """
        over = [turn for turn in self.turns if turn.over]
        left = len(self.turns) - len(over)
        gaps = [row for row in range(left) if self.turns[row].over]
        sources = [row for row in range(left, len(self.turns)) if not self.turns[row].over]
        moves = list(zip(sources, gaps, strict=True))
        for source, gap in moves:
            self.turns[gap] = self.turns[source]
        del self.turns[left:]
        return over, moves
