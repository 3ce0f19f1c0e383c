"""One request through PyTorch, token by token: the development engine as a streaming one."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import torch

from curt.dialogue import THINK_END
from curt.engines.protocol import Finish, Generation, Request, Step
from curt.engines.tokenizer import TextStream

if TYPE_CHECKING:
    from curt.engines.pytorch.engine import TransformersEngine

CHUNK_TOKENS = 64  # of the prefill between two looks at the deadline


def stream_steps(
    engine: TransformersEngine, prompt: list[int], limit: int, request: Request
) -> Generator[Step, None, None]:
    """Complete a request whose prompt is `prompt`, with at most `limit` tokens of thinking.

    Raises ValueError where the tokenizer splits the end of thinking.
    """
    if len(engine.end_ids) != 1:
        raise ValueError(
            f"the tokenizer splits {THINK_END} into {len(engine.end_ids)} tokens: add it as a "
            "special token, or generate without a stream and without a deadline"
        )
    close, started_s = engine.end_ids[0], time.monotonic()
    thinking: list[int] = []
    answer: list[int] = []
    closed = cut = False
    finish: Finish | None = None
    reader = _Reader(engine)

    feed = prompt + ([close] if limit == 0 else [])
    for start in range(0, len(feed), CHUNK_TOKENS):
        if _is_past(request.deadline_s):
            finish = "deadline"
            break
        reader.read(feed[start : start + CHUNK_TOKENS])
        yield Step("prefill")
    else:
        closed = cut = limit == 0
    prefilled_s = time.monotonic()

    text = TextStream(engine.tokenizer.backend_tokenizer)
    while finish is None:
        if _is_past(request.deadline_s):
            finish = "deadline"
            break
        token = reader.pick(banned=[] if closed else engine.eos_ids)
        if not closed and len(thinking) == limit:
            cut, token = token != close, close
        if token in engine.eos_ids:
            finish = "stop"
            break
        if closed:
            answer.append(token)
            yield Step("answer", text.push(token))
            if len(answer) == request.answer_limit:
                finish = "length"
                break
        elif token == close:
            closed = True
            text = TextStream(engine.tokenizer.backend_tokenizer)
            yield Step("close", THINK_END)
        else:
            thinking.append(token)
            yield Step("thinking", text.push(token))
        reader.read([token])

    written = [*thinking, *([close] if closed else []), *answer]
    yield Step(
        "end",
        generation=Generation(
            text=str(engine.tokenizer.decode(written, skip_special_tokens=False)),
            prompt_tokens=len(prompt),
            thinking_tokens=len(thinking),
            answer_tokens=len(answer),
            thinking_cut=cut,
            finish=finish,
            prefill_ms=(prefilled_s - started_s) * 1e3,
            decode_ms=(time.monotonic() - prefilled_s) * 1e3,
        ),
    )


class _Reader:
    """The model over a text that grows."""

    def __init__(self, engine: TransformersEngine) -> None:
        self._model, self._device = engine.model, engine.device
        self._cache: Any = None
        self._logits: Any = None

    def read(self, ids: list[int]) -> None:
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor([ids], device=self._device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._cache, self._logits = output.past_key_values, output.logits[0, -1]

    def pick(self, banned: list[int]) -> int:
        """The likeliest next token."""
        logits = self._logits.clone()
        logits[banned] = -torch.inf
        return int(logits.argmax())


def _is_past(deadline_s: float | None) -> bool:
    return deadline_s is not None and time.monotonic() >= deadline_s
