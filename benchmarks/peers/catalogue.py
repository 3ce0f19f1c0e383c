"""The servers that are measured, and the settings each is tried with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.peers.formats import DONE
from benchmarks.run import ROOT
from curt.artifact import MANIFEST
from curt.dialogue import MAX_ANSWER_TOKENS
from curt.files import sha256

Protocol = Literal["predict", "chat", "completions"]
PATHS: Mapping[Protocol, str] = {
    "predict": "/predict",
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
}
NO_DEADLINE_MS = 60_000  # the longest that the server takes: no budget is ever cut for it
THINKING_CAP = 32  # tokens; the demo model's reasoning is 31 at its 95th percentile
MODEL_NAME = "peer"
VLLM_SERVER = ROOT / "deploy" / "vllm-cpu" / "serve.sh"


@dataclass(frozen=True, slots=True)
class Setting:
    """One server started one way. `extra` goes into the body of every request."""

    name: str
    label: str
    model: str
    command: tuple[str, ...]
    port: int
    protocol: Protocol = "completions"
    environment: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    ready_path: str = "/health"
    slow_to_start: bool = False

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def path(self) -> str:
        """Where its requests go."""
        return PATHS[self.protocol]

    def describe(self) -> dict[str, Any]:
        """What a reader needs to start it again, without this machine's paths."""
        return {
            "setting": self.label,
            "model": self.model,
            "protocol": self.path,
            "extra": dict(self.extra),
        }


@dataclass(frozen=True, slots=True)
class Places:
    """Where the weights lie, in which form, and the environments that have the peers."""

    model: Path
    ort: Path
    plain_ort: tuple[Path, ...]
    fallback: Path | None
    work: Path
    peers_python: Path
    vllm: Path
    port: int


def curt_settings(places: Places, deadline_ms: int) -> list[Setting]:
    """This project's server as shipped, with deadlines off, and with its thinking capped."""
    environment = {
        "CURT_MODEL": str(places.ort),
        "CURT_PORT": str(places.port),
        "OMP_NUM_THREADS": "1",
    }
    if places.fallback is not None:
        environment["CURT_FALLBACK"] = str(places.fallback)
    capped = {"model": "curt", "max_completion_tokens": MAX_ANSWER_TOKENS + THINKING_CAP}

    def make(name: str, label: str, protocol: Protocol, extra: Mapping[str, Any]) -> Setting:
        return Setting(
            name=name,
            label=label,
            model=places.ort.name,
            command=(sys.executable, "-m", "serve"),
            port=places.port,
            protocol=protocol,
            environment=environment,
            extra=extra,
            ready_path="/readyz",
        )

    off = f"deadline of {NO_DEADLINE_MS // 1000} s: no budget is cut"
    cap = f"deadline of {deadline_ms} ms, thinking at most {THINKING_CAP} tokens"
    return [
        make("curt", "as shipped", "predict", {"deadline_ms": deadline_ms}),
        make("curt, deadlines off", off, "predict", {"deadline_ms": NO_DEADLINE_MS}),
        make("curt, thinking capped", cap, "chat", capped | {"deadline_ms": deadline_ms}),
    ]


def peer_settings(places: Places, max_tokens: int) -> dict[str, list[Setting]]:
    """What each peer is tried at; the best is kept. Converts weights where that was not done yet.

    A peer whose environment is not there has no setting.
    """
    own, peers = sys.executable, places.peers_python
    ort: list[tuple[str, dict[str, Any]]] = [
        ("generator in a pool of 2 threads", {"arrangement": "threads", "slots": 2, "threads": 1}),
        ("2 uvicorn workers, 1 thread each", {"arrangement": "uvicorn", "slots": 2, "threads": 1}),
        ("pool of 2 processes, 1 thread", {"arrangement": "processes", "slots": 2, "threads": 1}),
    ]
    torch: list[tuple[str, dict[str, Any]]] = [
        ("one process, 2 threads", {"arrangement": "threads", "slots": 1, "threads": 2}),
        ("pool of 2 processes, 1 thread", {"arrangement": "processes", "slots": 2, "threads": 1}),
    ]
    found: dict[str, list[Setting]] = {
        "onnxruntime-genai + FastAPI": [
            _ours(
                "onnxruntime-genai", places, own, max_tokens, folder,
                f"{label}, {folder.name.removeprefix('ort-').removesuffix('-plain')}", order,
            )
            for folder in places.plain_ort
            for label, order in ort
        ],
        "transformers + FastAPI": [
            _ours(
                "transformers", places, own, max_tokens, places.model,
                f"{label}, {dtype}, batches of up to 8", order | {"dtype": dtype, "batch": 8},
            )
            for label, order in torch
            for dtype in ("float32", "bfloat16")
        ],
    }  # fmt: skip
    if peers.is_file():
        found |= _compiled_peers(places, str(peers), max_tokens)
    if (places.vllm / "bin" / "vllm").is_file():
        found["vLLM"] = [
            _vllm(places, dtype, places.port + 2 + place, max_tokens)  # both stay up
            for place, dtype in enumerate(("float32", "bfloat16"))
        ]
    return found


