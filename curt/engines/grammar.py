"""Holds an answer to the grammar of `curt.dialogue`: a token that would leave it is never picked.

The `llguidance` package keeps the grammar; an engine asks it about each token of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from curt.dialogue import EXAMPLE_ANSWER, answer_pattern


class AnswerGrammar:
    """The grammar over one tokenizer's tokens; costs nothing until an answer begins."""

    def __init__(self, tokenizer_json: str, vocab_tokens: int, eos_ids: Sequence[int]) -> None:
        """`vocab_tokens` is the width of the model's logits.

        Raises ValueError when the grammar can't be built, ModuleNotFoundError without llguidance.
        """
        import llguidance

        tokenizer = llguidance.LLTokenizer(
            tokenizer_json, n_vocab=vocab_tokens, eos_token=eos_ids[0]
        )
        grammar = llguidance.LLMatcher.grammar_from_regex(answer_pattern())
        self._start: Any = llguidance.LLMatcher(tokenizer, grammar)
        if self._start.is_error():
            raise ValueError(f"the answer grammar was refused: {self._start.get_error()}")
        self._tokenizer: Any = tokenizer
        self._eos_ids = list(eos_ids)
        self._warm_up()

    def begin(self) -> GuidedAnswer:
        """A fresh answer."""
        return GuidedAnswer(self._start.deep_copy(), self._tokenizer, self._eos_ids)

    def _warm_up(self) -> None:
        # Copies share what the matcher found out about its grammar: milliseconds at first.
        answer = self.begin()
        for token in self._tokenizer.tokenize_str(EXAMPLE_ANSWER):
            taken = answer.take(token)
            assert taken, "the sample is an answer of the grammar"
            answer.foresee()


class GuidedAnswer:
    """One answer as it grows."""

    def __init__(self, matcher: Any, tokenizer: Any, eos_ids: list[int]) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._eos_ids = eos_ids

    def take(self, token: int) -> bool:
        """Make a token part of the answer, unless the grammar refuses it there."""
        if token in self._eos_ids:
            return bool(self._matcher.is_accepting())
        taken = bool(self._matcher.try_consume_tokens([token]))
        if taken:
            self._ids.append(token)
        return taken

    def pick(self, logits: npt.NDArray[np.float32]) -> int:
        """The likeliest token, of shape (vocab,), that the grammar allows; it becomes part of it.

        Masks only where the likeliest of all is not allowed, which a trained model hardly needs.
        """
        token = int(logits.argmax())
        if self.take(token):
            return token
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)
        allowed[self._eos_ids] = self._matcher.is_accepting()
        token = int(np.where(allowed, logits, -np.inf).argmax())
        taken = self.take(token)
        assert taken, "a token of the mask is allowed"
        return token

    def foresee(self) -> list[int]:
        """Tokens the grammar leaves no choice about; not yet part of the answer.

        They stand for the next bytes that are the same in every answer, cut as the tokenizer cuts
        them after what is there. Bytes at the end that could still grow into a longer token with
        what comes after are left to be picked; and where the answer so far is not cut as the
        tokenizer would, in the middle of a character say, all are.
        """
        forced = [int(token) for token in self._matcher.compute_ff_tokens()]
        if not forced:
            return []
        written = self._tokenizer.decode_bytes(self._ids + forced)
        whole = [int(token) for token in self._tokenizer.tokenize_bytes(written)]
        held = len(self._ids)
        if whole[:held] != self._ids:
            return []
        same = 0
        for ours, theirs in zip(forced, whole[held:], strict=False):
            if ours != theirs:
                break
            same += 1
        return forced[:same]
