from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.tensorrt.serve import (
    MARGIN,
    Backend,
    Sizes,
    Workload,
    build_options,
    count_kv_bytes,
    size_server,
    write_server,
)
from curt.hardware import GPUS

# Qwen2.5-1.5B in FP8, facts of 500 tokens.
WORK = Workload(
    slo_ms=400.0,
    fact_tokens=500,
    thinking_tokens=256,
    context_tokens=4096,
    weight_bytes=1_780_000_000,
    parameters=1_540_000_000,
    kv_bytes_per_token=28_672,
    precision="fp8",
)


# What version 1.2.1 takes: keys that stand in both of
#
# - `tensorrt_llm/llmapi/llm_args.py` of the 1.2.0 release candidates (classes BaseLlmArgs,
#   TorchLlmArgs, KvCacheConfig, CudaGraphConfig), all of which forbid unknown keys, and
# - the reference pages `llm-api/reference/TorchLlmArgs`, `KvCacheConfig` and
#   `DecodeCudaGraphConfig` of the 1.3.0rc27 documentation,
#
# so 1.2.1, which lies between, has them as well. The command line's names are from
# `tests/unittest/api_stability/references/trtllm_serve_cli.yaml` at commit 029e223.
INTEGER, NUMBER, FLAG, TEXT = (int,), (int, float), (bool,), (str,)

OPTIONS: Mapping[str, tuple[type, ...]] = {
    "tensor_parallel_size": INTEGER,
    "pipeline_parallel_size": INTEGER,
    "max_batch_size": INTEGER,
    "max_num_tokens": INTEGER,
    "max_seq_len": INTEGER,
    "max_beam_width": INTEGER,
    "max_input_len": INTEGER,
    "enable_chunked_prefill": FLAG,
    "disable_overlap_scheduler": FLAG,
    "guided_decoding_backend": TEXT,
    "dtype": TEXT,
    "stream_interval": INTEGER,
    "enable_iter_perf_stats": FLAG,
    "kv_cache_config": (dict,),
    "cuda_graph_config": (dict,),
}
NESTED: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "kv_cache_config": {
        "enable_block_reuse": FLAG,
        "enable_partial_reuse": FLAG,
        "copy_on_partial_reuse": FLAG,
        "free_gpu_memory_fraction": NUMBER,
        "max_tokens": INTEGER,
        "tokens_per_block": INTEGER,
        "dtype": TEXT,
        "host_cache_size": INTEGER,
    },
    "cuda_graph_config": {
        "batch_sizes": (list,),
        "max_batch_size": INTEGER,
        "enable_padding": FLAG,
    },
}
SERVE_FLAGS = (
    "--host",
    "--port",
    "--config",
)


def options_of(sizes: Sizes) -> dict[str, object]:
    return build_options(
        sizes,
        memory_fraction=0.9,
        tensor_parallel=1,
        guided_decoding="xgrammar",
    )


def test_key_value_bytes_count_both_halves_of_every_layer() -> None:
    shape = {
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "hidden_size": 1536,
    }
    assert count_kv_bytes(shape) == 2 * 28 * 2 * 128 * 2


def test_sizes_follow_from_the_arithmetic() -> None:
    sizes = size_server(WORK, "h200", 64, 0.9)
    assert sizes.max_seq_len == 500 + 128 + 256 + 1 + 64
    assert sizes.max_input_len == 628 + 256 + 1  # the second call carries the thinking
    assert sizes.kv_tokens == (sizes.max_batch_size + 1) * 30 * 32
    prefill_ms = 2e3 * 1.54e9 / (1979e12 * 0.4)
    step_ms = 2.5 + 1e3 * (1.78e9 + sizes.max_batch_size * 949 * 28_672) / (4800e9 * 0.7)
    total = sizes.max_batch_size * 628 * prefill_ms + 80 * step_ms
    assert total <= 400 * (1 - MARGIN)
    assert any(f"= {total:.0f} ms" in reason for reason in sizes.reasons)


def test_a_slower_gpu_runs_fewer_at_once() -> None:
    batches = [size_server(WORK, gpu, 256, 0.9).max_batch_size for gpu in ("h200", "h100")]
    assert batches[0] > batches[1] > 1


