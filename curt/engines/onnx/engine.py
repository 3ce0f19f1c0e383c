"""The ONNX Runtime engine: single-threaded by default, one request at a time, CPU.

It drives the model token by token, because only our own loop can hold a thinking limit and a
deadline: an export for the CPU as a graph on plain onnxruntime (`curt.engines.onnx.graph`), any
other through the Generator API of onnxruntime-genai. Its `append_tokens` holds the interpreter
lock for a whole chunk: run the engine in a worker process, never in a server's front.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curt.artifact import ArtifactError, load_manifest
from curt.dialogue import (
    BUDGET_LEVELS,
    MAX_ANSWER_TOKENS,
    THINK_END,
    clip_fact,
    normalise_fact,
    render_prompt,
)
from curt.engines.grammar import AnswerGrammar, GuidedAnswer
from curt.engines.onnx.graph import GENAI_CONFIG, OrtGraph, open_graph
from curt.engines.onnx.guesses import GuessTable, read_guesses
from curt.engines.onnx.lookup import MOST_GUESSED, AnswerGuess, AnswerLookup
from curt.engines.onnx.sequence import (
    GenaiModel,
    TokenSequence,
    append_tokens,
    load_genai,
    session_config,
)
from curt.engines.protocol import Finish, Generation, Request, Step
from curt.engines.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    pass

__all__ = ["GENAI_CONFIG", "OrtEngine", "append_tokens", "session_config"]

CHUNK_TOKENS = 64  # prefill between two steps: about 5 ms at 5 M parameters, none slower for it
LAST_CHUNK_TOKENS = 96  # a rest of this many is not worth a pass more
_CLIP_SLACK = 16  # clip_fact adds an ellipsis and may split two characters at its seams
_PREFILL, _CLOSE = Step("prefill"), Step("close", THINK_END)
_THINKING, _ANSWER = Step("thinking"), Step("answer")
_SEAMS = 8  # tokens that a fact may be shorter by within its prompt than alone


class OrtEngine:
    """Loads an "ort-genai" model folder and completes one request at a time, greedily."""

    def __init__(
        self,
        folder: Path | str,
        *,
        threads: int = 1,
        allow_spinning: bool = False,
        guided: bool = False,
        jump: bool = True,
        lookup: bool = True,
        plain: bool = True,
    ) -> None:
        """Verify and load `folder`.

        `threads` is the number of intra-op threads; `allow_spinning` lets them burn their core
        while they wait, faster only where nothing else wants it. `guided` holds answers to the
        grammar, so that each that ends can be read; it needs the llguidance package. With `jump`,
        tokens the grammar leaves no choice about are fed along with the one before them instead
        of being asked for. With `lookup`, likely tokens are fed along too and kept where the model
        picks the same, which needs a graph that tells its picks (`compress.onnx.picks`). With
        `plain`, a graph for the CPU runs on plain onnxruntime, which costs less a pass. Raises
        ArtifactError when the folder must not be loaded.
        """
        folder = Path(folder)
        if threads < 1:
            raise ValueError(f"{threads} threads: use 1 or more")
        self.manifest = load_manifest(folder, expect="ort-genai")
        self.name = f"onnxruntime-genai {self.manifest.precision}"
        self.tokenizer = PromptTokenizer(folder)
        self._load_genai = functools.partial(load_genai, folder, threads, allow_spinning)
        model = json.loads((folder / GENAI_CONFIG).read_text(encoding="utf-8"))["model"]
        graph = open_graph(folder, threads, allow_spinning) if plain else None
        self._runtime: OrtGraph | GenaiModel = graph or GenaiModel(self._model)
        self._context_tokens: int = model["context_length"]
        eos = model["eos_token_id"]
        self.eos_ids: list[int] = eos if isinstance(eos, list) else [eos]
        self._close = _single_token(self.tokenizer, THINK_END)
        self._grammar: AnswerGrammar | None = None
        if guided:
            vocabulary = (folder / "tokenizer.json").read_text(encoding="utf-8")
            self._grammar = AnswerGrammar(vocabulary, model["vocab_size"], self.eos_ids)
        self._jump = jump
        self._streaming = False
        self._prepare_prefix()
        self._has_picks = lookup and self._reused.has_picks
        self._lookup = AnswerLookup(self.tokenizer.encode) if self._has_picks else None
        self._guesses = read_guesses(folder, self.eos_ids) if self._has_picks else None

    @functools.cached_property
    def _model(self) -> Any:
        """The folder as onnxruntime-genai holds it; a plain graph is loaded a second time."""
        return self._load_genai()

    @property
    def can_guess(self) -> bool:
        """Whether several tokens are checked in one pass: guesses cost more than they save else."""
        return self._has_picks

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Greedy completions, in order, one after another."""
        return [self._complete(request) for request in requests]

    def encode(self, request: Request) -> list[int]:
        """The token ids of a request's prompt, up to and with the opening of thinking."""
        fact = normalise_fact(request.fact)
        whole = self._encode_fact(fact, request.stated_budget)
        if len(whole) + _SEAMS <= self._bare_tokens + self.manifest.max_fact_tokens:
            return whole  # nothing to clip, as a second tokenisation would find out
        fact = clip_fact(fact, self.tokenizer, self.manifest.max_fact_tokens)
        return self._encode_fact(fact, request.stated_budget)

    def stream(self, request: Request) -> Generator[Step, None, None]:
        """Complete a request step by step; closing the iterator stops the work.

        The deadline is looked at between two prefill chunks and between two tokens. Raises
        ValueError when prompt and answer can't fit the context, RuntimeError when another
        stream of this engine is still open.
        """
        if self._streaming:
            raise RuntimeError("this engine is busy: close its open stream first")
        self._streaming = True
        try:
            yield from self._run(request)
        finally:
            self._streaming = False

    def _complete(self, request: Request) -> Generation:
        for step in self.stream(replace(request, tell_text=False)):
            if step.generation:
                return step.generation
        raise AssertionError("a stream ends with its generation")

    def _run(self, request: Request) -> Generator[Step, None, None]:
        started = time.monotonic()
        prompt = self.encode(request)
        limit = request.fit_thinking(len(prompt), self._context_tokens)
        sequence, feed = self._sequence_for(prompt, limit + 1 + request.answer_limit)
        thinking: list[int] = []
        answer: _Answer | None = None
        cut = False
        finish: Finish | None = None
        ahead: list[int] = []  # fed already, but not yet part of the text
        if limit == 0:
            answer, cut = self._begin_answer([], request.answer_limit), True
            ahead = answer.look_ahead()

        chunks = _split_prompt(feed)
        if answer:  # with the last chunk, so that it costs no pass of its own
            chunks[-1] += [self._close, *ahead]
        for chunk in chunks:
            if _is_past(request.deadline_s):
                finish, answer, cut = "deadline", None, False
                break
            sequence.feed(chunk, telling=1 + len(ahead))
            yield _PREFILL
        prefilled, prefill_passes = time.monotonic(), sequence.passes
        closed_passes = prefill_passes  # with the pass that read the end of thinking

        text = self.tokenizer.stream() if request.tell_text else None
        while finish is None:
            if _is_past(request.deadline_s):
                finish = "deadline"
                break
            token = self._choose(sequence, ahead, answer)
            if answer is None and len(thinking) == limit:
                cut = token != self._close
                token = self._close
            if token in self.eos_ids:
                finish = "stop"
                break
            if answer:
                answer.ids.append(token)
                yield Step("answer", text.push(token)) if text else _ANSWER
                if answer.room == 0:
                    finish = "length"
                    break
            elif token == self._close:
                answer = self._begin_answer(thinking, request.answer_limit)
                closed_passes = sequence.passes + (not ahead or ahead[0] != token)
                text = self.tokenizer.stream() if text else None
                yield _CLOSE
            else:
                thinking.append(token)
                yield Step("thinking", text.push(token)) if text else _THINKING
            if ahead and ahead[0] == token:
                del ahead[0]
                continue
            sequence.drop(len(ahead))
            if answer:
                ahead = answer.look_ahead()
            else:
                ahead = self._look_ahead(thinking, limit, request.answer_limit)
            sequence.feed([token, *ahead])

        completion = self.tokenizer.decode(thinking)
        if answer:
            completion += THINK_END + self.tokenizer.decode(answer.ids)
        generation = Generation(
            text=completion,
            prompt_tokens=len(prompt),
            thinking_tokens=len(thinking),
            answer_tokens=len(answer.ids) if answer else 0,
            thinking_cut=cut,
            finish=finish,
            prefill_ms=(prefilled - started) * 1e3,
            decode_ms=(time.monotonic() - prefilled) * 1e3,
            decode_passes=sequence.passes - prefill_passes,
            answer_passes=sequence.passes - closed_passes if answer else 0,
        )
        yield Step("end", generation=generation)

    def _look_ahead(self, thinking: list[int], limit: int, answer_limit: int) -> list[int]:
        """Tokens to feed along with the last of `thinking`: what the model is used to writing."""
        room = limit - len(thinking)
        if room == 0:  # whatever the model picks at the limit, the end of thinking follows
            return [self._close] if self._has_picks else []
        if self._guesses is None:
            return []
        guess = list(self._guesses.after(thinking, room + 1 + answer_limit))
        end = guess.index(self._close) if self._close in guess else len(guess)
        return guess[:room] if end > room else guess[: end + 1 + answer_limit]

    def _begin_answer(self, thinking: list[int], most_tokens: int) -> _Answer:
        return _Answer(
            self._close,
            most_tokens,
            self._grammar.begin() if self._grammar else None,
            self._lookup.begin(thinking) if self._lookup else None,
            self._guesses,
            jump=self._jump,
        )

    def _choose(self, sequence: TokenSequence, ahead: list[int], answer: _Answer | None) -> int:
        """The next token; clears `ahead` where it had to drop those tokens to find it."""
        if answer and answer.forced:
            return answer.take_forced()
        token = sequence.pick(len(ahead))
        if answer is None and token not in self.eos_ids:
            return token
        if answer and (answer.guided is None or answer.guided.take(token)):
            return token
        logits = sequence.logits(len(ahead))
        ahead.clear()
        if answer and answer.guided:
            return answer.guided.pick(logits)
        logits[self.eos_ids] = -np.inf  # a turn can't end before its thinking does
        return int(logits.argmax())

    def _encode_fact(self, fact: str, budget: int) -> list[int]:
        return self.tokenizer.encode(render_prompt(self.tokenizer, fact, budget))

    def _prepare_prefix(self) -> None:
        """Prefill once what every prompt starts with, in a sequence every request reuses.

        It is rewound to the same place each time, so a result never depends on the request
        before it. Its key-value cache is sized for this artifact's limits rather than the model's
        whole context, which would take gigabytes on a large one.
        """
        probes = [self._encode_fact(fact, 0) for fact in ("甲", "2")]
        self._prefix = _common_prefix(*probes)
        bare = [len(self._encode_fact("", b)) for b in BUDGET_LEVELS]
        self._bare_tokens, longest = min(bare), max(bare)
        self._capacity_tokens = min(
            self._context_tokens,
            longest
            + self.manifest.max_fact_tokens
            + _CLIP_SLACK
            + self.manifest.max_thinking_tokens
            + 1
            + MAX_ANSWER_TOKENS,
        )
        self._reused: TokenSequence = self._runtime.begin(self._capacity_tokens)
        self._reused.feed(self._prefix)

    def _sequence_for(self, prompt: list[int], more_tokens: int) -> tuple[TokenSequence, list[int]]:
        """A sequence with room for prompt and `more_tokens`, and what of the prompt to feed it."""
        held, total = len(self._prefix), len(prompt) + more_tokens
        if prompt[:held] != self._prefix or total > self._capacity_tokens:
            return self._runtime.begin(total), prompt
        self._reused.rewind_to(held)
        return self._reused, prompt[held:]


