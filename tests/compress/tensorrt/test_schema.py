from __future__ import annotations

from typing import Any

import pytest

from compress.tensorrt.schema import check_options

GOOD: dict[str, Any] = {
    "max_batch_size": 8,
    "enable_chunked_prefill": True,
    "guided_decoding_backend": "llguidance",
    "kv_cache_config": {"free_gpu_memory_fraction": 0.9},
    "cuda_graph_config": {"batch_sizes": [1, 2]},
}


def test_documented_options_pass() -> None:
    check_options(GOOD)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"max_batchsize": 8}, "max_batchsize .no such option"),
        ({"kv_cache_config": {"fraction": 0.9}}, r"kv_cache_config\.fraction .no such"),
        ({"cuda_graph_config": {"batch_sizes": 4}}, r"cuda_graph_config\.batch_sizes = 4"),
        ({"cuda_graph_config": {"batch_sizes": [1], "max_batch_size": 1}}, "not both"),
        ({"guided_decoding_backend": "outlines"}, "use xgrammar or llguidance"),
        ({"max_batch_size": True}, "max_batch_size = True"),
        ({"enable_chunked_prefill": "yes"}, "enable_chunked_prefill = 'yes'"),
    ],
)
def test_what_the_pinned_version_refuses_is_refused_here(
    change: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        check_options(GOOD | change)
