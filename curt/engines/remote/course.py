"""The course of one request over `/v1/completions`, without the HTTP: what to ask, what came.

Two calls: the thinking, stopped by its end token or its limit, and the answer after a prompt that
holds both and the end of thinking. The server's prefix cache makes the second prefill short. So a
limit is held exactly and on every server, whatever it knows of thinking; the end of the turn can
be forbidden to the thinking alone, and a grammar asked for the answer alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curt.dialogue import THINK_END
from curt.engines.protocol import Finish, Generation, Request, Step
from curt.engines.remote.dialects import Dialect
from curt.engines.tokenizer import PromptTokenizer

FORBID = -100.0  # the lowest bias OpenAI's interface has


class RemoteError(RuntimeError):
    """The server refused a request or sent what can't be used; never holds a word of a prompt."""


class RemoteUnavailableError(RemoteError):
    """The server can't be reached, or went away in the middle of a request."""


@dataclass(frozen=True, slots=True)
class Words:
    """What a model's tokenizer and a server's dialect have to say to every request."""

    tokenizer: PromptTokenizer
    dialect: Dialect
    served_name: str
    close_id: int
    eos_ids: Sequence[int]
    answer_pattern: str | None


class Course:
    """One request under way: `next_call`, then `take` of what it brings, until it is `finished`."""

    def __init__(self, request: Request, words: Words, prompt: Sequence[int], limit: int) -> None:
        """`limit` is the thinking limit as the context allows it."""
        self._request = request
        self._words = words
        self._prompt = list(prompt)
        self._limit = limit
        self._thinking: list[int] = []
        self._answer: list[int] = []
        self._closed = self._cut = limit == 0
        self._finish: Finish | None = None
        self._text = words.tokenizer.stream()
        self._started_s = self._called_s = time.monotonic()
        self._prefill_s = 0.0
        self._first = True  # no token of this call has come
        self.call_over = False
        """Whether the call under way has no more to say that matters."""

    @property
    def finished(self) -> bool:
        """Whether the request is complete, or as complete as it will be."""
        return self._finish is not None

    def next_call(self) -> dict[str, Any]:
        """The body of the next call. Not to be asked for once the request is finished."""
        self._called_s, self._first, self.call_over = time.monotonic(), True, False
        words, body = self._words, self._common()
        if not self._closed:
            # One token more than the limit tells whether the model would have ended by itself.
            body["max_tokens"] = self._limit + 1
            body["stop_token_ids"] = [words.close_id]
            body["logit_bias"] = {str(token): FORBID for token in words.eos_ids}
            return body
        body["prompt"] = [*self._prompt, *self._thinking, words.close_id]
        body["max_tokens"] = self._request.answer_limit
        body["stop_token_ids"] = list(words.eos_ids)
        if words.answer_pattern is not None:
            body |= words.dialect.guided(words.answer_pattern)
        return body

    def take(self, choice: Mapping[str, Any]) -> Iterator[Step]:
        """The steps that one streamed choice brings.

        Raises RemoteError where it lacks token ids, RemoteUnavailableError where the server gave
        the request up.
        """
        ids, reason = choice.get("token_ids") or [], choice.get("finish_reason")
        if not ids and choice.get("text"):
            raise RemoteError(
                f"the server sends text without token ids: is it {self._words.dialect.name}?"
            )
        if self._first and (ids or reason):
            self._first = False
            self._prefill_s += time.monotonic() - self._called_s
            yield Step("prefill")
        for token in ids:
            yield from self._take_answer(token) if self._closed else self._take_thinking(token)
            if self.call_over:
                return
        if reason is None:
            return
        if reason not in ("stop", "length"):
            raise RemoteUnavailableError(f"the server ended the request: {str(reason)[:20]}")
        self.call_over = True
        if self._closed:
            self._finish = "stop" if reason == "stop" else "length"
        else:  # a server may keep the token it stopped at to itself
            yield self._close(cut=reason == "length")

    def expire(self) -> None:
        """The deadline has passed: what came so far is all there will be."""
        self._finish, self.call_over = "deadline", True
        if not self._answer and self._limit == 0:  # the end of thinking was not even read
            self._closed = self._cut = False

    def generation(self) -> Generation:
        """All that came. Call it once the course is `finished`."""
        assert self._finish is not None
        decode = self._words.tokenizer.decode
        text = decode(self._thinking)
        if self._closed:
            text += THINK_END + decode(self._answer)
        return Generation(
            text=text,
            prompt_tokens=len(self._prompt),
            thinking_tokens=len(self._thinking),
            answer_tokens=len(self._answer),
            thinking_cut=self._cut,
            finish=self._finish,
            prefill_ms=self._prefill_s * 1e3,
            decode_ms=(time.monotonic() - self._started_s - self._prefill_s) * 1e3,
        )

    def _common(self) -> dict[str, Any]:
        return {
            "model": self._words.served_name,
            "prompt": self._prompt,
            "stream": True,
            "temperature": 0.0,
            "top_k": 1,  # greedy, whatever generation_config.json would have
            "top_p": 1.0,
            "repetition_penalty": 1.0,
            "include_stop_str_in_output": False,
            **self._words.dialect.ids,
        }

    def _take_thinking(self, token: int) -> Iterator[Step]:
        if token == self._words.close_id:
            self.call_over = True
            yield self._close(cut=False)
        elif len(self._thinking) == self._limit:
            self.call_over = True
            yield self._close(cut=True)
        else:
            self._thinking.append(token)
            yield Step("thinking", self._text.push(token))

    def _take_answer(self, token: int) -> Iterator[Step]:
        if token in self._words.eos_ids:
            self._finish, self.call_over = "stop", True
            return
        self._answer.append(token)
        if len(self._answer) == self._request.answer_limit:
            self._finish, self.call_over = "length", True
        yield Step("answer", self._text.push(token))

    def _close(self, *, cut: bool) -> Step:
        self._closed, self._cut = True, cut
        self._text = self._words.tokenizer.stream()
        return Step("close", THINK_END)
