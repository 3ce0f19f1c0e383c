"""The one loop of a completion: think, close the thinking, answer.

An engine only finds the next token; `Writing` says what becomes of it. It closes the thinking at
its limit, holds the answer to its grammar, ends it at the end of the turn or at its limit, and
counts both:

    while not writing.must_stop():
        step = writing.take(writing.choose(likeliest_token, logits))
        if step:
            yield step
        if not writing.is_complete():
            feed(writing.last_token)
    yield writing.end(prefill_ms, decode_ms)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from curt.classifier.candidates import known_charges
from curt.dialogue import THINK_END, Prompt
from curt.engines.grammar import AnswerGrammar, GuidedAnswer
from curt.engines.protocol import Finish, Generation, GenerationStep, Request
from curt.engines.tokenizer import PromptTokenizer

LONGEST_RUN = 12  # of one token in the thinking; no figure of a case has as many zeros

# What is told where nobody wants the text: made once.
_THINKING, _ANSWER = GenerationStep("thinking"), GenerationStep("answer")


class Writing:
    """One completion as it grows, until it `is_complete`."""

    def __init__(
        self,
        request: Request,
        tokenizer: PromptTokenizer,
        *,
        prompt: Prompt,
        thinking_limit: int,
        close_id: int,
        eos_ids: Sequence[int],
        grammar: AnswerGrammar | None = None,
    ) -> None:
        """`thinking_limit` is the request's, as far as the context allows it.

        `close_id` is the token that ends the thinking, `eos_ids` those that each end the turn.
        Without a `grammar` what `choose` is asked of the answer is left free.
        """
        self.request, self.thinking_limit = request, thinking_limit
        self.thinking: list[int] = []
        self.answer: list[int] = []
        self.closed = False
        self.cut = False
        """Whether the thinking was closed where the model would have gone on."""
        self.finish: Finish | None = None
        self.held = 0
        """How often the answer's grammar refused the likeliest token."""
        self.last_token = -1
        """What was written last, which may not be what the model picked."""
        self._tokenizer, self._prompt = tokenizer, prompt
        self._close_id, self._eos_ids = close_id, list(eos_ids)
        self._grammar = grammar
        self._guided: GuidedAnswer | None = None
        self._text = tokenizer.stream() if request.tell_text else None

    def choose(self, likeliest: int, logits: Callable[[], npt.NDArray[np.float32]]) -> int:
        """The likeliest token that may come next.

        `logits`, of shape (vocab,), are asked for only where the `likeliest` of all may not.
        """
        guided = self._guided if self.closed else None
        if guided.take(likeliest) if guided else likeliest not in self._banned:
            return likeliest
        scores = logits()
        if guided:
            self.held += 1
            return guided.pick(scores)
        scores[self._banned] = -np.inf
        return int(scores.argmax())

    @property
    def _banned(self) -> list[int]:
        """Tokens not to pick now: a turn can't end before its thinking does, which ends once."""
        return [self._close_id] if self.closed else self._eos_ids

    @property
    def thinking_room(self) -> int:
        """How many more tokens the thinking may have."""
        return self.thinking_limit - len(self.thinking)

    @property
    def answer_room(self) -> int:
        """How many more tokens the answer may have."""
        return self.request.answer_limit - len(self.answer)

    def take(self, token: int) -> GenerationStep | None:
        """Write the token that the model picked; None where it ends the turn.

        At the thinking limit, or where it has been the same token all along, the end of thinking is
        written in its place.
        """
        return self._take_answer(token) if self.closed else self._take_thinking(token)

    def close(self, *, cut: bool) -> GenerationStep:
        """End the thinking here, before the model picked anything or in place of what it picked."""
        self.closed, self.cut = True, cut
        if self._grammar:
            self._guided = self._grammar.begin(known_charges(self._prompt.candidates))
        self._text = self._text and self._tokenizer.stream()
        return GenerationStep("close", THINK_END)

    def is_complete(self) -> bool:
        """Whether nothing more will be written."""
        return self.finish is not None

    def must_stop(self) -> bool:
        """Whether it is complete, if only because the deadline has passed by now."""
        if self.finish is None and self.request.is_late:
            self.finish = "deadline"
        return self.is_complete()

    def end(
        self,
        prefill_ms: float,
        decode_ms: float,
        decode_passes: int | None = None,
        answer_passes: int | None = None,
    ) -> GenerationStep:
        """The last step, with the whole generation. Call it once it `is_complete`."""
        assert self.finish is not None, "the completion is not finished"
        text = self._tokenizer.decode(self.thinking)
        if self.closed:
            text += THINK_END + self._tokenizer.decode(self.answer)
        generation = Generation(
            text=text,
            prompt_tokens=len(self._prompt),
            thinking_tokens=len(self.thinking),
            answer_tokens=len(self.answer),
            thinking_cut=self.cut,
            finish=self.finish,
            prefill_ms=prefill_ms,
            decode_ms=decode_ms,
            decode_passes=decode_passes,
            answer_passes=answer_passes,
            held=self.held,
            left_out=self._prompt.left_out,
            candidates=self._prompt.candidates,
        )
        return GenerationStep("end", generation=generation)

    def _take_thinking(self, token: int) -> GenerationStep:
        cut = token != self._close_id and (self.thinking_room == 0 or self._is_stuck(token))
        self.last_token = token = self._close_id if cut else token
        if token == self._close_id:
            return self.close(cut=cut)
        self.thinking.append(token)
        return GenerationStep("thinking", self._text.push(token)) if self._text else _THINKING

    def _is_stuck(self, token: int) -> bool:
        """Whether this is the same token over and over, of which nothing comes any more."""
        return self.thinking[-LONGEST_RUN:] == [token] * LONGEST_RUN

    def _take_answer(self, token: int) -> GenerationStep | None:
        if token in self._eos_ids:
            self.finish = "stop"
            return None
        self.last_token = token
        self.answer.append(token)
        if self.answer_room == 0:
            self.finish = "length"
        return GenerationStep("answer", self._text.push(token)) if self._text else _ANSWER
