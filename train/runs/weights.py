"""From a trainer's model, wherever its parts lie, to the files of a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Trainer

from train.runs.lora import Lora, merge_adapter
from train.runs.processes import SHARDED


def gather_weights(trainer: Trainer) -> dict[str, Any] | None:
    """The weights in one place, where FSDP or DeepSpeed spread them; None where they are whole.

    Every process must call this; the result counts in the main one.
    """
    accelerator = trainer.accelerator
    if accelerator.distributed_type not in SHARDED:
        return None
    weights: dict[str, Any] = accelerator.get_state_dict(trainer.model_wrapped)
    return weights


def save_model(
    trainer: Trainer,
    weights: dict[str, Any] | None,
    folder: Path,
    *,
    source: str | None,
    lora: Lora | None,
) -> None:
    """Write the trained model, adapters merged, into `folder`; for the main process.

    Args:
        trainer: its model is the one saved.
        weights: from `gather_weights`.
        source: the model that adapters were put on.
        lora: the adapters, if any.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if lora is None:
        model.save_pretrained(folder, state_dict=weights)
        return
    assert source is not None
    merged = merge_adapter(source, lora, weights or model.state_dict())
    merged.save_pretrained(folder)


def precision_of(trainer: Trainer, weights: dict[str, Any] | None, lora: Lora | None) -> str:
    """Precision of the weights that `save_model` writes, as manifests name it."""
    if lora is not None:
        return "fp32"
    tensors = (weights or trainer.model.state_dict()).values()
    names = {str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()}
    known = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    return "+".join(sorted(known.get(name, name) for name in names))
