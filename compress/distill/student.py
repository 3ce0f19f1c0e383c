"""Students of a distillation: the teacher with fewer layers, or a smaller one of its kind."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from pydantic import Field

from curt.config import FrozenModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StudentShape(FrozenModel):
    """Size of a student made from its teacher; what is not given is the teacher's."""

    layers: int | None = Field(None, ge=1)
    """With this alone the teacher's layers are copied, evenly spread."""
    hidden: int | None = Field(None, ge=1)
    """Width of the residual stream; this and all below start from random weights."""
    heads: int | None = Field(None, ge=1)
    kv_heads: int | None = Field(None, ge=1)
    head_dim: int | None = Field(None, ge=1)
    ffn: int | None = Field(None, ge=1)
    """Width of the feed-forward layer; keep multiples of 128 for block quantisation."""

    @property
    def changes(self) -> dict[str, int]:
        """What is given, under the names of a model's configuration."""
        return {name: v for f, name in _CONFIG_NAMES.items() if (v := getattr(self, f)) is not None}


_CONFIG_NAMES = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn": "intermediate_size",
}


def kept_layers(count: int, total: int) -> list[int]:
    """Indices of `count` of `total` layers, evenly spread from the first to the last.

    4 of 6 are 0, 2, 3, 5; one alone is the first. Raises ValueError when there are too few.
    """
    if not 1 <= count <= total:
        raise ValueError(f"{count} layers of a teacher that has {total}: use 1 to {total}")
    if count == 1:
        return [0]
    return [(2 * i * (total - 1) + count - 1) // (2 * (count - 1)) for i in range(count)]


def make_student(teacher: PreTrainedModel, shape: StudentShape, seed: int) -> PreTrainedModel:
    """A smaller model of the teacher's kind: its layers thinned out, or random weights.

    Raises ValueError when a size is above the teacher's or the heads do not divide.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(teacher.config)
    for name, value in shape.changes.items():
        limit = getattr(config, name, None)
        if limit is None and name == "head_dim":
            raise ValueError(f"{config.model_type} derives head_dim from hidden / heads: set those")
        if value > limit:
            raise ValueError(f"{name} {value} is above the teacher's {limit}: a student is smaller")
        setattr(config, name, value)
    if config.num_attention_heads % config.num_key_value_heads:
        raise ValueError(
            f"{config.num_attention_heads} heads over {config.num_key_value_heads} kv_heads: "
            "make the first a multiple of the second"
        )
    if (
        getattr(config, "head_dim", None) is None
        and config.hidden_size % config.num_attention_heads
    ):
        raise ValueError(
            f"hidden {config.hidden_size} over {config.num_attention_heads} heads: make the first "
            "a multiple of the second"
        )
    kept = kept_layers(config.num_hidden_layers, teacher.config.num_hidden_layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [teacher.config.layer_types[i] for i in kept]
    torch.manual_seed(seed)
    student = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if shape.changes.keys() == {"num_hidden_layers"}:
        new_index = {old: new for new, old in enumerate(kept)}
        weights = {}
        for name, value in teacher.state_dict().items():
            head, layers, rest = name.partition(".layers.")
            if layers:
                old, _, rest = rest.partition(".")
                if int(old) not in new_index:
                    continue
                name = f"{head}{layers}{new_index[int(old)]}.{rest}"
            weights[name] = value
        student.load_state_dict(weights)
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return student


def check_vocabulary(teacher: dict[str, int], student_tokenizer: Any) -> None:
    """Refuse, with a ValueError, a student whose tokenizer gives tokens other ids."""
    student = student_tokenizer.get_vocab()
    if different := len(set(teacher.items()) ^ set(student.items())):
        raise ValueError(
            f"vocabularies differ in {different} entries of the two tokenizers: distil into a "
            "student that was made from this teacher or its base"
        )
