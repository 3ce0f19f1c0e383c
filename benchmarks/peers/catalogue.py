"""The servers that are measured, and the settings each is tried with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from benchmarks.peers.formats import GGUF_FILE
from benchmarks.run import HOST, ROOT, RunningServer, free_port, run_server, serve
from curt.artifact import MANIFEST
from curt.config import Config
from curt.files import sha256

PREDICT, COMPLETIONS = "/predict", "/v1/completions"
READY_S = 240.0  # vLLM compiles the model for over a minute
MODEL_NAME = "peer"
VLLM_SERVER = ROOT / "deploy" / "vllm-cpu" / "serve.sh"
VLLM_AT_ONCE = 16

Options = Mapping[str, Any]
"""Options of `python -m benchmarks.peers.server`."""

PROCESSES: Mapping[str, Options] = {
    "pool of 2 processes, 1 thread": {"arrangement": "processes", "slots": 2}
}
GENAI: Mapping[str, Options] = {
    "generator in a pool of 2 threads": {"arrangement": "threads", "slots": 2},
    **PROCESSES,
}
BATCHING: Mapping[str, Options] = {
    "continuous batching of 8, 1 thread": {"arrangement": "threads", "slots": 8},
    "continuous batching of 8, 2 threads": {"arrangement": "threads", "slots": 8, "threads": 2},
}

PLACES = {"model", "ort", "plain_ort", "fallback", "cases", "work", "peers_python", "vllm"}
"""Settings that say where things lie on this machine, no part of a result."""


class PeersConfig(Config):
    """Settings of `python -m benchmarks.peers`; whose environment is not there is left out."""

    model: Path = Path("artifacts/demo/grpo-default")
    """The Hugging Face model folder whose weights and tokenizer all have."""
    ort: Path = Path("artifacts/demo/ort-w8a8")
    """Its ONNX Runtime folder for this project's server."""
    fallback: Path | None = Path("artifacts/demo/fallback")
    """Classifier folder of this project's server."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """What to ask about."""
    vllm: Path = Path(".venv-vllm")
    """Environment that has vLLM."""
    chars: int = Field(300, ge=1)
    """Length that facts are cut to."""
    rounds: int = Field(3, ge=1)
    """Turns of everybody who is compared."""
    plain_ort: list[Path] = [
        Path("artifacts/demo/ort-w8a8-plain"),
        Path("artifacts/demo/ort-int4-plain"),
    ]
    """Folders with logits as their only output, as onnxruntime-genai's own generator takes it; the
    first is the format that this project's server has."""
    work: Path = Path("artifacts/bench/peers")
    """Folder that keeps converted models for the next run."""
    peers_python: Path = Path(".venv-peers/bin/python")
    """Python of the environment with llama.cpp."""
    slo_ms: int = Field(400, ge=20)
    """Limit of the 99th percentile, and the deadline of this project's requests."""
    step_requests: int = Field(150, ge=20)
    """Requests at one rate, at least, where `step_s` allows."""
    step_s: float = Field(15.0, gt=0)
    """The longest that one rate lasts."""
    accuracy_cases: int = Field(300, ge=1)
    """Cases that are asked about, and on which accuracy is measured."""
    tuning_requests: int = Field(200, ge=1)
    """Requests with which a setting is tried."""
    max_tokens: int = Field(192, ge=1)
    """Tokens that a completion may have: thinking and answer, far more than either takes."""
    report: Path = Path("benchmarks/results/peers.json")
    """File of results; raw rows and a picture go beside it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One server started one way. `extra` goes into the body of every request."""

    name: str
    label: str
    model: str
    start: Callable[[], AbstractContextManager[RunningServer]]
    path: str = COMPLETIONS
    extra: Options = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """What a reader needs to start it again, without this machine's paths."""
        return {
            "setting": self.label,
            "model": self.model,
            "protocol": self.path,
            "extra": dict(self.extra),
        }


def curt_setting(config: PeersConfig) -> Setting:
    """This project's server as shipped."""
    extra = {"deadline_ms": config.slo_ms}
    start = partial(serve, config.ort, fallback=config.fallback)
    return Setting("curt", "as shipped", config.ort.name, start, PREDICT, extra)


def peer_settings(config: PeersConfig) -> dict[str, list[Setting]]:
    """What each peer is tried at; the best is kept. Converts weights where that was not done yet.

    A peer whose environment is not there has no setting.
    """
    found: dict[str, list[Setting]] = defaultdict(list)

    def add(
        name: str,
        library: str,
        model: Path,
        told: str,
        tried: Mapping[str, Options],
        python: str = sys.executable,
    ) -> None:
        tokenizer = config.model.resolve() / "tokenizer.json"
        for label, options in tried.items():
            own = {"library": library, "model": model.resolve(), "tokenizer": tokenizer, **options}
            words = [str(word) for key, value in own.items() for word in (f"--{key}", value)]
            command = [python, "-m", "benchmarks.peers.server", *words, "--port"]
            threads = str(options.get("threads", 1))
            setting = Setting(
                name,
                f"{label}, {told}",
                model.parent.name if model.is_file() else model.name,
                partial(_start, command, {"OMP_NUM_THREADS": threads}),
                extra={"max_tokens": config.max_tokens},
            )
            found[name].append(setting)

    for folder in config.plain_ort:
        told = folder.name.removeprefix("ort-").removesuffix("-plain")
        add("onnxruntime-genai + FastAPI", "onnxruntime-genai", folder, told, GENAI)
    if config.peers_python.is_file():
        python = str(config.peers_python)
        for kind in ("q4_0", "q8_0"):
            file = _converted(config, kind) / GGUF_FILE
            add("llama.cpp", "llama.cpp", file, kind, {**BATCHING, **PROCESSES}, python)
    if (config.vllm / "bin" / "vllm").is_file():
        found["vLLM"] = [_vllm(config, dtype) for dtype in ("float32", "bfloat16")]
    return found


def _vllm(config: PeersConfig, dtype: str) -> Setting:
    environment = {
        "SERVED_NAME": MODEL_NAME,
        "VLLM_DTYPE": dtype,
        "VLLM_MAX_NUM_SEQS": str(VLLM_AT_ONCE),
    }
    command = [str(VLLM_SERVER), str(config.vllm), str(config.model)]
    return Setting(
        "vLLM",
        f"compiled, {dtype}, up to {VLLM_AT_ONCE} at once, prefix cache",
        config.model.name,
        partial(_start, command, environment),
        extra={"model": MODEL_NAME, "max_tokens": config.max_tokens, "temperature": 0.0},
    )


def _start(
    command: Sequence[str], environment: Mapping[str, str]
) -> AbstractContextManager[RunningServer]:
    """Run a command whose last argument is the port, for a block."""
    port = free_port()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    url = f"http://{HOST}:{port}"
    return run_server(
        [*command, str(port)], url, environment, ready_path="/health", ready_s=READY_S
    )


def _converted(config: PeersConfig, kind: str) -> Path:
    """The weights in a peer's format, made in the peers' environment unless they are there."""
    origin = sha256(config.model / MANIFEST)[:12]
    folder = config.work / f"{config.model.resolve().name}-{origin}-{kind}"
    if not folder.is_dir():
        command = [str(config.peers_python), "-m", "benchmarks.peers.formats", "--kind", kind]
        command += ["--source", str(config.model.resolve()), "--target", str(folder.resolve())]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["nothing said"]
            raise RuntimeError(f"no {kind} of {config.model.name}: {said[-1]}")
    return folder
