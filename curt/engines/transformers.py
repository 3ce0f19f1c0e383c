"""The development engine: PyTorch through transformers, batched. Slow and exact."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from curt.artifact import Format, load_manifest
from curt.classifier.candidates import load_prompts
from curt.dialogue import THINK_END, Prompt
from curt.engines.grammar import AnswerGrammar
from curt.engines.protocol import Generation, GenerationStep, Request, last_generation
from curt.engines.tokenizer import PromptTokenizer, read_eos_ids
from curt.engines.writing import Writing

CHUNK_TOKENS = 64  # of a stream's prefill between two looks at the deadline


class TransformersEngine:
    """Runs an "hf" model folder. Requests with a deadline go one by one, all others in batches."""

    name = "transformers"
    formats: ClassVar[tuple[Format, ...]] = ("hf",)
    is_remote: ClassVar = False
    serves: ClassVar = False

    def __init__(
        self,
        folder: Path | str,
        *,
        batch: int = 128,
        device: str | None = None,
        guided: bool = True,
        threads: int = 0,
    ) -> None:
        """Verify and load `folder` on `device`, by default a GPU where there is one.

        It runs on as many `threads` as torch has; `guided` holds answers to the grammar. Raises
        ArtifactError when the folder must not be loaded.
        """
        import torch

        folder = Path(folder)
        self.manifest = load_manifest(folder, expect="hf")
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.batch = batch
        self.tokenizer = PromptTokenizer(folder)
        self.prompts = load_prompts(folder, self.tokenizer, self.manifest.max_fact_tokens)
        self.model = load_model(folder).to(self.device).eval()
        self.close_id = self.tokenizer.single_id(THINK_END)
        self.eos_ids = read_eos_ids(folder, self.tokenizer)
        width = self.model.config.vocab_size
        self._grammar = AnswerGrammar(folder, width, self.eos_ids) if guided else None

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Greedy completions in order, in batches of `batch` or, with deadlines, one by one.

        Raises ValueError when prompt and answer can't fit the context.
        """
        if any(request.deadline_s is not None for request in requests):
            return [last_generation(self.stream(request)) for request in requests]
        starts = range(0, len(requests), self.batch)
        return [g for s in starts for g in self._generate_batch(requests[s : s + self.batch])]

    def stream(self, request: Request) -> Generator[GenerationStep, None, None]:
        """Complete a request step by step; closing the generator stops the work."""
        prompt = self.encode(request)
        writing = self._begin(request, prompt)
        started_s = time.monotonic()
        reader = _Reader(self, rows=1)
        feed = prompt.ids + ([self.close_id] if writing.thinking_limit == 0 else [])
        for start in range(0, len(feed), CHUNK_TOKENS):
            if writing.must_stop():
                break
            reader.read([feed[start : start + CHUNK_TOKENS]])
            yield GenerationStep("prefill")
        else:
            if writing.thinking_limit == 0:
                writing.close(cut=True)
        prefilled_s = time.monotonic()
        while not writing.must_stop():
            step = writing.take(reader.pick(writing))
            if step:
                yield step
            if not writing.is_complete():
                reader.read([[writing.last_token]])
        yield writing.end((prefilled_s - started_s) * 1e3, (time.monotonic() - prefilled_s) * 1e3)

    def encode(self, request: Request) -> Prompt:
        """A request's prompt, up to and with the opening of thinking."""
        return self.prompts.encode(request.fact, request.stated_budget, request.candidates)

    def _begin(self, request: Request, prompt: Prompt) -> Writing:
        context_tokens = self.model.config.max_position_embeddings
        return Writing(
            request,
            self.tokenizer,
            prompt=prompt,
            thinking_limit=request.fit_thinking(len(prompt), context_tokens),
            close_id=self.close_id,
            eos_ids=self.eos_ids,
            grammar=self._grammar,
        )

    def _generate_batch(self, requests: Sequence[Request]) -> list[Generation]:
        started_s = time.perf_counter()
        prompts = [self.encode(request) for request in requests]
        writings = [
            self._begin(request, prompt) for request, prompt in zip(requests, prompts, strict=True)
        ]
        reader = _Reader(self, rows=len(prompts))
        reader.read([prompt.ids for prompt in prompts])
        while True:
            for row, writing in enumerate(writings):
                if not writing.is_complete():
                    writing.take(reader.pick(writing, row))
            if all(writing.is_complete() for writing in writings):
                break
            # Rows that are complete are fed on, which changes nothing of the others.
            reader.read([[max(0, writing.last_token)] for writing in writings])
        decode_ms = (time.perf_counter() - started_s) * 1e3 / len(requests)
        ends = [writing.end(0.0, decode_ms) for writing in writings]
        return [end.generation for end in ends if end.generation]


def load_model(path: Path | str, **options: Any) -> Any:
    """The model at `path`, with `options` of `from_pretrained`, computing what it was trained to.

    Attention that caps its scores (Gemma 2) is run eagerly: torch's fused one leaves the cap out.
    """
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(path, **options)
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    return model


class _Reader:
    """The model over a batch of texts that grow; the shorter of them are padded at the left."""

    def __init__(self, engine: TransformersEngine, rows: int) -> None:
        import torch

        self._model, self._device = engine.model, engine.device
        self._mask = torch.zeros((rows, 0), dtype=torch.long, device=self._device)  # (B, held)
        self._cache: Any = None
        self._logits: Any = None  # (B, V), after the last token of each text
        self._likeliest: list[int] = []

    def read(self, texts: Sequence[Sequence[int]]) -> None:
        """Run the model over some more tokens of each text."""
        import torch

        width = max(map(len, texts))
        ids = torch.tensor([[0] * (width - len(text)) + list(text) for text in texts])
        there = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
        self._mask = torch.cat([self._mask, there.to(self._device)], dim=1)
        positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)[:, -width:]
        with torch.inference_mode():
            output = self._model(
                input_ids=ids.to(self._device),
                attention_mask=self._mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._cache, self._logits = output.past_key_values, output.logits[:, -1]
        self._likeliest = self._logits.argmax(dim=-1).tolist()

    def pick(self, writing: Writing, row: int = 0) -> int:
        """The likeliest token after a text that its completion allows."""
        return writing.choose(
            self._likeliest[row], lambda: self._logits[row].float().cpu().numpy().copy()
        )
