"""Holds an answer to the grammar of `curt.dialogue`: a token that would leave it is never picked.

The `llguidance` package keeps the grammar; an engine asks it about each token of an answer. Where
a line of candidates stood in the prompt, the answer's charges are held to those of that line: what
a small model writes beside it is a charge that sounds alike, or none that exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from curt.dialogue import EXAMPLE_ANSWER, answer_pattern
from curt.dialogue.answer import CHARGES_LINE, charge_lists


class AnswerGrammar:
    """The grammar over one tokenizer's tokens; costs nothing until an answer begins."""

    def __init__(self, folder: Path, vocab_tokens: int, eos_ids: Sequence[int]) -> None:
        """`folder` holds a tokenizer.json; `vocab_tokens` is the width of the model's logits.

        Raises ValueError when the grammar can't be built.
        """
        import llguidance

        tokenizer = llguidance.LLTokenizer(
            (folder / "tokenizer.json").read_text(encoding="utf-8"),
            n_vocab=vocab_tokens,
            eos_token=eos_ids[0],
        )
        grammar = llguidance.LLMatcher.grammar_from_regex(answer_pattern())
        self._start: Any = llguidance.LLMatcher(tokenizer, grammar)
        if self._start.is_error():
            raise ValueError(f"the answer grammar was refused: {self._start.get_error()}")
        self._tokenizer: Any = tokenizer
        self._eos_ids = list(eos_ids)
        # Copies share what the matcher found out about its grammar: milliseconds at first.
        answer = self.begin()
        for token in tokenizer.tokenize_str(EXAMPLE_ANSWER):
            taken = answer.take(token)
            assert taken, "the sample is an answer of the grammar"

    def begin(self, charges: tuple[str, ...] = ()) -> GuidedAnswer:
        """A fresh answer; where `charges` of the statutes are given it names no other."""
        lines = charge_lines(charges)
        return GuidedAnswer(self._start.deep_copy(), self._tokenizer, self._eos_ids, lines)


class GuidedAnswer:
    """One answer as it grows."""

    def __init__(
        self, matcher: Any, tokenizer: Any, eos_ids: list[int], lines: Sequence[bytes]
    ) -> None:
        """`lines` are what the line of charges may be, in UTF-8; anything where there are none."""
        self._matcher, self._tokenizer, self._eos_ids = matcher, tokenizer, eos_ids
        self._lines = lines  # none any more once the line is written
        self._written = b""

    def take(self, token: int) -> bool:
        """Make a token part of the answer, unless the grammar refuses it there."""
        if token in self._eos_ids:
            return bool(self._matcher.is_accepting())
        if not self._lines:
            return bool(self._matcher.try_consume_tokens([token]))
        written = self._written + self._tokenizer.decode_bytes([token])
        lines = [a for a in self._lines if a.startswith(written) or written.startswith(a)]
        if not lines or not self._matcher.try_consume_tokens([token]):
            return False
        self._written = written
        self._lines = [] if written.startswith(lines[0]) else lines
        return True

    def pick(self, logits: npt.NDArray[np.float32]) -> int:
        """The likeliest token, of shape (vocab,), that the grammar allows; it becomes part of it.

        To be asked where the likeliest of all was refused, which a trained model hardly needs.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)
        allowed[self._eos_ids] = self._matcher.is_accepting()
        scores = np.where(allowed, logits, -np.inf)
        while not self.take(token := int(scores.argmax())):
            assert scores[token] > -np.inf, "the grammar and the lines of charges have a way on"
            scores[token] = -np.inf
        return token


@lru_cache(maxsize=256)
def charge_lines(charges: tuple[str, ...]) -> tuple[bytes, ...]:
    """What the line of charges may be that names some of these, with its label and its end."""
    return tuple(f"{CHARGES_LINE.label}{names}\n".encode() for names in charge_lists(charges))
