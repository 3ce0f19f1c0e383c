"""A neighbour of the pool: an engine whose speed and faults are written in the fact."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

from curt.artifact import Manifest
from curt.dialogue import THINK_END, render_answer
from curt.engines.protocol import Generation, GenerationStep, Request
from curt.law.verdict import Term, Verdict
from serve.pool.worker import CountTokens

VERDICT = Verdict(("盗窃",), ("264",), Term("fixed", 8, 12), 2000)
MANIFEST = Manifest(
    format="ort-genai", precision="int4", stage="test", base="fake",
    max_fact_tokens=200, max_thinking_tokens=64,
)  # fmt: skip


class FakeEngine:
    """Takes 0.2 ms a prompt token and 1 ms an output token, and always answers VERDICT.

    睡300毫秒 in a fact adds that pause, 慢十倍 makes output ten times slower; 崩溃 kills the
    process, 出错 raises with the fact in the message. It uses up its thinking limit.
    """

    name = "fake"
    manifest = MANIFEST

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Generation:
        if "崩溃" in request.fact:
            os._exit(9)
        if "出错" in request.fact:
            raise ValueError(f"cannot judge {request.fact}")
        prompt_tokens = 40 + min(len(request.fact), 200)
        prefill_ms = 0.2 * prompt_tokens
        pause = re.search(r"睡(\d+)毫秒", request.fact)
        time.sleep((prefill_ms + (int(pause[1]) if pause else 0)) / 1e3)
        slowness = 10.0 if "慢十倍" in request.fact else 1.0
        decode_ms = slowness * (request.thinking_limit + 1 + 30)
        time.sleep(decode_ms / 1e3)
        late = request.deadline_s is not None and time.monotonic() > request.deadline_s
        return Generation(
            text=f"窃取{THINK_END}{render_answer(VERDICT)}",
            prompt_tokens=prompt_tokens,
            thinking_tokens=request.thinking_limit,
            answer_tokens=30,
            thinking_cut=True,
            finish="deadline" if late else "stop",
            prefill_ms=prefill_ms,
            decode_ms=decode_ms,
        )


class FakeStreamingEngine(FakeEngine):
    """Takes 2 ms a thinking token and says one character of 推理。 each; else as FakeEngine.

    读不懂 in a fact makes it answer outside the grammar. Its reasoning begins with the fact's own
    digits, so that an answer to another fact is told apart.
    """

    def stream(self, request: Request) -> Generator[GenerationStep, None, None]:
        own = "".join(re.findall(r"编号(\d+)", request.fact))
        yield GenerationStep("prefill")
        for place in range(request.thinking_limit):
            if "崩溃" in request.fact and place == 5:
                os._exit(9)
            time.sleep(0.002)
            if request.deadline_s is not None and time.monotonic() > request.deadline_s:
                break
            yield GenerationStep("thinking", (own + "推理。" * 999)[place])
        yield GenerationStep("close", THINK_END)
        whole = self._one(replace(request, thinking_limit=0))
        text = (own + "推理。" * 999)[: request.thinking_limit] + THINK_END
        answer = "读不懂" if "读不懂" in request.fact else render_answer(VERDICT)
        yield GenerationStep(
            "end",
            generation=replace(
                whole, text=text + answer, thinking_tokens=request.thinking_limit,
                decode_ms=whole.decode_ms + 2.0 * request.thinking_limit,
            ),
        )  # fmt: skip


def open_streaming_engine(folder: Path) -> tuple[FakeEngine, CountTokens]:
    return FakeStreamingEngine(), len


def open_fake_engine(folder: Path) -> tuple[FakeEngine, CountTokens]:
    return FakeEngine(), len


def open_broken_engine(folder: Path) -> tuple[FakeEngine, CountTokens]:
    raise OSError("no such weights")