def _compiled_peers(places: Places, python: str, max_tokens: int) -> dict[str, list[Setting]]:
    batched = {"arrangement": "threads", "slots": 8}
    pooled = {"arrangement": "processes", "slots": 2, "threads": 1}

    def converted(library: str, kind: str, label: str, order: dict[str, Any]) -> Setting:
        folder = _converted(places, kind)
        model = folder / "model.gguf" if library == "llama.cpp" else folder
        return _ours(library, places, python, max_tokens, model, label, order)

    alone = "pool of 2 processes, 1 thread, 1 slot"
    return {
        "llama.cpp": [
            converted("llama.cpp", "q4_0", "8 slots, 1 thread, q4_0", batched | {"threads": 1}),
            converted("llama.cpp", "q4_0", "8 slots, 2 threads, q4_0", batched | {"threads": 2}),
            *(converted("llama.cpp", kind, f"{alone}, {kind}", pooled)
              for kind in ("q4_0", "q8_0", "f32")),
        ],
        "OpenVINO GenAI": [
            converted("openvino", "ov-int8",
                      "continuous batching of 8, 1 thread, int8", batched | {"threads": 1}),
            converted("openvino", "ov-int8",
                      "continuous batching of 8, 2 threads, int8", batched | {"threads": 2}),
        ],
    }  # fmt: skip


def _ours(
    library: str,
    places: Places,
    python: str,
    max_tokens: int,
    model: Path,
    label: str,
    order: dict[str, Any],
) -> Setting:
    whole = order | {
        "library": library,
        "model": str(model.resolve()),
        "tokenizer": str((places.model / "tokenizer.json").resolve()),
        "port": places.port,
    }
    threads = str(order.get("threads", 1))
    names = {
        "onnxruntime-genai": "onnxruntime-genai + FastAPI",
        "transformers": "transformers + FastAPI",
        "llama.cpp": "llama.cpp",
    }
    return Setting(
        name=names.get(library, "OpenVINO GenAI"),
        label=label,
        model=model.parent.name if model.is_file() else model.name,
        command=(python, "-m", "benchmarks.peers.server", json.dumps(whole)),
        port=places.port,
        environment={"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"},
        extra={"max_tokens": max_tokens},
    )


def _vllm(places: Places, dtype: str, port: int, max_tokens: int) -> Setting:
    most = 16  # at once
    return Setting(
        name="vLLM",
        label=f"compiled, {dtype}, up to {most} at once, prefix cache",
        model=places.model.name,
        command=(str(VLLM_SERVER), str(places.vllm), str(places.model), str(port)),
        port=port,
        slow_to_start=True,  # over a minute
        environment={
            "SERVED_NAME": MODEL_NAME,
            "VLLM_DTYPE": dtype,
            "VLLM_MAX_NUM_SEQS": str(most),
            "HF_HUB_OFFLINE": "1",
        },
        extra={"model": MODEL_NAME, "max_tokens": max_tokens, "temperature": 0.0},
    )


def _converted(places: Places, kind: str) -> Path:
    """The weights in a peer's format, made in the peers' environment unless they are there."""
    origin = sha256(places.model / MANIFEST)[:12]
    folder = places.work / f"{places.model.resolve().name}-{origin}-{kind}"
    if not (folder / DONE).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [str(places.peers_python), "-m", "benchmarks.peers.formats", kind]
        done = subprocess.run(
            [*command, str(places.model.resolve()), str(folder.resolve())],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["nothing said"]
            raise RuntimeError(f"no {kind} of {places.model.name}: {said[-1]}")
    return folder
