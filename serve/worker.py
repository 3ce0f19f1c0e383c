"""The worker process: one engine, one thread, one request at a time over a pipe.

The front never imports a model: engines hold the interpreter lock for whole prefill chunks, and
a crash in native code must not take the front with it. Messages are JSON, never pickles: what
comes back from a process that reads strangers' text is data.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from curt.dialogue import MAX_ANSWER_TOKENS, normalise_fact
from curt.engines.budget import Observation
from curt.engines.protocol import Engine, Generation, Request

CountTokens = Callable[[str], int]
OpenEngine = Callable[[Path], tuple[Engine, CountTokens]]

# Fictional; only its length matters.
CALIBRATION_TEXT = (
    "2021年4月12日，被告人赵某在某市某区某小区内，趁无人之机窃取他人电动车一辆，经鉴定价值3200元，"
    "后被公安机关抓获，归案后如实供述自己的罪行，自愿认罪认罚，并取得被害人谅解。"
)
CALIBRATION_THINKING_TOKENS = 16


def open_ort_engine(folder: Path) -> tuple[Engine, CountTokens]:
    """Load an ort-genai model folder on one thread."""
    from tokenizers import Tokenizer

    from curt.engines.onnxruntime_genai import OrtEngine

    engine = OrtEngine(folder, threads=1)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()

    def count_tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return engine, count_tokens


def run_worker(connection: Connection, folder: Path, open_engine: OpenEngine) -> None:
    """Serve requests from `connection` until it closes or the parent dies."""
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    # The front decides when a worker ends, by closing the pipe: a Ctrl+C or a SIGTERM sent to
    # the whole process group must not cut off requests that are being drained.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        engine, count_tokens = open_engine(folder)
        generate_once(engine, CALIBRATION_TEXT, CALIBRATION_THINKING_TOKENS)  # first runs are slow
        observations = calibrate(engine, count_tokens)
    except Exception as error:
        _send(connection, {"failed": f"{type(error).__name__}: {error}"})
        return
    _send(connection, {"calibration": [asdict(o) for o in observations]})
    while True:
        try:
            message = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        _send(connection, _answer(engine, count_tokens, message))


def calibrate(engine: Engine, count_tokens: CountTokens, rounds: int = 2) -> list[Observation]:
    """Time generations over a short and a long prompt."""
    tokens_per_char = count_tokens(CALIBRATION_TEXT) / len(CALIBRATION_TEXT)
    most_chars = int(engine.manifest.max_fact_tokens / tokens_per_char)
    text = CALIBRATION_TEXT * (most_chars // len(CALIBRATION_TEXT) + 1)
    facts = [text[: max(1, most_chars // 5)], text[: max(2, most_chars)]] * rounds
    thinking = min(CALIBRATION_THINKING_TOKENS, engine.manifest.max_thinking_tokens)
    return [
        observe(fact, generate_once(engine, fact, thinking), thinking_limit=thinking)
        for fact in facts
    ]


def generate_once(engine: Engine, fact: str, thinking_limit: int) -> Generation:
    """One generation without a deadline."""
    return engine.generate([Request(fact, thinking_limit, thinking_limit)])[0]


def observe(fact: str, generation: Generation, *, thinking_limit: int) -> Observation:
    """What a generation teaches about this machine's speed."""
    # With a limit of 0 the end of thinking is part of the prefill and costs no decode step.
    closing = 1 if thinking_limit else 0
    return Observation(
        fact_chars=len(fact),
        prompt_tokens=generation.prompt_tokens,
        prefill_ms=generation.prefill_ms,
        decoded_tokens=generation.thinking_tokens + closing + generation.answer_tokens,
        decode_ms=generation.decode_ms,
        answer_tokens=None if generation.finish == "deadline" else generation.answer_tokens,
    )


def _answer(engine: Engine, count_tokens: CountTokens, message: dict[str, Any]) -> dict[str, Any]:
    try:
        if message.get("calibrate"):
            return {"calibration": [asdict(o) for o in calibrate(engine, count_tokens, rounds=1)]}
        request = Request(
            fact=message["fact"],
            stated_budget=message["stated_budget"],
            thinking_limit=message["thinking_limit"],
            answer_limit=MAX_ANSWER_TOKENS,
            deadline_s=message["deadline_s"],
        )
        started_s = time.monotonic()
        clipped = count_tokens(normalise_fact(request.fact)) > engine.manifest.max_fact_tokens
        counted_ms = (time.monotonic() - started_s) * 1e3
        generation = asdict(engine.generate([request])[0])
        generation["prefill_ms"] += counted_ms
        return {"generation": generation, "fact_clipped": clipped}
    except Exception as error:  # the worker outlives a request it can't serve; the front logs it
        # Without the error's message, which may quote the fact.
        frames = traceback.extract_tb(error.__traceback__)
        stack = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        return {"error": type(error).__name__, "stack": stack}


def _send(connection: Connection, message: dict[str, Any]) -> None:
    try:
        connection.send_bytes(json.dumps(message, ensure_ascii=False).encode())
    except OSError:
        os._exit(0)  # the front is gone


def _exit_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "run_worker runs in a spawned process"
    wait([parent.sentinel])
    os._exit(0)