@given(
    gpu=st.sampled_from([name for name, gpu in GPUS.items() if "fp8" in gpu.tflops]),
    slo=st.floats(200, 5000),
    fact=st.integers(16, 3000),
    most=st.integers(1, 300),
)
@settings(deadline=None, max_examples=60)
def test_whatever_is_asked_the_options_hold_together(
    gpu: str, slo: float, fact: int, most: int
) -> None:
    work = replace(
        WORK, slo_ms=slo, fact_tokens=fact, parameters=5_000_000, weight_bytes=10_000_000
    )
    try:
        sizes = size_server(work, gpu, most, 0.9)
    except ValueError as error:
        assert "one request alone" in str(error)  # noqa: PT017
        return
    assert 1 <= sizes.max_batch_size <= most
    assert sizes.max_num_tokens > sizes.max_batch_size
    assert sizes.max_seq_len <= work.context_tokens
    assert sizes.kv_tokens >= sizes.max_batch_size * sizes.max_seq_len
    graphs = options_of(sizes)["cuda_graph_config"]["batch_sizes"]  # type: ignore[index]
    assert graphs == sorted(set(graphs))
    assert graphs[-1] == sizes.max_batch_size


@pytest.mark.parametrize("backend", get_args(Backend))
def test_the_pinned_version_takes_every_option(backend: Backend) -> None:
    options = build_options(
        size_server(WORK, "h200", 8, 0.9),
        memory_fraction=0.9,
        tensor_parallel=2,
        guided_decoding=backend,
    )
    nested = {name: options[name] for name in NESTED}
    for known, given_options in ((OPTIONS, options), *((NESTED[n], nested[n]) for n in NESTED)):
        assert {name: type(value) for name, value in given_options.items()}.items() <= {
            (name, kind) for name, kinds in known.items() for kind in kinds
        }
    # it takes either the sizes of the graphs or the largest of them
    assert "max_batch_size" not in nested["cuda_graph_config"]


def test_a_deadline_nothing_meets_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one request alone takes .* on L4"):
        size_server(replace(WORK, slo_ms=100), "l4", 8, 0.9)


def test_a_model_that_does_not_fit_is_refused() -> None:
    vast = replace(WORK, slo_ms=1e6, kv_bytes_per_token=200_000_000)
    with pytest.raises(ValueError, match="key-value cache takes"):
        size_server(replace(vast, precision="int4_awq"), "a10", 2, 0.9)


def test_facts_that_fill_the_context_are_refused() -> None:
    with pytest.raises(ValueError, match="lower max_fact_tokens"):
        size_server(replace(WORK, context_tokens=550), None, 8, 0.9)


def test_the_context_bounds_a_sequence() -> None:
    sizes = size_server(replace(WORK, context_tokens=700), None, 8, 0.9)
    assert sizes.max_seq_len == 700
    assert "cut to the model's context" in sizes.reasons[0]
    assert sizes.max_batch_size == 8


def run_launcher(folder: Path, programs: tuple[str, ...], *extra: str) -> list[list[str]]:
    for name in programs:
        program = folder / name
        program.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        program.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", str(folder / "launch.sh"), *extra],
        env={"PATH": f"{folder}:{os.environ['PATH']}", "PORT": "9000"},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split() for line in done.stdout.splitlines()]


def test_the_launcher_serves_its_own_folder_with_the_options(tmp_path: Path) -> None:
    sizes = size_server(WORK, "h200", 8, 0.9)
    write_server(tmp_path, options_of(sizes), sizes, 8001)
    (words,) = run_launcher(tmp_path, ("trtllm-serve",), "--log_level", "info")
    assert words[:2] == ["trtllm-serve", str(tmp_path)]
    assert words[words.index("--port") + 1] == "9000"
    assert words[-2:] == ["--log_level", "info"]
    assert {word for word in words[:-2] if word.startswith("--")} <= set(SERVE_FLAGS)
    written = yaml.safe_load(Path(words[words.index("--config") + 1]).read_text())
    assert written == options_of(sizes)
    assert written["kv_cache_config"]["free_gpu_memory_fraction"] == 0.9
