"""The server's settings of a TensorRT-LLM checkpoint, sized from the deadline, and its launcher.

All arithmetic is in `size_server` and is written out as comments of the YAML file. It assumes
steady load: while a request writes its tokens, each of the others running beside it is
prefilled once.

The options are those of the pinned version; a test holds them to its keys and types.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compress.tensorrt.formats import FORMATS, Precision
from curt.dialogue import MAX_ANSWER_TOKENS
from curt.files import write_atomic
from curt.hardware import Gpu, find_gpu

SERVE_CONFIG = "serve-config.yaml"
LAUNCH = "launch.sh"

PROMPT_OVERHEAD_TOKENS = 128  # system text, budget line and chat markers, generously
BLOCK_TOKENS = 32  # TensorRT-LLM's default block of the key-value cache
KV_BYTES = 2  # bfloat16
MARGIN = 0.1  # of the deadline: network, tokenizing, scheduling
PREFILL_EFFICIENCY = 0.4  # of the data sheet's arithmetic
READ_EFFICIENCY = 0.7  # of the data sheet's bandwidth
STEP_OVERHEAD_MS = 2.5  # of a decoding step: launches, sampling, grammar
STALL = 0.1  # of the deadline: how long one prefill chunk may hold up the others
MIN_CHUNK_TOKENS, MAX_CHUNK_TOKENS = 256, 8192

Backend = Literal["xgrammar", "llguidance"]

PINNED_VERSION = "1.2.1"
IMAGE = f"nvcr.io/nvidia/tensorrt-llm/release:{PINNED_VERSION}"


@dataclass(frozen=True, slots=True)
class Workload:
    """What the server is asked to do. Sizes in tokens, bytes and milliseconds."""

    slo_ms: float
    fact_tokens: int
    thinking_tokens: int
    context_tokens: int
    weight_bytes: int
    parameters: int
    kv_bytes_per_token: int
    precision: Precision
    tensor_parallel: int = 1
    slo_thinking_tokens: int = 16


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the server is given, and the arithmetic behind it, line by line."""

    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    max_input_len: int
    kv_tokens: int
    reasons: tuple[str, ...]


