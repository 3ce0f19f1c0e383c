"""The options TensorRT-LLM's LLM API accepts from a YAML file, as data, with their source.

Pinned version: 1.2.1. The keys below are those that stand in both of

- `tensorrt_llm/llmapi/llm_args.py` of the 1.2.0 release candidates (classes BaseLlmArgs,
  TorchLlmArgs, KvCacheConfig, CudaGraphConfig), all of which forbid unknown keys, and
- the reference pages `llm-api/reference/TorchLlmArgs`, `KvCacheConfig` and
  `DecodeCudaGraphConfig` of the 1.3.0rc27 documentation,

so 1.2.1, which lies between, has them as well. The command line's names are from
`tests/unittest/api_stability/references/trtllm_serve_cli.yaml` at commit 029e223.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PINNED_VERSION = "1.2.1"
IMAGE = f"nvcr.io/nvidia/tensorrt-llm/release:{PINNED_VERSION}"

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
CHOICES: Mapping[str, tuple[str, ...]] = {"guided_decoding_backend": ("xgrammar", "llguidance")}

SERVE_FLAGS = (
    "--host",
    "--port",
    "--tp_size",
    "--pp_size",
    "--max_batch_size",
    "--max_num_tokens",
    "--max_seq_len",
    "--kv_cache_free_gpu_memory_fraction",
    "--backend",
    "--tokenizer",
    "--config",
)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError naming every key or value the pinned version would refuse."""
    faults = _faults(options, OPTIONS, "")
    for name, known in NESTED.items():
        if isinstance(options.get(name), dict):
            faults += _faults(options[name], known, f"{name}.")
    graphs = options.get("cuda_graph_config", {})
    if isinstance(graphs, dict) and {"batch_sizes", "max_batch_size"} <= graphs.keys():
        faults.append("cuda_graph_config takes batch_sizes or max_batch_size, not both")
    if faults:
        raise ValueError(f"TensorRT-LLM {PINNED_VERSION} refuses: {'; '.join(faults)}")


def _faults(
    options: Mapping[str, Any], known: Mapping[str, tuple[type, ...]], prefix: str
) -> list[str]:
    faults = []
    for name, value in options.items():
        if name not in known:
            faults.append(f"{prefix}{name} (no such option)")
        elif not isinstance(value, known[name]) or (bool not in known[name] and value is True):
            faults.append(f"{prefix}{name} = {value!r}")
        elif name in CHOICES and value not in CHOICES[name]:
            faults.append(f"{prefix}{name} = {value!r} (use {' or '.join(CHOICES[name])})")
    return faults
