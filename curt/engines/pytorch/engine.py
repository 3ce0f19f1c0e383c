"""The development engine: PyTorch through transformers, batched. Slow and exact."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList

from curt.artifact import load_manifest
from curt.dialogue import THINK_END, encode, prompt_for
from curt.engines.protocol import Finish, Generation, Request, Step
from curt.engines.pytorch.stream import stream_steps


class ThinkingLimit(LogitsProcessor):
    """Forces the end of thinking, and later the end of the turn, when a row's limit is reached."""

    def __init__(
        self,
        prompt_tokens: int,
        thinking_limits: Sequence[int],
        answer_limits: Sequence[int],
        end_ids: Sequence[int],
        eos_ids: Sequence[int],
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.thinking_limits = thinking_limits
        self.answer_limits = answer_limits
        self.end_ids = list(end_ids)
        self.eos_ids = list(eos_ids)
        self.cut = [False] * len(thinking_limits)
        """Rows whose thinking the limit closed where the model would have gone on."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        """`input_ids` (B, T), `scores` (B, V); returns scores with forced rows replaced."""
        forced = scores.clone()
        for row, ids in enumerate(input_ids[:, self.prompt_tokens :].tolist()):
            token = self._forced_token(ids, self.thinking_limits[row], self.answer_limits[row])
            # a turn can't end before its thinking does
            if find_sequence(ids, self.end_ids) is None:
                forced[row, self.eos_ids] = -torch.inf
            if token is not None:
                if token == self.end_ids[0] and len(ids) == self.thinking_limits[row]:
                    self.cut[row] = int(forced[row].argmax()) != token
                forced[row] = -torch.inf
                forced[row, token] = 0.0
        return forced

    def _forced_token(self, ids: list[int], thinking: int, answer: int) -> int | None:
        end = find_sequence(ids, self.end_ids)
        if end is not None:
            return self.eos_ids[0] if len(ids) - end - len(self.end_ids) >= answer else None
        position = len(ids) - thinking
        return self.end_ids[position] if position >= 0 else None


class TransformersEngine:
    """Runs an "hf" model folder. Requests with a deadline go one by one, all others in batches."""

    name = "transformers"

    def __init__(self, folder: Path | str, *, batch: int = 128, device: str | None = None) -> None:
        self.manifest = load_manifest(folder, expect="hf")
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.batch = batch
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        model: Any = AutoModelForCausalLM.from_pretrained(folder)
        self.model = model.to(self.device).eval()
        self.end_ids: list[int] = encode(self.tokenizer, THINK_END)
        eos = self.model.generation_config.eos_token_id  # Qwen's hub checkpoints list two
        listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
        self.eos_ids = sorted({self.tokenizer.eos_token_id, *listed})

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Greedy completions in order, in batches of `batch` or, with deadlines, one by one.

        Raises ValueError when prompt and answer can't fit the context.
        """
        if any(request.deadline_s is not None for request in requests):
            return [self._complete(request) for request in requests]
        starts = range(0, len(requests), self.batch)
        return [g for s in starts for g in self._generate_batch(requests[s : s + self.batch])]

    def stream(self, request: Request) -> Generator[Step, None, None]:
        """Complete a request step by step; closing the generator stops the work."""
        prompt = self.encode(request)
        yield from stream_steps(self, prompt, self._fit_thinking(len(prompt), request), request)

    def encode(self, request: Request) -> list[int]:
        """The token ids of a request's prompt, up to and with the opening of thinking."""
        return encode(self.tokenizer, self.render(request))

    def render(self, request: Request) -> str:
        """The prompt text of a request."""
        limit = self.manifest.max_fact_tokens
        return prompt_for(self.tokenizer, request.fact, request.stated_budget, limit)

    def _complete(self, request: Request) -> Generation:
        for step in self.stream(request):
            if step.generation:
                return step.generation
        raise AssertionError("a stream ends with its generation")

    def _fit_thinking(self, prompt_tokens: int, request: Request) -> int:
        # A general tokenizer may need several tokens to end the thinking; one is counted there.
        context_tokens = self.model.config.max_position_embeddings - len(self.end_ids) + 1
        return request.fit_thinking(prompt_tokens, context_tokens)

    def _generate_batch(self, requests: Sequence[Request]) -> list[Generation]:
        started = time.perf_counter()
        inputs = self.tokenizer(
            [self.render(r) for r in requests],
            add_special_tokens=False,
            padding=True,
            return_tensors="pt",
        ).to(self.device)
        inputs.pop("token_type_ids", None)
        prompt_tokens = inputs["input_ids"].shape[1]
        own_tokens = [int(mask.sum()) for mask in inputs["attention_mask"]]
        thinking = [self._fit_thinking(n, r) for n, r in zip(own_tokens, requests, strict=True)]
        limit = ThinkingLimit(
            prompt_tokens,
            thinking,
            [r.answer_limit for r in requests],
            self.end_ids,
            self.eos_ids,
        )
        most = [own + r.answer_limit for own, r in zip(thinking, requests, strict=True)]
        longest = max(most) + len(self.end_ids) + 1
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=longest,
                logits_processor=LogitsProcessorList([limit]),
            )
        decode_ms = (time.perf_counter() - started) * 1000 / len(requests)
        return [
            self._collect(request, ids, own, cut, decode_ms)
            for request, ids, own, cut in zip(
                requests,
                output[:, prompt_tokens:].tolist(),
                own_tokens,
                limit.cut,
                strict=True,
            )
        ]

    def _collect(
        self, request: Request, ids: list[int], prompt_tokens: int, cut: bool, decode_ms: float
    ) -> Generation:
        stop = next((i for i, token in enumerate(ids) if token in self.eos_ids), None)
        stopped = stop is not None
        ids = ids[:stop]
        end = find_sequence(ids, self.end_ids)
        thinking = end if end is not None else len(ids)
        answer = len(ids) - thinking - len(self.end_ids) if end is not None else 0
        finish: Finish = "stop" if stopped and answer < request.answer_limit else "length"
        text = str(self.tokenizer.decode(ids, skip_special_tokens=False))
        return Generation(
            text=text,
            prompt_tokens=prompt_tokens,
            thinking_tokens=thinking,
            answer_tokens=answer,
            thinking_cut=cut,
            finish=finish,
            prefill_ms=0.0,
            decode_ms=decode_ms,
        )


def find_sequence(ids: Sequence[int], wanted: Sequence[int]) -> int | None:
    """Index of the first occurrence of `wanted` in `ids`, or None."""
    size = len(wanted)
    for start in range(len(ids) - size + 1):
        if list(ids[start : start + size]) == list(wanted):
            return start
    return None
