"""How near a decoded token is to the least its bytes allow, and where the rest of its time goes.

    python -m benchmarks.roofline --models '["artifacts/demo/ort-w8a8"]'

The floor of a token is what it must read (weights as they are stored, its row of the embedding,
the keys and values of what came before) over what this machine reads in a second. Memory is
measured twice, over an array far beyond every cache and over one as large as the model: a model
that fits a cache is not held back by memory, and the second floor is the one that binds it.
Rounds interleave the bandwidth, the library's bare loop and our engine at one thread and at two;
the server's own decode times come from its replies, beside the bare engine on the same cases. A
profiled run of its own tells the operators apart: the profiler slows what it watches, so it gives
shares, and the unprofiled loop gives milliseconds.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from pydantic import Field

from benchmarks.asker import Asker, endless
from benchmarks.roofline_plot import draw_roofline
from benchmarks.roofline_profile import profile_decoding
from benchmarks.served import describe_machine, serve
from compress.report.subject import OrtSubject, RunTimes, make_request
from compress.report.weights import weight_bytes_per_token
from compress.speed import COPY_BYTES, copy_gb_per_s, spread
from curt.artifact import load_manifest
from curt.config import Config, load_config
from curt.engines.onnxruntime_genai import GENAI_CONFIG
from curt.engines.protocol import Generation, Request
from curt.files import write_atomic, write_json
from curt.logs import configure_logging
from loadtest._arrivals import load_facts

log = logging.getLogger(__name__)

UNHURRIED_MS = 60_000
MIN_READ_S = 0.05  # a small array is read again and again for so long
KV_BYTES = 4  # float32: what a CPU export keeps


class RooflineConfig(Config):
    """Settings of `python -m benchmarks.roofline`."""

    models: list[Path] = [Path("artifacts/demo/ort-w8a8")]
    """Model folders of format ort-genai, as a JSON list."""
    threads: tuple[int, ...] = (1, 2)
    """Thread counts of the bare loops."""
    rounds: int = Field(7, ge=1)
    """Rounds at each thread count."""
    prompt_tokens: int = Field(200, ge=1)
    """Length of the prompt."""
    decode_tokens: int = Field(64, ge=8)
    """Tokens after it."""
    served_requests: int = Field(60, ge=0)
    """Requests to the server, at most; 0 for none."""
    served_seconds: float = Field(30.0, gt=0)
    """And no new one after so long."""
    port: int = 0
    """Port of the server; 0 takes a free one."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """Where the facts come from."""
    out: Path = Path("benchmarks/roofline.json")
    """File of results; those of other models in it are kept."""
    plot: Path = Path("benchmarks/roofline.png")
    """Picture of all the models in the file."""


def measure(config: RooflineConfig, folder: Path) -> dict[str, Any]:
    """Everything about one model. Raises ArtifactError when it must not be loaded, RuntimeError
    when the server does not answer."""
    manifest = load_manifest(folder, expect="ort-genai")
    traffic = token_bytes(
        weight_bytes_per_token(folder),
        json.loads((folder / GENAI_CONFIG).read_text("utf-8"))["model"]["decoder"],
        config.prompt_tokens + config.decode_tokens // 2,
    )
    rows = [measure_loops(config, folder, count, traffic["total"]) for count in config.threads]
    return {
        "base": manifest.base,
        "precision": manifest.precision,
        "bytes_per_token": traffic,
        "prompt_tokens": config.prompt_tokens,
        "decode_tokens": config.decode_tokens,
        "machine": describe_machine(),
        "loops": rows,
        "served": measure_served(config, folder) if config.served_requests else None,
        "profile": profile_decoding(folder, config.prompt_tokens, config.decode_tokens),
    }


def token_bytes(weights: int, decoder: Mapping[str, int], position: int) -> dict[str, int]:
    """Bytes that one decoded token at this position reads, and what they are.

    `decoder` is that part of genai_config.json. Raises ValueError below position 0.
    """
    if position < 0:
        raise ValueError(f"a token at position {position}: use 0 or more")
    parts = {
        "weights": weights,
        "embedding_row": decoder["hidden_size"] * 4,  # at most: it may be stored smaller
        "keys_and_values": 2
        * position
        * decoder["num_hidden_layers"]
        * decoder["num_key_value_heads"]
        * decoder["head_size"]
        * KV_BYTES,
    }
    return parts | {"total": sum(parts.values())}


def floor_ms(total_bytes: float, gb_per_s: float) -> float:
    """The least a token takes that reads so many bytes. Raises ValueError without bandwidth."""
    if not gb_per_s > 0:
        raise ValueError(f"a bandwidth of {gb_per_s} GB/s: measure it again")
    return total_bytes / gb_per_s / 1e6


def read_gb_per_s(array: np.ndarray, threads: int) -> float:
    """How fast threads read an array together, each a part of its own, again and again."""
    edges = [len(array) * i // threads for i in range(threads + 1)]
    parts = [array[low:high] for low, high in itertools.pairwise(edges)]
    turns = 0
    with ThreadPoolExecutor(threads) as pool:  # numpy reduces outside the interpreter lock
        repeats = max(1, (64 << 20) // array.nbytes)  # so that handing out work costs little
        started_s = time.perf_counter()
        while (took_s := time.perf_counter() - started_s) < MIN_READ_S or not turns:
            list(pool.map(lambda part: [part.max() for _ in range(repeats)], parts))
            turns += repeats
    return array.nbytes * turns / took_s / 1e9


def measure_loops(
    config: RooflineConfig, folder: Path, threads: int, total_bytes: int
) -> dict[str, Any]:
    """Bandwidths, the bare loop and our engine at one thread count, in turn."""
    memory = np.ones(COPY_BYTES // 4, dtype=np.float32)
    target = np.zeros_like(memory)
    small = memory[: total_bytes // 4].copy()
    subject = OrtSubject(folder, threads)
    subject.widen(config.prompt_tokens)
    request = make_request(subject, config.prompt_tokens, config.decode_tokens)
    passes = subject.run_engine(request).passes
    subject.run_bare(request, passes)
    seen: dict[str, list[float]] = {
        name: []
        for name in ("copy_gb_per_s", "memory_gb_per_s", "model_sized_gb_per_s", "bare", "engine")
    }
    for turn in range(config.rounds):
        seen["copy_gb_per_s"].append(copy_gb_per_s(memory, target, threads))
        seen["memory_gb_per_s"].append(read_gb_per_s(memory, threads))
        seen["model_sized_gb_per_s"].append(read_gb_per_s(small, threads))
        both = [
            ("bare", lambda: subject.run_bare(request, passes)),
            ("engine", lambda: subject.run_engine(request)),
        ]
        for name, run in both if turn % 2 else both[::-1]:
            seen[name].append(token_ms(run()))
    row = {name: spread(values).model_dump() for name, values in seen.items()}
    # The best a bandwidth was is what the machine can; noise only ever takes away.
    floors = {
        "floor_memory_ms": floor_ms(total_bytes, max(seen["memory_gb_per_s"])),
        "floor_model_sized_ms": floor_ms(total_bytes, max(seen["model_sized_gb_per_s"])),
    }
    bare = row.pop("bare")
    engine = row.pop("engine")
    return {
        "threads": threads,
        **row,
        **floors,
        "bare_ms": bare,
        "engine_ms": engine,
        "floor_share_of_bare": floors["floor_model_sized_ms"] / bare["median"],
        "engine_over_bare": spread(
            [a / b for a, b in zip(seen["engine"], seen["bare"], strict=True)]
        ).model_dump(),
    }


def token_ms(times: RunTimes) -> float:
    """Milliseconds a token after the prefill."""
    return times.decode_s * 1e3 / times.passes


def measure_served(config: RooflineConfig, folder: Path) -> dict[str, Any] | None:
    """Milliseconds a token in the server's replies and in the bare engine, case by case.

    Both decode the same tokens, so the engine counts them for both. None when the time was up
    before the first answer of the model.
    """
    engine = OrtSubject(folder, 1).engine
    facts = endless(load_facts(config.cases))
    served: list[float] = []
    bare: list[float] = []
    end_s = time.monotonic() + config.served_seconds
    with serve(folder, port=config.port, workers=1) as server, Asker(server.url) as asker:
        for fact in islice(facts, config.served_requests):
            if time.monotonic() > end_s:
                break
            answer = asker.ask(fact, UNHURRIED_MS)
            if answer.status != 200:
                raise RuntimeError(f"{server.url} answers {answer.status}: is the machine stuck?")
            thinking = answer.reply["thinking"]
            (generation,) = engine.generate(
                [Request(fact, thinking["stated_budget"], thinking["allowed"])]
            )
            tokens = decoded_tokens(generation)
            if generation.thinking_tokens == thinking["tokens"] and tokens:
                served.append(answer.reply["timings_ms"]["decode"] / tokens)
                bare.append(generation.decode_ms / tokens)
    if not served:
        return None
    return {
        "requests": len(served),
        "served_ms": spread(served).model_dump(),
        "engine_ms": spread(bare).model_dump(),
        "served_over_engine": median(a / b for a, b in zip(served, bare, strict=True)),
    }


def decoded_tokens(generation: Generation) -> int:
    """Tokens that the decoding time is spread over: thinking, its end and the answer."""
    return generation.thinking_tokens + 1 + generation.answer_tokens


def describe(name: str, result: Mapping[str, Any]) -> str:
    """One line for the log."""
    loops: Sequence[Mapping[str, Any]] = result["loops"]
    return "; ".join(
        f"{name}, {row['threads']} threads: {row['bare_ms']['median']:.3f} ms a token bare, "
        f"{row['engine_ms']['median']:.3f} by our engine, floor {row['floor_model_sized_ms']:.3f} "
        f"(memory {row['floor_memory_ms']:.3f})"
        for row in loops
    )


def main(argv: list[str] | None = None) -> None:
    """Measure, write and draw; exits with a message on bad input."""
    config = load_config(RooflineConfig, argv)
    configure_logging()
    kept = json.loads(config.out.read_text("utf-8")) if config.out.is_file() else {}
    try:
        for folder in config.models:
            name = folder.resolve().name
            kept[name] = measure(config, folder)
            log.info(describe(name, kept[name]))
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    write_json(config.out, kept)
    write_atomic(config.plot, draw_roofline(kept))


if __name__ == "__main__":
    main()
