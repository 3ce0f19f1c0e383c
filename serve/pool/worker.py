"""The worker process: one engine, one thread, one request at a time over a pipe.

The front never imports a model: engines hold the interpreter lock for whole prefill chunks, and
a crash in native code must not take the front with it. `serve.pool.messages` says what crosses
the pipe.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path

from curt.artifact import expect_manifest
from curt.classifier.candidates import Reader
from curt.classifier.model import Findings
from curt.engines.budget import Observation
from curt.engines.protocol import (
    Engine,
    Generation,
    GenerationStep,
    PromptingEngine,
    Request,
    StreamingEngine,
)
from curt.engines.registry import open_engine
from serve.pool.messages import (
    Calibrate,
    Calibrated,
    Cancel,
    Cancelled,
    EngineRaised,
    Generated,
    LoadFailed,
    Message,
    Order,
    Reasoning,
    Reply,
    decode,
    encode,
)

Steps = ctypes.c_ulong
CountTokens = Callable[[str], int]
OpenEngine = Callable[[Path], tuple[Engine, CountTokens]]

# A made-up fact; only its length matters.
CALIBRATION_TEXT = (
    "2021年4月12日，被告人赵某在某市某区某小区内，趁无人之机窃取他人电动车一辆，经鉴定价值3200元，"
    "后被公安机关抓获，归案后如实供述自己的罪行，自愿认罪认罚，并取得被害人谅解。"
)
CALIBRATION_THINKING_TOKENS = 16
PIECE_INTERVAL_S = 0.02


def open_worker_engine(
    folder: Path, *, manifest_sha256: str | None = None, threads: int = 1
) -> tuple[Engine, CountTokens]:
    """Load a model folder on so many threads.

    Raises ArtifactError where the folder's manifest is not the expected one: replies would name
    another model than the one that answers.
    """
    engine = open_engine(folder, threads=threads)
    if manifest_sha256 is not None:
        expect_manifest(folder, manifest_sha256)
    return engine, engine.tokenizer.count


def run_worker(connection: Connection, folder: Path, open_engine: OpenEngine, steps: Steps) -> None:
    """Serve requests from `connection` until it closes or the parent dies.

    `steps` is memory that the front reads too: it grows with each step of a streaming engine, from
    1 on once one is loaded, so that the front sees a hang without a message for each step.
    """
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
        _send(connection, LoadFailed(f"{type(error).__name__}: {error}"))
        return
    _send(connection, Calibrated(tuple(observations)))
    steps.value = int(isinstance(engine, StreamingEngine))
    front = Front(connection, steps)
    while True:
        try:
            message = decode(connection.recv_bytes())
        except (EOFError, OSError):
            return
        if isinstance(message, Order):  # and no Cancel of a request that was answered already
            front.send(_carry_out(engine, count_tokens, message, front))


class Front:
    """The worker's side of the pipe, which may hold a `Cancel` while a request is under way."""

    def __init__(self, connection: Connection, steps: Steps) -> None:
        self._connection, self._steps = connection, steps
        self._inbox = select.poll()  # takes a microsecond; Connection.poll takes twenty
        self._inbox.register(connection.fileno(), select.POLLIN | select.POLLHUP)

    def wants_stop(self) -> bool:
        """Whether the front cancelled what is under way, or is gone. Never waits."""
        if not self._inbox.poll(0):
            return False
        try:
            message = decode(self._connection.recv_bytes())
        except (EOFError, OSError):
            return True  # the next read ends the worker
        assert isinstance(message, Cancel), "the front sends one request at a time"
        return True

    def note_step(self) -> None:
        """Let the front see that the work goes on."""
        self._steps.value += 1

    def send(self, message: Message) -> None:
        """Send one message; ends the process when the front is gone."""
        _send(self._connection, message)


class PieceGatherer:
    """Joins the reasoning of many steps to one piece every 20 ms: a message costs two wake-ups."""

    def __init__(self) -> None:
        self._gathered, self._sent_s = "", 0.0

    def add(self, step: GenerationStep) -> str | None:
        """The piece that is to be sent after this step, if any."""
        if step.phase == "thinking":
            self._gathered += step.text
        now_s = time.monotonic()
        is_due = step.phase == "close" or now_s >= self._sent_s + PIECE_INTERVAL_S
        if not self._gathered or not is_due:
            return None
        piece, self._gathered, self._sent_s = self._gathered, "", now_s
        return piece


def complete(engine: Engine, request: Request, front: Front) -> Generation | None:
    """Complete a request, telling its reasoning where asked; None when the front cancelled it.

    An engine that can't stream can't be stopped either: its request is completed.
    """
    if not isinstance(engine, StreamingEngine):
        return engine.generate([request])[0]
    pieces = PieceGatherer()
    with closing(engine.stream(request)) as steps:
        for step in steps:
            if step.generation:
                return step.generation
            front.note_step()
            if front.wants_stop():
                return None
            if request.tell_text and (piece := pieces.add(step)):
                front.send(Reasoning(piece))
    raise AssertionError("a stream ends with its generation")


def find(engine: object, fact: str) -> Findings | None:
    """What the engine's reader has just found in a fact for its prompt; None without a reader."""
    reader = engine.prompts.reader if isinstance(engine, PromptingEngine) else None
    return reader.classifier.reading(fact).find() if isinstance(reader, Reader) else None


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
    """The timings of a generation, from which this machine's speed is estimated.

    Where a pass of the model may give several tokens, an answer is counted in passes: its tokens
    are cheaper than those of the thinking and would make thinking look cheap. Thinking is counted
    in tokens, because budgets are in tokens.
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


def _carry_out(engine: Engine, count_tokens: CountTokens, order: Order, front: Front) -> Reply:
    try:
        if isinstance(order, Calibrate):
            return Calibrated(tuple(calibrate(engine, count_tokens, rounds=1)))
        generation = complete(engine, order, front)
        if generation is None:
            return Cancelled()
        return Generated(generation, find(engine, order.fact))
    except Exception as error:  # the worker outlives a request it can't serve; the front logs it
        return EngineRaised.by(error)


def _send(connection: Connection, message: Message) -> None:
    try:
        connection.send_bytes(encode(message))
    except OSError:
        os._exit(0)  # the front is gone


def _exit_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "run_worker runs in a spawned process"
    wait([parent.sentinel])
    os._exit(0)
