"""The same load by a tool that is not ours: `vllm bench serve` against /v1/chat/completions.

    python -m benchmarks.peers.cross_check --vllm .venv-vllm --rate 20

Both ask the same server for the same cases at the same fixed rate, as Poisson arrivals, streamed,
in turns. What they count differs, and the report says by how much:

- vLLM's tool counts from the instant it sends and ends at the last event with text; ours counts
  from the instant a request was due and ends when the reply is whole. `sent_p50_ms` is ours from
  the sending instant.
- It reads an event a token in the same Python process that sends and keeps the clock; ours reads
  bytes and parses nothing meanwhile. Both take processor time from the server on the same machine.
- It counts any 200 with an event as a success; ours counts degraded answers as misses.
- A reply that is not streamed costs the server less: `ours, whole reply` says how much.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import Field

from benchmarks.client import Client, Exchange, endless, send_in_turn, send_on_time
from benchmarks.peers.catalogue import NO_DEADLINE_MS, Places, Setting, curt_settings
from benchmarks.peers.running import run_setting
from benchmarks.run import EXPECTED, describe_machine, end_servers_when_told, write_results
from curt.config import Config, run
from loadtest._arrivals import arrival_times_s, load_facts

log = logging.getLogger(__name__)

OUTPUT_TOKENS = 192  # thinking and answer; the model's widest budget fits
PERCENTILES = (50, 90, 99)
PLACES = {"vllm", "model", "ort", "fallback", "cases", "report", "port"}


class CrossCheckConfig(Config):
    """Settings of `python -m benchmarks.peers.cross_check`."""

    vllm: Path = Path(".venv-vllm")
    """Environment that has vLLM."""
    model: Path = Path("artifacts/demo/grpo-default")
    """Folder whose tokenizer the tool counts prompt tokens with."""
    ort: Path = Path("artifacts/demo/ort-w8a8")
    """Model folder to serve."""
    fallback: Path | None = Path("artifacts/demo/fallback")
    """Its classifier."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """What to ask about."""
    chars: int = Field(300, ge=1)
    """Length that facts are cut to."""
    rate: float = Field(20.0, gt=0)
    """Arrivals a second; well below the highest, so that nobody measures a queue."""
    requests: int = Field(400, ge=10)
    """Requests of one turn."""
    rounds: int = Field(3, ge=1)
    """Turns of each."""
    port: int = Field(8171, ge=1024, le=65535)
    """Where to serve."""
    report: Path = Path("benchmarks/results/cross_check.json")
    """File of results."""


async def check(config: CrossCheckConfig) -> dict[str, Any]:
    """Both tools in turns. Raises RuntimeError when vLLM's fails."""
    texts = endless([fact[: config.chars] for fact in load_facts(config.cases)])
    nowhere = Path()  # the peers' folders
    places = Places(config.model, config.ort, nowhere, config.fallback, nowhere, nowhere,
                    config.vllm, config.port)  # fmt: skip
    setting = replace(curt_settings(places, 400)[2], extra={})
    seen: dict[str, list[dict[str, float]]] = {"vllm bench serve": [], "ours": [],
                                               "ours, whole reply": []}  # fmt: skip
    with run_setting(setting):
        for turn in range(config.rounds):
            warm, theirs, own, whole = (
                list(islice(texts, n)) for n in (20, *[config.requests] * 3)
            )
            await send_in_turn(_client(setting), _bodies(warm, False), 2)
            seen["vllm bench serve"].append(
                await asyncio.to_thread(run_theirs, config, setting, theirs, turn)
            )
            seen["ours"].append(await run_ours(config, setting, _bodies(own, True), turn))
            seen["ours, whole reply"].append(
                await run_ours(config, setting, _bodies(whole, False), turn)
            )
            log.info("round %d: %s", turn + 1, {k: v[-1] for k, v in seen.items()})
    tools = {name: _medians(turns) | {"rounds": turns} for name, turns in seen.items()}
    theirs_of, ours_of = tools["vllm bench serve"], tools["ours"]
    return {
        "settings": config.model_dump(mode="json", exclude=PLACES),
        "machine": describe_machine(),
        "tools": tools,
        "ours_to_theirs": {
            f"p{p}": ours_of[f"p{p}_ms"] / theirs_of[f"p{p}_ms"] for p in PERCENTILES
        }
        | {"sent_p50": ours_of["sent_p50_ms"] / theirs_of["p50_ms"]},
        "streaming_costs_p50_ms": ours_of["p50_ms"] - tools["ours, whole reply"]["p50_ms"],
    }


