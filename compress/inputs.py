"""What goes into a model's linear layers when it reads: what rounding has to be judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


@torch.inference_mode()
def listen_to_inputs(
    model: Any, examples: Sequence[Sequence[int]], note: Callable[[str, Tensor], None]
) -> None:
    """Have the model read `examples` of token ids, one at a time.

    `note` is told the name of each linear layer and what went into it, float32 (tokens, channels).
    """

    def listen(name: str, module: nn.Module) -> Any:
        return module.register_forward_pre_hook(
            lambda _, inputs: note(name, inputs[0].float().flatten(0, -2))
        )

    layers = model.named_modules()
    hooks = [listen(name, module) for name, module in layers if isinstance(module, nn.Linear)]
    try:
        for ids in examples:
            model(torch.tensor([list(ids)]))
    finally:
        for hook in hooks:
            hook.remove()
