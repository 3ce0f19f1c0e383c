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
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import Field

from benchmarks.client import Exchange, endless, send_in_turn, send_on_time
from benchmarks.peers.catalogue import PLACES, OursConfig
from benchmarks.run import EXPECTED, describe_machine, end_servers_when_told, write_results
from curt.config import run
from loadtest._arrivals import arrival_times_s, load_facts
from loadtest._http import HttpClient
from loadtest._slo import nearest_rank

log = logging.getLogger(__name__)

CHAT = "/v1/chat/completions"
NO_DEADLINE_MS = 60_000  # the longest that the server takes: no budget is ever cut for it
OUTPUT_TOKENS = 192  # thinking and answer; the model's widest budget fits
PERCENTILES = (50, 90, 99)
THEIRS, OURS, WHOLE = "vllm bench serve", "ours", "ours, whole reply"


class CrossCheckConfig(OursConfig):
    """What both tools ask, and how often."""

    rate: float = Field(20.0, gt=0)
    """Arrivals a second; well below the highest, so that nobody measures a queue."""
    requests: int = Field(400, ge=10)
    """Requests of one turn."""
    report: Path = Path("benchmarks/results/cross_check.json")
    """File of results."""


async def check(config: CrossCheckConfig, url: str) -> dict[str, Any]:
    """Both tools in turns. Raises RuntimeError when vLLM's fails."""
    texts = endless([fact[: config.chars] for fact in load_facts(config.cases)])
    seen: dict[str, list[dict[str, float]]] = {THEIRS: [], OURS: [], WHOLE: []}
    for turn in range(config.rounds):
        warm, theirs, own, whole = (list(islice(texts, n)) for n in (20, *[config.requests] * 3))
        await send_in_turn(HttpClient(url, what=f"POST {CHAT}"), _bodies(warm, False), 2)
        seen[THEIRS].append(await asyncio.to_thread(run_theirs, config, url, theirs, turn))
        seen[OURS].append(await run_ours(config, url, _bodies(own, True), turn))
        seen[WHOLE].append(await run_ours(config, url, _bodies(whole, False), turn))
        log.info("round %d: %s", turn + 1, {name: turns[-1] for name, turns in seen.items()})
    tools: dict[str, dict[str, Any]] = {
        name: {key: median(turn[key] for turn in turns) for key in turns[0]} | {"rounds": turns}
        for name, turns in seen.items()
    }
    p50_ms = tools[OURS]["p50_ms"]
    ratios = {f"p{p}": tools[OURS][f"p{p}_ms"] / tools[THEIRS][f"p{p}_ms"] for p in PERCENTILES}
    return {
        "settings": config.model_dump(mode="json", exclude=PLACES | {"report"}),
        "machine": describe_machine(),
        "tools": tools,
        "ours_to_theirs": ratios
        | {"sent_p50": tools[OURS]["sent_p50_ms"] / tools[THEIRS]["p50_ms"]},
        "streaming_costs_p50_ms": p50_ms - tools[WHOLE]["p50_ms"],
    }


def run_theirs(
    config: CrossCheckConfig, url: str, texts: Sequence[str], turn: int
) -> dict[str, float]:
    """One run of `vllm bench serve`. Raises RuntimeError with its last words when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        lines = (json.dumps({"prompt": text}, ensure_ascii=False) for text in texts)
        prompts.write_text("\n".join(lines), encoding="utf-8")
        command = [
            str(config.vllm / "bin" / "vllm"), "bench", "serve",
            "--backend", "openai-chat", "--base-url", url, "--endpoint", CHAT,
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
    config: CrossCheckConfig, url: str, bodies: Sequence[bytes], turn: int
) -> dict[str, float]:
    """One run of our client at the same rate."""
    offsets_s = islice(arrival_times_s(config.rate, turn), len(bodies))
    client = HttpClient(url, what=f"POST {CHAT}")
    started = time.monotonic()
    exchanges = await send_on_time(client, offsets_s, bodies.__getitem__)
    seconds = time.monotonic() - started
    return summarise(exchanges) | {"achieved_per_s": len(exchanges) / seconds}


def summarise(exchanges: Sequence[Exchange]) -> dict[str, float]:
    """Percentiles from the due instant and from sending, over replies with status 200.

    Raises ValueError when there is none.
    """
    good = [each for each in exchanges if each.got.status == 200]
    if not good:
        raise ValueError("no reply with status 200: is this server ready, is the rate too high?")
    latencies_ms = [each.latency_ms for each in good]
    return {
        **{f"p{p}_ms": nearest_rank(latencies_ms, p / 100) for p in PERCENTILES},
        "sent_p50_ms": nearest_rank([each.service_ms for each in good], 0.5),
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


def work(config: CrossCheckConfig) -> None:
    """Check and write the results."""
    end_servers_when_told()
    with config.serve() as server:
        results = asyncio.run(check(config, server.url))
    write_results(config.report, results)
    log.info("%s: ours to theirs %s", config.report, results["ours_to_theirs"])


if __name__ == "__main__":
    run(CrossCheckConfig, work, expected=EXPECTED)