def run_theirs(
    config: CrossCheckConfig, setting: Setting, texts: Sequence[str], turn: int
) -> dict[str, float]:
    """One run of `vllm bench serve`. Raises RuntimeError with its last words when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        lines = (json.dumps({"prompt": text}, ensure_ascii=False) for text in texts)
        prompts.write_text("\n".join(lines), encoding="utf-8")
        command = [
            str(config.vllm / "bin" / "vllm"), "bench", "serve",
            "--backend", "openai-chat", "--base-url", setting.url, "--endpoint", setting.path,
            "--model", "curt", "--tokenizer", str(config.model.resolve()),
            "--dataset-name", "custom", "--dataset-path", str(prompts), "--skip-chat-template",
            "--custom-output-len", str(OUTPUT_TOKENS), "--num-prompts", str(len(texts)),
            "--request-rate", str(config.rate), "--seed", str(turn), "--disable-tqdm",
            "--extra-body", json.dumps({"deadline_ms": NO_DEADLINE_MS}),
            "--ready-check-timeout-sec", "0",  # its test request would be asked twice
            "--percentile-metrics", "e2el,ttft", "--metric-percentiles", "50,90,99",
            "--save-result", "--result-dir", folder, "--result-filename", "result.json",
        ]  # fmt: skip
        done = subprocess.run(
            command,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        result = Path(folder) / "result.json"
        if done.returncode or not result.is_file():
            said = done.stderr.strip().splitlines() or ["nothing said"]
            raise RuntimeError(f"vllm bench serve failed: {said[-1]}")
        told = json.loads(result.read_text(encoding="utf-8"))
    return {
        **{f"p{p}_ms": told[f"p{p}_e2el_ms"] for p in PERCENTILES},
        "first_token_p50_ms": told["p50_ttft_ms"],
        "answered": told["completed"],
        "output_tokens": told["total_output_tokens"] / max(1, told["completed"]),
        "achieved_per_s": told["request_throughput"],
    }


async def run_ours(
    config: CrossCheckConfig, setting: Setting, bodies: Sequence[bytes], turn: int
) -> dict[str, float]:
    """One run of our client at the same rate."""
    offsets_s = islice(arrival_times_s(config.rate, turn), len(bodies))
    started = time.monotonic()
    exchanges = await send_on_time(_client(setting), offsets_s, bodies.__getitem__)
    seconds = time.monotonic() - started
    return summarise(exchanges) | {"achieved_per_s": len(exchanges) / seconds}


def _client(setting: Setting) -> Client:
    return Client(setting.url, what=f"POST {setting.path}")


def summarise(exchanges: Sequence[Exchange]) -> dict[str, float]:
    """Percentiles from the due instant and from sending, over replies with status 200.

    Raises ValueError when there is none.
    """
    good = [each for each in exchanges if each.got.status == 200]
    if not good:
        raise ValueError("no reply with status 200: is this server ready, is the rate too high?")
    due = sorted(each.latency_ms for each in good)
    sent = sorted(each.service_ms for each in good)

    def at(values: Sequence[float], percent: int) -> float:
        return values[min(len(values) - 1, len(values) * percent // 100)]

    return {
        **{f"p{p}_ms": at(due, p) for p in PERCENTILES},
        "sent_p50_ms": at(sent, 50),
        "answered": len(good),
        "degraded": sum(b'"degraded":true' in each.got.body for each in good),
    }


def _bodies(texts: Sequence[str], stream: bool) -> list[bytes]:
    rows = (
        {
            "model": "curt",
            "messages": [{"role": "user", "content": text}],
            "max_completion_tokens": OUTPUT_TOKENS,
            "deadline_ms": NO_DEADLINE_MS,
        }
        | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})
        for text in texts
    )
    return [json.dumps(row, ensure_ascii=False).encode() for row in rows]


def _medians(turns: Sequence[dict[str, float]]) -> dict[str, Any]:
    return {name: median(turn[name] for turn in turns) for name in turns[0]}


def work(config: CrossCheckConfig) -> None:
    """Check and write the results."""
    end_servers_when_told()
    results = asyncio.run(check(config))
    write_results(config.report, results)
    log.info("%s: ours to theirs %s", config.report, results["ours_to_theirs"])


if __name__ == "__main__":
    run(CrossCheckConfig, work, expected=EXPECTED)
