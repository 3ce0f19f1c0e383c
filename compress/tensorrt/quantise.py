"""Quantises a model for TensorRT-LLM with ModelOpt, on a CPU, and writes its checkpoint.

What works without a GPU (ModelOpt 0.47): FP8 and INT4 AWQ calibrate, run and export. NVFP4
calibrates and exports, but its own forward pass wants CUDA; `compress.tensorrt.replay` stands in
for it with the stored numbers.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from compress.distance import compare_on
from compress.folders import load_model
from compress.tensorrt.formats import FORMATS, Precision

log = logging.getLogger(__name__)

COMPARED_EXAMPLES = 16


def quantise(
    source: Path,
    precision: Precision,
    examples: Sequence[list[int]],
    seed: int,
    folder: Path,
) -> dict[str, float]:
    """Calibrate on `examples` (token ids), write the unified checkpoint into `folder`.

    Returns how far the quantised model, simulated with its rounding of what goes into the
    layers, is from its source (`compress.distance`); nothing where simulating needs a GPU.
    """
    torch.manual_seed(seed)
    with _quiet_modelopt(), torch.inference_mode():
        import modelopt.torch.quantization as mtq
        from modelopt.torch.export import export_hf_checkpoint

        model = load_model(source, torch.bfloat16)
        if not model.config.architectures:  # the exporter looks its layer names up by it
            model.config.architectures = [type(model).__name__]

        def calibrate(module: torch.nn.Module) -> None:
            for ids in examples:
                module(torch.tensor([ids]))

        form = FORMATS[precision]
        if form.modelopt_config:
            model = mtq.quantize(model, getattr(mtq, form.modelopt_config), calibrate)
        distance: dict[str, float] = {}
        if not form.needs_cuda:
            parent = load_model(source)
            distance = compare_on(parent, model, examples[:COMPARED_EXAMPLES]).to_row()
            del parent
        export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=folder)
    return distance


@contextlib.contextmanager
def _quiet_modelopt() -> Iterator[None]:
    """Send ModelOpt's prints to the debug log and drop the warnings it always gives."""
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        # ModelOpt declares an older transformers than it works with.
        warnings.filterwarnings("ignore", message=r"transformers \S+ is not tested")
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="To copy construct from a tensor")
        # It is left as it is, as verification sees.
        warnings.filterwarnings("ignore", message="Enable lm_head quantization")
        warnings.filterwarnings("ignore", message="lm_head is not calibrated")
        yield
    for line in printed.getvalue().splitlines():
        log.debug("modelopt: %s", line)


def model_widths(config: Mapping[str, Any]) -> dict[str, int]:
    """The columns of a Hugging Face model's projections, by name."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return {
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "attention width": heads * head_dim,
    }
