"""What is fed along with the next token, so that a model checks many tokens in one pass.

A pass over several tokens costs little more than one over a single token. So tokens that are likely
to follow are fed along, and kept as far as the model itself picks the same; the first that differs
ends the guess. A guess changes the number of passes and never the choice; only where two tokens are
as good as equally likely may the rounding of a wider pass tip it, at four or eight bits.

There are three sources: what a grammar leaves no choice about, the statutes
(`curt.engines.onnx.lookup`), and what this model is used to writing (`curt.engines.onnx.guesses`).
"""

from __future__ import annotations

from pathlib import Path

from curt.engines.grammar import GuidedAnswer
from curt.engines.onnx.guesses import GuessTable, read_guesses
from curt.engines.onnx.lookup import MOST_GUESSED, AnswerGuess, AnswerLookup
from curt.engines.tokenizer import PromptTokenizer
from curt.engines.writing import Writing


class Speculation:
    """What is known of a model folder's completions before its model says so."""

    def __init__(
        self, folder: Path, tokenizer: PromptTokenizer, close_id: int, eos_ids: list[int]
    ) -> None:
        self._close_id = close_id
        self._statutes = AnswerLookup(tokenizer.encode)
        self._habits = read_guesses(folder, eos_ids)

    def after_thinking(self, writing: Writing) -> list[int]:
        """Tokens to feed along with the last of the thinking."""
        room, answer_limit = writing.thinking_room, writing.request.answer_limit
        if room == 0:  # whatever the model picks at the limit, the end of thinking follows
            return [self._close_id]
        if self._habits is None:
            return []
        guess = list(self._habits.after(writing.thinking, room + 1 + answer_limit))
        end = guess.index(self._close_id) if self._close_id in guess else len(guess)
        return guess[:room] if end > room else guess[: end + 1 + answer_limit]

    def begin_answer(self, thinking: list[int]) -> AnswerSources:
        """What is known of the answer after this reasoning."""
        return AnswerSources(self._close_id, self._statutes.begin(thinking), self._habits)


class AnswerSources:
    """What is known of one answer: the statutes first, then the model's habits."""

    def __init__(self, close_id: int, statutes: AnswerGuess, habits: GuessTable | None) -> None:
        self._close_id, self._statutes, self._habits = close_id, statutes, habits

    def after(self, answer: list[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow an answer."""
        text = [self._close_id, *answer]
        guess = self._statutes.after(text, most)
        if not guess and self._habits:
            guess = list(self._habits.after(text, most))
        return guess


class AnswerAhead:
    """The next tokens of one answer: those its grammar forces, then those it may go on with."""

    def __init__(
        self, writing: Writing, guided: GuidedAnswer | None, sources: AnswerSources | None
    ) -> None:
        self.guided = guided
        self.forced: list[int] = []
        """The grammar leaves no other choice, so there is no need to ask the model."""
        self._writing, self._sources = writing, sources

    def look_ahead(self, *, jump: bool) -> list[int]:
        """Tokens to feed along; forced ones where the engine may `jump` over them."""
        room = self._writing.answer_room
        if self.guided and jump:
            self.forced = self.guided.foresee()[:room]
        ahead = list(self.forced)
        most = min(room, MOST_GUESSED) - len(ahead)
        if self._sources and most > 0:
            ahead += self._sources.after([*self._writing.answer, *ahead], most)
        return ahead

    def take_forced(self) -> int:
        """The next forced token, as part of the grammar's text."""
        token = self.forced.pop(0)
        taken = self.guided is not None and self.guided.take(token)
        assert taken, "a forced token is allowed"
        return token
