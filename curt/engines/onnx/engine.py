"""The ONNX Runtime engine: single-threaded by default, one request at a time.

It drives the model token by token, because only our own loop can hold a thinking limit and a
deadline. Run it in a worker process, never in a server's front: a pass takes milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from curt.artifact import Format, load_manifest
from curt.classifier.candidates import LONGEST_TOKENS, PROBE, load_prompts
from curt.dialogue import BUDGET_LEVELS, MAX_ANSWER_TOKENS, THINK_END, Prompt
from curt.engines.grammar import AnswerGrammar
from curt.engines.onnx.graph import TokenSequence, open_graph, read_settings
from curt.engines.onnx.speculation import Speculation, common_prefix
from curt.engines.protocol import Generation, GenerationStep, Request, last_generation
from curt.engines.tokenizer import PromptTokenizer
from curt.engines.writing import Writing

CHUNK_TOKENS = 64  # prefill between two steps: about 5 ms at 5 M parameters, none slower for it
LAST_CHUNK_TOKENS = 96  # a rest of this many is not worth a pass more
_SEAMS = 8  # tokens that a fact may be longer by within its prompt than alone
_PREFILL = GenerationStep("prefill")


class OrtEngine:
    """Loads an "ort-genai" model folder and completes one request at a time, greedily."""

    formats: ClassVar[tuple[Format, ...]] = ("ort-genai",)
    is_remote: ClassVar = False
    serves: ClassVar = True

    def __init__(
        self,
        folder: Path | str,
        *,
        threads: int = 1,
        batch: int = 1,
        allow_spinning: bool = False,
        guided: bool = True,
        speculate: bool = True,
    ) -> None:
        """Verify and load `folder`.

        `threads` is the number of intra-op threads; `allow_spinning` lets them burn their core
        while they wait, faster only where nothing else wants it; of a `batch` it completes one
        after another. `guided` holds answers to the grammar. With `speculate`, likely tokens are
        fed along with the one before them where the graph tells whether the model picks them
        (`compress.onnx.speculation`). Raises ArtifactError when the folder must not be loaded or
        its graph can't run on this machine.
        """
        folder = Path(folder)
        if threads < 1:
            raise ValueError(f"{threads} threads: use 1 or more")
        self.manifest = load_manifest(folder, expect="ort-genai")
        self.name = f"onnxruntime {self.manifest.precision}"
        self.tokenizer = PromptTokenizer(folder)
        self.prompts = load_prompts(folder, self.tokenizer, self.manifest.max_fact_tokens)
        model = read_settings(folder)["model"]
        self._graph = open_graph(folder, threads, allow_spinning)
        self._context_tokens: int = model["context_length"]
        eos = model["eos_token_id"]
        self.eos_ids: list[int] = eos if isinstance(eos, list) else [eos]
        self._close = self.tokenizer.single_id(THINK_END)
        self._grammar = AnswerGrammar(folder, model["vocab_size"], self.eos_ids) if guided else None
        self._speculation: Speculation | None = None
        if speculate and self._graph.tells_likeliest:
            self._speculation = Speculation(
                folder, self.tokenizer.encode, self._close, self.eos_ids
            )
        self._streaming = False
        self._prepare_prefix()

    @property
    def can_guess(self) -> bool:
        """Whether several tokens are checked in one pass: guesses cost more than they save else."""
        return self._speculation is not None

    @property
    def reused_tokens(self) -> int:
        """How many tokens every prompt starts with, which are read once."""
        return len(self._prefix)

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Greedy completions, in order, one after another."""
        return [last_generation(self.stream(replace(r, tell_text=False))) for r in requests]

    def encode(self, request: Request) -> Prompt:
        """A request's prompt, up to and with the opening of thinking."""
        return self.prompts.encode(request.fact, request.stated_budget, request.candidates)

    def stream(self, request: Request) -> Generator[GenerationStep, None, None]:
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

    def _run(self, request: Request) -> Generator[GenerationStep, None, None]:
        started = time.monotonic()
        prompt = self.encode(request)
        writing = Writing(
            request,
            self.tokenizer,
            prompt=prompt,
            thinking_limit=request.fit_thinking(len(prompt), self._context_tokens),
            close_id=self._close,
            eos_ids=self.eos_ids,
            grammar=self._grammar,
        )
        sequence, feed = self._sequence_for(
            prompt.ids, writing.thinking_limit + 1 + request.answer_limit
        )
        ahead: list[int] = []  # fed already, but not yet part of the text
        chunks = split_prompt(feed)
        if writing.thinking_limit == 0:  # with the last chunk, so that it costs no pass of its own
            ahead = self._look_ahead(writing, closed=True)
            chunks[-1] += [self._close, *ahead]
        for chunk in chunks:
            if writing.must_stop():
                break
            sequence.feed(chunk, telling=1 + len(ahead))
            yield _PREFILL
        else:
            if writing.thinking_limit == 0:
                writing.close(cut=True)
        prefilled, prefill_passes = time.monotonic(), sequence.passes
        closed_passes = prefill_passes  # with the pass that read the end of thinking

        while not writing.must_stop():
            step = writing.take(self._choose(sequence, ahead, writing))
            if step is None:
                break
            token = writing.last_token
            if step.phase == "close":
                closed_passes = sequence.passes + (not ahead or ahead[0] != token)
            yield step
            if writing.is_complete():
                break
            if ahead and ahead[0] == token:
                del ahead[0]
                continue
            sequence.drop(len(ahead))
            ahead = self._look_ahead(writing, closed=writing.closed)
            sequence.feed([token, *ahead])
        yield writing.end(
            (prefilled - started) * 1e3,
            (time.monotonic() - prefilled) * 1e3,
            sequence.passes - prefill_passes,
            sequence.passes - closed_passes if writing.closed else 0,
        )

    def _look_ahead(self, writing: Writing, *, closed: bool) -> list[int]:
        return self._speculation.after(writing, closed=closed) if self._speculation else []

    def _choose(self, sequence: TokenSequence, ahead: list[int], writing: Writing) -> int:
        """The next token; clears `ahead` where it had to drop those tokens to find it."""

        def logits() -> npt.NDArray[np.float32]:
            told = sequence.logits(len(ahead))
            ahead.clear()
            return told

        return writing.choose(sequence.likeliest(len(ahead)), logits)

    def _prepare_prefix(self) -> None:
        """Prefill once what every prompt starts with, in a sequence every request reuses.

        It is rewound to the same place each time, so a result never depends on the request
        before it. Its key-value cache is sized for this artifact's limits rather than the model's
        whole context, which would take gigabytes on a large one.
        """
        starts = [("甲", ""), ("2", "")]
        room = self.manifest.max_fact_tokens + _SEAMS
        if self.prompts.reader:
            starts.append(("甲", PROBE))
            room += LONGEST_TOKENS
        probes = [self.prompts.encode(fact, 0, candidates).ids for fact, candidates in starts]
        self._prefix = list(common_prefix(common_prefix(probes[0], probes[1]), probes[-1]))
        bare = max(len(self.prompts.encode("", budget, "")) for budget in BUDGET_LEVELS)
        self._capacity_tokens = min(
            self._context_tokens,
            bare + room + self.manifest.max_thinking_tokens + 1 + MAX_ANSWER_TOKENS,
        )
        self._reused = self._graph.begin(self._capacity_tokens)
        self._reused.feed(self._prefix)

    def _sequence_for(self, prompt: list[int], more_tokens: int) -> tuple[TokenSequence, list[int]]:
        """A sequence with room for prompt and `more_tokens`, and what of the prompt to feed it."""
        held, total = len(self._prefix), len(prompt) + more_tokens
        if prompt[:held] != self._prefix or total > self._capacity_tokens:
            return self._graph.begin(total), prompt
        self._reused.rewind_to(held)
        return self._reused, prompt[held:]


def split_prompt(ids: list[int]) -> list[list[int]]:
    """Chunks of about `CHUNK_TOKENS`, between which a request can be stopped."""
    chunks = []
    while len(ids) > LAST_CHUNK_TOKENS:
        chunks.append(ids[:CHUNK_TOKENS])
        ids = ids[CHUNK_TOKENS:]
    return [*chunks, ids]