class _Answer:
    """One answer as it grows, and what is known of its next tokens before the model says so."""

    def __init__(
        self,
        close: int,
        most_tokens: int,
        guided: GuidedAnswer | None,
        guess: AnswerGuess | None,
        habits: GuessTable | None,
        *,
        jump: bool,
    ) -> None:
        self.ids: list[int] = []
        self.guided = guided
        self.forced: list[int] = []  # the grammar leaves no other choice: no need to ask the model
        self._close = close
        self._most_tokens = most_tokens
        self._guess = guess
        self._habits = habits
        self._jump = jump

    @property
    def room(self) -> int:
        """How many more tokens the answer may have."""
        return self._most_tokens - len(self.ids)

    def look_ahead(self) -> list[int]:
        """Tokens to feed along: forced ones, then guessed ones."""
        room = self.room
        if self.guided and self._jump:
            self.forced = self.guided.foresee()[:room]
        ahead = list(self.forced)
        most = min(room, MOST_GUESSED) - len(ahead)
        if self._guess and most > 0:
            text = [self._close, *self.ids, *ahead]
            guess = self._guess.after(text, most)
            if not guess and self._habits:
                guess = list(self._habits.after(text, most))
            ahead += guess
        return ahead

    def take_forced(self) -> int:
        """The next forced token, as part of the grammar's text."""
        token = self.forced.pop(0)
        taken = self.guided is not None and self.guided.take(token)
        assert taken, "a forced token is allowed"
        return token


def _single_token(tokenizer: PromptTokenizer, text: str) -> int:
    ids = tokenizer.encode(text)
    if len(ids) != 1:
        raise ArtifactError(
            f"the tokenizer splits {text} into {len(ids)} tokens: add it as a special token and "
            "train again"
        )
    return ids[0]


def _split_prompt(ids: list[int]) -> list[list[int]]:
    """Chunks of about `CHUNK_TOKENS`, between which a request can be stopped."""
    chunks = []
    while len(ids) > LAST_CHUNK_TOKENS:
        chunks.append(ids[:CHUNK_TOKENS])
        ids = ids[CHUNK_TOKENS:]
    return [*chunks, ids]


def _common_prefix(left: list[int], right: list[int]) -> list[int]:
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return left[:length]


def _is_past(deadline_s: float | None) -> bool:
    return deadline_s is not None and time.monotonic() >= deadline_s
