"""vLLM's CPU backend inside a training process, for contract tests without a GPU.

That backend packs linear weights into a layout of its own when it loads a model, so that new
weights of a training step no longer fit. `keep_weights_plain` has it compute with the weights as
they are: slower, and on a CPU plain generation is faster anyway. On GPUs nothing of this is needed.
"""

from __future__ import annotations

import os
from typing import Any


def keep_weights_plain() -> None:
    """Stop vLLM from packing linear weights; call before the engine is made.

    Raises RuntimeError where this vLLM has no such place, or isn't a CPU build.
    """
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or not hasattr(utils, "dispatch_cpu_unquantized_gemm"):
        raise RuntimeError(
            "this vLLM doesn't pack weights as the CPU build of 0.22 to 0.31 does: "
            "run without keep_weights_plain"
        )
    utils.dispatch_cpu_unquantized_gemm = _compute_plainly


def _compute_plainly(layer: Any, remove_weight: bool) -> None:
    """In place of the packing: what the layer calls to multiply, weights kept."""
    import torch

    layer.cpu_linear = torch.nn.functional.linear
