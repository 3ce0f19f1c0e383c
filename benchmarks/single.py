"""One prompt at a time, where weights don't fit a cache: this project's engine beside libraries.

    python -m benchmarks.single --artifacts '["artifacts/real-x/ort-int8"]' \
        --gguf '["q8_0.gguf"]' --peers_python .venv-peers/bin/python

Everybody reads a prompt of as many tokens and writes as many, in a process of its own that waits
while the others are asked, round after round, at one thread and at two. What an answer takes is
measured of this project's engine, which knows the start of every prompt and what the grammar
forces, and computed for the others as if they knew that start too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from pydantic import Field

from benchmarks.peers.alone import CONTEXT
from benchmarks.run import EXPECTED, ROOT, describe_machine, write_results
from curt.config import Config, run
from curt.corpus.store import read_cases
from curt.engines.onnx.engine import OrtEngine
from curt.engines.protocol import Generation, Request

log = logging.getLogger(__name__)

STATED = 32  # thinking budget that prompts state; the limit is what counts here


class SingleConfig(Config):
    """Settings of `python -m benchmarks.single`."""

    artifacts: list[Path]
    """ONNX Runtime folders; the prompt is the first one's."""
    gguf: list[Path] = []
    """Files for llama.cpp: weights of the same shape."""
    openvino: list[Path] = []
    """Models for OpenVINO GenAI."""
    peers_python: Path = Path(".venv-peers/bin/python")
    """Python of the environment with both."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """Where the facts come from."""
    chars: int = Field(250, ge=1)
    """Facts nearest to this length are taken."""
    facts: int = Field(5, ge=1)
    """Facts that answers are timed on."""
    tokens: int = Field(24, ge=2)
    """Tokens that everybody writes after the prompt."""
    thinking: list[int] = [0, 8, 16]
    """Thinking tokens that an answer is told for."""
    threads: list[int] = [1, 2]
    """Threads of an engine."""
    rounds: int = Field(3, ge=1)
    """Turns of everybody."""
    report: Path = Path("benchmarks/results/single.json")
    """File of results; raw rows go beside it."""


class Alone:
    """An engine in a process of its own; see `benchmarks.peers.alone`."""

    def __init__(self, python: str, library: str, model: Path, threads: int) -> None:
        self.library, self.model, self.threads = library, model, threads
        command = [python, "-m", "benchmarks.peers.alone", "--library", library]
        command += ["--model", str(model.resolve()), "--threads", str(threads)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._read()

    def complete_ms(self, prompt: Sequence[int], tokens: int) -> float:
        """How long the engine takes to write so many tokens. Raises RuntimeError if it ended."""
        asked = json.dumps({"prompt": list(prompt), "tokens": tokens})
        print(asked, file=self._process.stdin, flush=True)
        return float(self._read())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout
        assert self._process.stderr
        line = self._process.stdout.readline()
        if not line:
            said = self._process.stderr.read().strip().splitlines() or ["nothing said"]
            raise RuntimeError(f"{self.library} with {self.model}: {said[-1]}")
        return line


class Answers(NamedTuple):
    """What this project's engine made of the facts without thinking: medians over them.

    `read` counts the tokens of a prompt beside those that are the same every time.
    """

    took_ms: float
    read: float
    tokens: float
    passes: float


def work(config: SingleConfig) -> None:
    """Ask everybody in turns and write what it took."""
    facts = _choose_facts(config)
    known = OrtEngine(config.artifacts[0])
    request = Request(facts[0], STATED, 0)
    prompt, start = known.encode(request).ids, known.reused_tokens
    if len(prompt) + config.tokens > CONTEXT:
        raise ValueError(f"a prompt of {len(prompt)} tokens: lower chars")
    log.info("a prompt of %d tokens, %d of them the same every time", len(prompt), start)
    del known
    rows: list[dict[str, Any]] = []
    with _everybody(config) as engines:
        for number in range(config.rounds):
            for engine in engines:
                first_ms = engine.complete_ms(prompt, 1)
                all_ms = engine.complete_ms(prompt, config.tokens)
                row = {
                    "library": engine.library,
                    "model": name_of(engine.model),
                    "threads": engine.threads,
                    "round": number,
                    "prompt_ms": round(first_ms, 2),
                    "token_ms": round((all_ms - first_ms) / (config.tokens - 1), 3),
                }
                log.info("%s", row)
                rows.append(row)
    answers = {
        (name_of(folder), threads): _time_answers(OrtEngine(folder, threads=threads), facts)
        for folder in config.artifacts
        for threads in config.threads
    }
    summary = {
        "machine": describe_machine(),
        "prompt_tokens": len(prompt),
        "reused_tokens": start,
        "engines": summarise(rows, answers, len(prompt), config.thinking),
    }
    write_results(config.report, summary, rows=rows)


def name_of(model: Path) -> str:
    """A model's name; exports of several models have one name each in their runs' folders."""
    return "/".join(model.resolve().parts[-2:])


def summarise(
    rows: Sequence[dict[str, Any]],
    answers: dict[tuple[str, int], Answers],
    prompt_tokens: int,
    thinking: Sequence[int],
) -> list[dict[str, Any]]:
    """A row an engine: medians over rounds, and milliseconds of a whole answer by thinking tokens.

    Prompts had `prompt_tokens`. An engine without measured answers reads and writes as many tokens
    as the first that has them, one a pass.
    """
    usual = next(iter(answers.values()))
    found = []
    keys = ("library", "model", "threads")
    for key in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
        own = [row for row in rows if tuple(row[k] for k in keys) == key]
        prompt_ms, token_ms = (median(row[k] for row in own) for k in ("prompt_ms", "token_ms"))
        measured = answers.get((key[1], key[2])) if key[0] == "curt" else None
        computed_ms = prompt_ms / prompt_tokens * usual.read + usual.tokens * token_ms
        answer_ms = measured.took_ms if measured else computed_ms
        found.append(
            dict(zip(keys, key, strict=True))
            | {
                "prompt_ms": prompt_ms,
                "token_ms": token_ms,
                "answer_passes": measured.passes if measured else usual.tokens,
                "answer_ms": {n: round(answer_ms + n * token_ms) for n in thinking},
            }
        )
    return found


def _choose_facts(config: SingleConfig) -> list[str]:
    facts = [case.fact for case in read_cases(config.cases)]
    if len(facts) < config.facts:
        raise ValueError(f"{config.cases} holds {len(facts)} cases: {config.facts} are needed")
    return sorted(facts, key=lambda fact: abs(len(fact) - config.chars))[: config.facts]


def _time_answers(engine: OrtEngine, facts: Sequence[str]) -> Answers:
    engine.generate([Request(facts[0], STATED, 0)])
    told: list[Generation] = engine.generate([Request(fact, STATED, 0) for fact in facts])
    return Answers(
        median(g.prefill_ms + g.decode_ms for g in told),
        median(g.prompt_tokens for g in told) - engine.reused_tokens,
        median(g.answer_tokens for g in told),
        median(g.decode_passes or 0 for g in told),
    )


@contextlib.contextmanager
def _everybody(config: SingleConfig) -> Iterator[list[Alone]]:
    """All engines, loaded; ended after the block."""
    wanted = [
        *((sys.executable, "curt", folder) for folder in config.artifacts),
        *((str(config.peers_python), "llama.cpp", file) for file in config.gguf),
        *((str(config.peers_python), "openvino", model) for model in config.openvino),
    ]
    with contextlib.ExitStack() as stack:
        engines = []
        for python, library, model in wanted:
            for threads in config.threads:
                engines.append(Alone(python, library, model, threads))
                stack.callback(engines[-1].close)
        yield engines


if __name__ == "__main__":
    run(SingleConfig, work, expected=EXPECTED)
