"""What GPTQ is held against: rounding without calibration."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.onnx.gptq import MAX_CODE, QuantisedWeight, _find_grid


def round_to_nearest(weight: Tensor, block_size: int) -> QuantisedWeight:
    """Quantise `weight` (N, K) without calibration: every value to its nearest code."""
    weight = weight.float()
    parts = [
        _find_grid(part, torch.ones(block_size)) for part in torch.split(weight, block_size, dim=1)
    ]
    scales = torch.cat([scale for scale, _ in parts], dim=1)
    zeros = torch.cat([zero for _, zero in parts], dim=1)
    wide = scales.repeat_interleave(block_size, dim=1)
    codes = (torch.round(weight / wide) + zeros.repeat_interleave(block_size, dim=1)).clamp(
        0, MAX_CODE
    )
    return QuantisedWeight(codes.byte(), scales, zeros.byte())
