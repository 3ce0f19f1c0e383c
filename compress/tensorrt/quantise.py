"""Quantises a model for TensorRT-LLM with ModelOpt, on a CPU, and writes its checkpoint.

Calibration and export work without a GPU (ModelOpt 0.47). How far the result is from its parent
is measured on what was stored, by `compress.tensorrt.replay`.
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

from compress.folders import load_model
from compress.tensorrt.formats import FORMATS, Precision
from curt.hardware import choose_bf16

log = logging.getLogger(__name__)


def quantise(
    source: Path,
    precision: Precision,
    examples: Sequence[list[int]],
    seed: int,
    folder: Path,
) -> None:
    """Calibrate on `examples` (token ids), write the unified checkpoint into `folder`."""
    torch.manual_seed(seed)
    with _quiet_modelopt(), torch.inference_mode():
        import modelopt.torch.quantization as mtq
        from modelopt.torch.export import export_hf_checkpoint

        model = load_model(source, torch.bfloat16)  # the values that are exported
        if not choose_bf16(True):
            model = model.float()
        if not model.config.architectures:  # the exporter looks its layer names up by it
            model.config.architectures = [type(model).__name__]

        def calibrate(module: torch.nn.Module) -> None:
            for ids in examples:
                module(torch.tensor([ids]))

        if name := FORMATS[precision].modelopt_config:
            model = mtq.quantize(model, getattr(mtq, name), calibrate)
        export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=folder)


@contextlib.contextmanager
def _quiet_modelopt() -> Iterator[None]:
    """Send ModelOpt's prints to the debug log and drop the warnings it always gives."""
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        # ModelOpt declares an older transformers than it works with.
        warnings.filterwarnings("ignore", message=r"transformers \S+ is not tested")
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="To copy construct from a tensor")
        # It is left as it is.
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
