"""The ONNX Runtime engine: single-threaded by default, one request at a time, CPU.

It drives the Generator API of onnxruntime-genai token by token, because only our own loop can
hold a thinking limit and a deadline. Its `append_tokens` holds the interpreter lock for a whole
chunk: run the engine in a worker process, never in a server's front.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnxruntime_genai as og

from curt.artifact import ArtifactError, load_manifest
from curt.dialogue import (
    BUDGET_LEVELS,
    MAX_ANSWER_TOKENS,
    THINK_END,
    clip_fact,
    normalise_fact,
    render_prompt,
)
from curt.engines.answer_grammar import AnswerGrammar
from curt.engines.prompt_tokenizer import PromptTokenizer
from curt.engines.protocol import Finish, Generation, Request, Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENAI_CONFIG = "genai_config.json"
CHUNK_TOKENS = 64  # prefill between two steps: about 5 ms at 5 M parameters, none slower for it
_CLIP_SLACK = 16  # clip_fact adds an ellipsis and may split two characters at its seams


class OrtEngine:
    """Loads an "ort-genai" model folder and completes one request at a time, greedily."""

    def __init__(
        self,
        folder: Path | str,
        *,
        threads: int = 1,
        allow_spinning: bool = False,
        guided: bool = False,
    ) -> None:
        """Verify and load `folder`.

        `threads` is the number of intra-op threads; `allow_spinning` lets them burn their core
        while they wait, faster only where nothing else wants it. `guided` holds answers to the
        grammar, so that each that ends can be read; it needs the llguidance package. Raises
        ArtifactError when the folder must not be loaded.
        """
        folder = Path(folder)
        if threads < 1:
            raise ValueError(f"{threads} threads: use 1 or more")
        self.manifest = load_manifest(folder, expect="ort-genai")
        self.name = f"onnxruntime-genai {self.manifest.precision}"
        self.tokenizer = PromptTokenizer(folder)
        self._model = og.Model(session_config(folder, threads, allow_spinning))
        settings = json.loads((folder / GENAI_CONFIG).read_text(encoding="utf-8"))["model"]
        self._context_tokens: int = settings["context_length"]
        eos = settings["eos_token_id"]
        self._eos_ids: list[int] = eos if isinstance(eos, list) else [eos]
        self._close = _single_token(self.tokenizer, THINK_END)
        self._grammar: AnswerGrammar | None = None
        if guided:
            vocabulary = (folder / "tokenizer.json").read_text(encoding="utf-8")
            self._grammar = AnswerGrammar(vocabulary, settings["vocab_size"], self._eos_ids)
        self._streaming = False
        self._prepare_prefix()

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Greedy completions, in order, one after another."""
        return [self._complete(request) for request in requests]

    def encode(self, request: Request) -> list[int]:
        """The token ids of a request's prompt, up to and with the opening of thinking."""
        fact = clip_fact(
            normalise_fact(request.fact), self._as_transformers(), self.manifest.max_fact_tokens
        )
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
        for step in self.stream(request):
            if step.generation:
                return step.generation
        raise AssertionError("a stream ends with its generation")

    def _run(self, request: Request) -> Generator[Step, None, None]:
        started = time.monotonic()
        prompt = self.encode(request)
        limit = self._fit_thinking(len(prompt), request)
        total = len(prompt) + limit + 1 + request.answer_limit
        generator, position = self._generator_for(prompt, total)
        thinking: list[int] = []
        answer: list[int] = []
        closed = cut = False
        finish: Finish | None = None

        feed = prompt[position:] + ([self._close] if limit == 0 else [])
        for start in range(0, len(feed), CHUNK_TOKENS):
            if _is_past(request.deadline_s):
                finish = "deadline"
                break
            append_tokens(generator, feed[start : start + CHUNK_TOKENS])
            yield Step("prefill")
        else:
            closed = cut = limit == 0
        prefilled = time.monotonic()

        text = self.tokenizer.stream()
        guided = self._grammar.begin() if self._grammar else None
        while finish is None:
            if _is_past(request.deadline_s):
                finish = "deadline"
                break
            logits = np.array(generator.get_logits()[0, -1])
            if not closed:  # a turn can't end before its thinking does
                logits[self._eos_ids] = -np.inf
            token = guided.pick(logits) if guided and closed else int(logits.argmax())
            if not closed and len(thinking) == limit:
                cut = token != self._close
                token = self._close
            if token in self._eos_ids:
                finish = "stop"
                break
            if closed:
                answer.append(token)
                yield Step("answer", text.push(token))
                if len(answer) == request.answer_limit:
                    finish = "length"
                    break
            elif token == self._close:
                closed = True
                text = self.tokenizer.stream()
                yield Step("close", THINK_END)
            else:
                thinking.append(token)
                yield Step("thinking", text.push(token))
            append_tokens(generator, [token])

        completion = self.tokenizer.decode(thinking)
        if closed:
            completion += THINK_END + self.tokenizer.decode(answer)
        generation = Generation(
            text=completion,
            prompt_tokens=len(prompt),
            thinking_tokens=len(thinking),
            answer_tokens=len(answer),
            thinking_cut=cut,
            finish=finish,
            prefill_ms=(prefilled - started) * 1e3,
            decode_ms=(time.monotonic() - prefilled) * 1e3,
        )
        yield Step("end", generation=generation)

    def _encode_fact(self, fact: str, budget: int) -> list[int]:
        return self.tokenizer.encode(render_prompt(self._as_transformers(), fact, budget))

    def _as_transformers(self) -> PreTrainedTokenizerBase:
        # PromptTokenizer does what curt.dialogue asks of one, without its base class.
        return cast("PreTrainedTokenizerBase", self.tokenizer)

    def _fit_thinking(self, prompt_tokens: int, request: Request) -> int:
        """The thinking limit, lowered where the context is too short for it."""
        if request.thinking_limit < 0 or request.answer_limit < 1:
            raise ValueError(
                f"limits of {request.thinking_limit} thinking and {request.answer_limit} answer "
                "tokens: use 0 or more and 1 or more"
            )
        room = self._context_tokens - prompt_tokens - request.answer_limit - 1
        if room < 0:
            raise ValueError(
                f"a prompt of {prompt_tokens} and an answer of {request.answer_limit} tokens do "
                f"not fit the model's context of {self._context_tokens}: clip facts shorter"
            )
        return min(request.thinking_limit, room)

    def _prepare_prefix(self) -> None:
        """Prefill once what every prompt starts with, in a generator every request reuses.

        The reused generator is rewound to the same place each time, so a result never depends
        on the request before it. Its key-value cache is sized for this artifact's limits rather
        than the model's whole context, which would take gigabytes on a large one.
        """
        probes = [self._encode_fact(fact, 0) for fact in ("甲", "2")]
        self._prefix = _common_prefix(*probes)
        longest = max(len(self._encode_fact("", b)) for b in BUDGET_LEVELS)
        self._capacity_tokens = min(
            self._context_tokens,
            longest
            + self.manifest.max_fact_tokens
            + _CLIP_SLACK
            + self.manifest.max_thinking_tokens
            + 1
            + MAX_ANSWER_TOKENS,
        )
        self._reused = self._new_generator(self._capacity_tokens)
        append_tokens(self._reused, self._prefix)

    def _generator_for(self, prompt: list[int], total_tokens: int) -> tuple[Any, int]:
        """A generator with room for `total_tokens`, and how much of the prompt it already holds."""
        held = len(self._prefix)
        if prompt[:held] == self._prefix and total_tokens <= self._capacity_tokens:
            self._reused.rewind_to(held)
            return self._reused, held
        return self._new_generator(total_tokens), 0

    def _new_generator(self, max_tokens: int) -> Any:
        params = og.GeneratorParams(self._model)
        params.set_search_options(max_length=max_tokens, do_sample=False)
        return og.Generator(self._model, params)


def append_tokens(generator: Any, ids: list[int]) -> None:
    """Run the model over some more tokens.

    Every token goes in here, also the ones picked from the logits: an append right after
    `generate_next_token` gives wrong logits unless `get_logits` was called in between (0.18).
    """
    generator.append_tokens(np.asarray(ids, dtype=np.int32))


def session_config(folder: Path, threads: int, allow_spinning: bool) -> Any:
    """The folder's onnxruntime_genai.Config with this many intra-op threads."""
    config = og.Config(str(folder))
    options = {
        "intra_op_num_threads": threads,
        "session.intra_op.allow_spinning": "1" if allow_spinning else "0",
    }
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    return config


def _single_token(tokenizer: PromptTokenizer, text: str) -> int:
    ids = tokenizer.encode(text)
    if len(ids) != 1:
        raise ArtifactError(
            f"the tokenizer splits {text} into {len(ids)} tokens: add it as a special token and "
            "train again"
        )
    return ids[0]


def _common_prefix(left: list[int], right: list[int]) -> list[int]:
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return left[:length]


def _is_past(deadline_s: float | None) -> bool:
    return deadline_s is not None and time.monotonic() >= deadline_s
