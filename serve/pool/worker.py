"""The worker process: one engine, one thread, one request at a time over a pipe.

The front never imports a model: engines hold the interpreter lock for whole prefill chunks, and
a crash in native code must not take the front with it. Messages are JSON, never pickles: what
comes back from a process that reads strangers' text is data.

The front sends `{"fact": ...}` and reads `{"piece": ...}` (where it asked for the reasoning as it
comes) and then one of `{"generation": ...}`, `{"cancelled": true}`, `{"error": ...}`. While a
request is under way the front may send `{"cancel": true}`, which is looked for between two steps
of the engine; one that comes too late is dropped.
"""

from __future__ import annotations

import json
import os
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from curt.dialogue import MAX_ANSWER_TOKENS, is_clipped
from curt.engines.budget import Observation
from curt.engines.protocol import Engine, Generation, Request, StreamingEngine
from curt.engines.registry import open_engine

CountTokens = Callable[[str], int]
OpenEngine = Callable[[Path], tuple[Engine, CountTokens]]

# Fictional; only its length matters.
CALIBRATION_TEXT = (
    "2021年4月12日，被告人赵某在某市某区某小区内，趁无人之机窃取他人电动车一辆，经鉴定价值3200元，"
    "后被公安机关抓获，归案后如实供述自己的罪行，自愿认罪认罚，并取得被害人谅解。"
)
CALIBRATION_THINKING_TOKENS = 16
PIECE_INTERVAL_S = 0.02  # pieces of reasoning are gathered this long: a message costs two wake-ups


def open_worker_engine(folder: Path, *, guided: bool = False) -> tuple[Engine, CountTokens]:
    """Load a model folder on one thread; `guided` holds answers to their grammar."""
    engine = open_engine(folder, guided=guided)
    return engine, engine.tokenizer.count


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
    front = Front(connection)
    while True:
        try:
            message = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        if "cancel" not in message:  # of a request that was answered already
            front.send(_answer(engine, count_tokens, message, front))


class Front:
    """What the worker sees of the front: a pipe that may hold a wish to stop."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox = select.poll()  # a microsecond a look; Connection.poll takes twenty
        self._inbox.register(connection.fileno(), select.POLLIN | select.POLLHUP)

    def wants_stop(self) -> bool:
        """Whether the front cancelled what is under way, or is gone. Never waits."""
        if not self._inbox.poll(0):
            return False
        try:
            message = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            return True  # the next read ends the worker
        assert "cancel" in message, "the front sends one request at a time"
        return True

    def send(self, message: dict[str, Any]) -> None:
        """Send one message; ends the process when the front is gone."""
        _send(self._connection, message)


def complete(
    engine: Engine, request: Request, front: Front, *, tell_reasoning: bool
) -> Generation | None:
    """Complete a request, telling its reasoning as it comes; None when the front cancelled it.

    An engine that can't stream can't be stopped either: its request is completed.
    """
    if not isinstance(engine, StreamingEngine):
        return engine.generate([request])[0]
    gathered, sent_s = "", 0.0
    with closing(engine.stream(request)) as steps:
        for step in steps:
            if step.generation:
                return step.generation
            if front.wants_stop():
                return None
            if not tell_reasoning:
                continue
            if step.phase == "thinking":
                gathered += step.text
            now_s = time.monotonic()
            if gathered and (step.phase == "close" or now_s >= sent_s + PIECE_INTERVAL_S):
                front.send({"piece": gathered})
                gathered, sent_s = "", now_s
    raise AssertionError("a stream ends with its generation")


def calibrate(engine: Engine, count_tokens: CountTokens, rounds: int = 2) -> list[Observation]:
    """Time generations over a short and a long prompt."""
    facts = calibration_facts(count_tokens, engine.manifest.max_fact_tokens) * rounds
    thinking = min(CALIBRATION_THINKING_TOKENS, engine.manifest.max_thinking_tokens)
    return [
        observe(fact, generate_once(engine, fact, thinking), thinking_limit=thinking)
        for fact in facts
    ]


def calibration_facts(count_tokens: CountTokens, max_fact_tokens: int) -> list[str]:
    """A short fact and one about as long as a fact may be."""
    tokens_per_char = count_tokens(CALIBRATION_TEXT) / len(CALIBRATION_TEXT)
    most_chars = int(max_fact_tokens / tokens_per_char)
    text = CALIBRATION_TEXT * (most_chars // len(CALIBRATION_TEXT) + 1)
    return [text[: max(1, most_chars // 5)], text[: max(2, most_chars)]]


def generate_once(engine: Engine, fact: str, thinking_limit: int) -> Generation:
    """One generation without a deadline."""
    return engine.generate([Request(fact, thinking_limit, thinking_limit)])[0]


def observe(fact: str, generation: Generation, *, thinking_limit: int) -> Observation:
    """What a generation teaches about this machine's speed.

    An answer is counted in passes of the model where one may give several tokens: they cost less
    than those of the thinking, and would make it look cheap. Thinking is counted in tokens, as it
    is allowed in tokens.
    """
    # With a limit of 0 the end of thinking is part of the prefill and costs no decode step.
    closing = 1 if thinking_limit else 0
    answer_passes = generation.answer_passes
    if answer_passes is None:
        answer_passes = generation.answer_tokens
    answer_passes = max(1, answer_passes)
    return Observation(
        fact_chars=len(fact),
        prompt_tokens=generation.prompt_tokens,
        prefill_ms=generation.prefill_ms,
        decoded_tokens=generation.thinking_tokens + closing + answer_passes,
        decode_ms=generation.decode_ms,
        answer_tokens=None if generation.finish == "deadline" else answer_passes,
    )


def read_request(message: Mapping[str, Any]) -> Request:
    """The request that a front's message asks for."""
    return Request(
        fact=message["fact"],
        stated_budget=message["stated_budget"],
        thinking_limit=message["thinking_limit"],
        answer_limit=MAX_ANSWER_TOKENS,
        deadline_s=message["deadline_s"],
        tell_text=message.get("tell_reasoning", True),
    )


def _answer(
    engine: Engine, count_tokens: CountTokens, message: dict[str, Any], front: Front
) -> dict[str, Any]:
    try:
        if message.get("calibrate"):
            return {"calibration": [asdict(o) for o in calibrate(engine, count_tokens, rounds=1)]}
        request = read_request(message)
        started_s = time.monotonic()
        clipped = is_clipped(request.fact, engine.manifest.max_fact_tokens, count_tokens)
        counted_ms = (time.monotonic() - started_s) * 1e3
        generation = complete(engine, request, front, tell_reasoning=message["tell_reasoning"])
        if generation is None:
            return {"cancelled": True}
        fields = asdict(generation)
        fields["prefill_ms"] += counted_ms
        return {"generation": fields, "fact_clipped": clipped}
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
