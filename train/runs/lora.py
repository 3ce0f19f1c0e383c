"""Low-rank adapters (LoRA, arXiv 2106.09685), merged into the weights of the folder written.

Every later stage loads a whole model: the model folder holds base + alpha / rank · B · A. Servers
of many adapters over one base are given the adapter alone, which may lie beside (`keep`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from curt.checkpoint import Checkpoint, read_checkpoint
from curt.config import FrozenModel
from curt.dialogue import THINK_END, THINK_START

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Lora(FrozenModel):
    """Size and place of the adapters."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    """The adapter's output is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the layers adapted, such as q_proj; all linear ones but the output by default."""
    quantised: bool = False
    """Hold the base in four bits while training (QLoRA, arXiv 2305.14314): needs bitsandbytes. The
    folder written is merged from the whole base all the same."""
    keep: bool = False
    """Write the adapter too, unmerged, to `adapter/` in the model folder: peft and vLLM read it."""


Rows = dict[str, list[int]]
"""Rows of embeddings and output layers, by the layer's name."""

_TRAINED = (".lora_", ".trainable_tokens_delta.")  # in the names of what an adapted model learns


def check_adapters(lora: Lora | None, checkpoint: Checkpoint) -> None:
    """Raise ValueError where a base shall be held in four bits and nothing can.

    So too where kept adapters would be loaded onto another base than they were trained on.
    """
    if lora and lora.keep:
        checkpoint.check_as_it_is("a server of the kept adapter")
    if lora and lora.quantised and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "lora.quantised needs the package bitsandbytes: install it, as docs/training.md says"
        )


def load_base(checkpoint: Checkpoint, lora: Lora | None) -> Any:
    """The model to train or to adapt; in four bits (NF4, twice quantised) where `lora` says so."""
    if lora is None or not lora.quantised:
        return checkpoint.load_model()
    import torch
    from accelerate import PartialState
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    held = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    options = {"quantization_config": held, "device_map": {"": PartialState().device}}
    model = checkpoint.load_model(dtype=torch.bfloat16, **options)
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def adapter_config(lora: Lora, rows: Rows | None = None) -> LoraConfig:
    """The same for the peft library; `rows` of other layers are trained beside the adapters."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        trainable_token_indices=rows or None,
        task_type="CAUSAL_LM",
    )


def forget_source(adapted: Any) -> None:
    """Keep embeddings out of an adapter's checkpoints.

    peft would add them wherever the vocabulary has grown since the model was read.
    """
    for part in adapted.peft_config.values():
        part.base_model_name_or_path = None
    adapted.get_base_model().name_or_path = ""  # or the first checkpoint written fills it in again


def marks_to_train(model: Any, tokenizer: PreTrainedTokenizerBase, lora: Lora) -> Rows:
    """The embeddings of the tokens that open and close thinking, read and written.

    Where a checkpoint lacks these tokens both begin as means of much the same pieces: frozen, a
    model can hardly tell one from the other. None for an adapter to be kept, as servers of
    adapters load no embeddings.
    """
    if lora.keep:
        return {}
    ids = list(tokenizer.convert_tokens_to_ids([THINK_START, THINK_END]))
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return {name: ids for name, layer in model.named_modules() if layer in layers}


def merge_adapter(
    source: str,
    lora: Lora,
    weights: Mapping[str, torch.Tensor],
    kept: Path | None = None,
    rows: Rows | None = None,
) -> PreTrainedModel:
    """The model at `source` with trained adapters merged in, in fp32; unmerged they go to `kept`.

    `weights` is the state of the adapted model; of it only what was trained is read, so that
    weights that were sharded or rounded for training don't matter. `rows` are those that
    `adapter_config` was given. Raises ValueError when they don't fit.
    """
    from peft import get_peft_model

    base = read_checkpoint(source).load_model()
    adapted = get_peft_model(base, adapter_config(lora, rows))
    wanted = {name for name in adapted.state_dict() if _is_trained(name)}
    found = {name: value for name, value in weights.items() if _is_trained(name)}
    if wanted != found.keys():
        raise ValueError(
            f"{len(found)} trained adapters for {len(wanted)} places in {source}: "
            "it is not the model that training started from"
        )
    adapted.load_state_dict(found, strict=False)
    if kept:
        adapted.save_pretrained(kept, save_embedding_layers=False)
    return adapted.merge_and_unload()


def _is_trained(name: str) -> bool:
    return any(part in name for part in _TRAINED)