def count_kv_bytes(config: Mapping[str, Any]) -> int:
    """Bytes of key-value cache a token takes, in bfloat16, over all layers."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    shared = config.get("num_key_value_heads") or heads
    return int(2 * config["num_hidden_layers"] * shared * head_dim * KV_BYTES)


def size_server(
    work: Workload, gpu: str | None, most_requests: int, memory_fraction: float
) -> Sizes:
    """Batch, chunk and sequence limits for a deadline.

    Without a GPU's name nothing is known of its speed: `most_requests` is taken as it is.
    Raises ValueError when not even one request meets the deadline, when the model does not
    fit, or when a fact leaves no room for an answer.
    """
    # The call for the answer sends the thinking along, and its end.
    longest_input = work.fact_tokens + PROMPT_OVERHEAD_TOKENS + work.thinking_tokens + 1
    wanted = longest_input + MAX_ANSWER_TOKENS
    sequence = min(wanted, work.context_tokens)
    if sequence <= work.fact_tokens + MAX_ANSWER_TOKENS:
        raise ValueError(
            f"facts of {work.fact_tokens} tokens and an answer of {MAX_ANSWER_TOKENS} do not fit "
            f"a context of {work.context_tokens}: lower max_fact_tokens"
        )
    card = find_gpu(gpu) if gpu else None
    reasons = [
        f"max_seq_len = {work.fact_tokens} fact + {PROMPT_OVERHEAD_TOKENS} prompt + "
        f"{work.thinking_tokens} thinking + 1 + {MAX_ANSWER_TOKENS} answer = {wanted} tokens"
        + (f", cut to the model's context of {sequence}" if sequence < wanted else ""),
    ]
    if card is None:
        batch, chunk = most_requests, max(2048, 2 * sequence)
        reasons.append("no GPU was named: batch and chunk are not sized from the deadline")
    else:
        batch, chunk, why = _fit_deadline(work, card, most_requests, sequence)
        reasons += why
    blocks = math.ceil(sequence / BLOCK_TOKENS)
    kv_tokens = (batch + 1) * blocks * BLOCK_TOKENS  # one more for the reused system text
    reasons.append(
        f"key-value cache: ({batch} + 1) × {blocks} blocks of {BLOCK_TOKENS} = {kv_tokens} tokens "
        f"× {work.kv_bytes_per_token} bytes = {kv_tokens * work.kv_bytes_per_token / 1e9:.3f} GB"
    )
    if card:
        reasons.append(_fit_memory(work, card, kv_tokens, memory_fraction))
    return Sizes(batch, chunk, sequence, min(longest_input, sequence), kv_tokens, tuple(reasons))


def _fit_deadline(
    work: Workload, gpu: Gpu, most_requests: int, sequence: int
) -> tuple[int, int, list[str]]:
    gpus = work.tensor_parallel
    tflops = gpu.tflops[FORMATS[work.precision].arithmetic]
    flops = tflops * 1e12 * PREFILL_EFFICIENCY * gpus
    prefill_ms = 2e3 * work.parameters / flops  # a token: one multiply-add a parameter
    prompt = work.fact_tokens + PROMPT_OVERHEAD_TOKENS
    written = MAX_ANSWER_TOKENS + work.slo_thinking_tokens
    allowed = work.slo_ms * (1 - MARGIN)
    read = gpu.bandwidth_gb_s * 1e9 * READ_EFFICIENCY * gpus

    def step_ms(batch: int) -> float:
        moved = work.weight_bytes + batch * sequence * work.kv_bytes_per_token
        return STEP_OVERHEAD_MS + 1e3 * moved / read

    def total_ms(batch: int) -> float:
        return batch * prompt * prefill_ms + written * step_ms(batch)

    batch = most_requests
    while batch > 1 and total_ms(batch) > allowed:
        batch -= 1
    if total_ms(batch) > allowed:
        raise ValueError(
            f"one request alone takes {total_ms(1):.0f} ms on {gpu.name}, over {allowed:.0f} ms of "
            f"the {work.slo_ms:.0f} ms allowed: use a faster GPU, more of them, a smaller model or "
            "fewer slo_thinking_tokens"
        )
    fitting = STALL * work.slo_ms / prefill_ms if prefill_ms else MAX_CHUNK_TOKENS
    chunk = 2 ** math.floor(math.log2(max(1.0, min(fitting, MAX_CHUNK_TOKENS))))
    chunk = max(MIN_CHUNK_TOKENS, chunk)
    while chunk < batch + BLOCK_TOKENS:  # a step holds one token of each running request
        chunk *= 2
    speed = f"{tflops:g} TFLOPS × {PREFILL_EFFICIENCY}"
    return (
        batch,
        chunk,
        [
            f"prefill: 2 × {work.parameters / 1e6:.1f} M / ({speed} × {gpus} GPU) = "
            f"{1e3 * prefill_ms:.3f} µs a token",
            f"step at batch {batch}: {STEP_OVERHEAD_MS} ms + "
            f"({work.weight_bytes / 1e6:.1f} MB + {batch} × {sequence} × "
            f"{work.kv_bytes_per_token} B) / ({gpu.bandwidth_gb_s:g} GB/s × "
            f"{READ_EFFICIENCY} × {gpus}) = {step_ms(batch):.2f} ms",
            f"max_batch_size {batch}: {batch} × {prompt} × prefill + ({MAX_ANSWER_TOKENS} answer + "
            f"{work.slo_thinking_tokens} thinking) × step = {total_ms(batch):.0f} ms <= "
            f"{work.slo_ms:.0f} ms - {MARGIN:.0%}"
            + (" (the setting's limit)" if batch == most_requests else ""),
            f"max_num_tokens {chunk}: a chunk holds the others up for {chunk * prefill_ms:.1f} ms "
            f"of the {STALL * work.slo_ms:.0f} ms allowed",
        ],
    )


def _fit_memory(work: Workload, gpu: Gpu, kv_tokens: int, fraction: float) -> str:
    gpus = work.tensor_parallel
    weights = work.weight_bytes / gpus / 1e9
    cache = kv_tokens * work.kv_bytes_per_token / gpus / 1e9
    free = (gpu.memory_gb - weights) * fraction
    if cache > free:
        raise ValueError(
            f"the key-value cache takes {cache:.1f} GB a GPU, but {gpu.name} leaves {free:.1f} GB: "
            "lower max_batch_size or use more GPUs"
        )
    return f"memory: {weights:.3f} GB of weights and {cache:.3f} GB of cache a GPU; {free:.0f} free"


def build_options(
    sizes: Sizes,
    *,
    memory_fraction: float,
    tensor_parallel: int,
    guided_decoding: Backend,
) -> dict[str, Any]:
    """The options of TensorRT-LLM's LLM API."""
    graphs = [n for n in (1, 2, 4, *range(8, sizes.max_batch_size, 8)) if n < sizes.max_batch_size]
    return {
        "tensor_parallel_size": tensor_parallel,
        "max_batch_size": sizes.max_batch_size,
        "max_num_tokens": sizes.max_num_tokens,
        "max_seq_len": sizes.max_seq_len,
        "max_input_len": sizes.max_input_len,
        "enable_chunked_prefill": True,
        "guided_decoding_backend": guided_decoding,
        "kv_cache_config": {
            "enable_block_reuse": True,
            "free_gpu_memory_fraction": memory_fraction,
            "max_tokens": sizes.kv_tokens,
        },
        "cuda_graph_config": {
            "enable_padding": True,
            "batch_sizes": [*graphs, sizes.max_batch_size],
        },
    }


def render_options(options: Mapping[str, Any], reasons: tuple[str, ...]) -> str:
    """The options as YAML, the arithmetic in comments above them."""
    lines = [f"# For TensorRT-LLM {PINNED_VERSION}: read by trtllm-serve, see {LAUNCH} beside it."]
    lines += [f"# Image: {IMAGE}", *(f"# {reason}" for reason in reasons)]
    lines += [f"{name}: {json.dumps(value)}" for name, value in options.items()]  # JSON is YAML
    return "\n".join(lines) + "\n"


def write_server(folder: Path, options: Mapping[str, Any], sizes: Sizes, port: int) -> None:
    """Write the YAML and `launch.sh`, which serves the folder it stands in."""
    write_atomic(folder / SERVE_CONFIG, render_options(options, sizes.reasons))
    script = folder / LAUNCH
    write_atomic(
        script,
        "#!/bin/sh\n"
        "# Starts TensorRT-LLM's OpenAI-compatible server on this folder.\n"
        'here=$(cd "$(dirname "$0")" && pwd)\n'
        'exec trtllm-serve "$here" \\\n'
        f'  --host "${{HOST:-127.0.0.1}}" --port "${{PORT:-{port}}}" \\\n'
        f'  --config "$here/{SERVE_CONFIG}" "$@"\n',
    )
    script.chmod(0o755)
