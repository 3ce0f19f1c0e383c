from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress.tensorrt.verify import (
    VerificationError,
    is_quantised,
    raise_faults,
    read_parent,
    read_tensors,
)


def test_only_projections_inside_the_layers_are_quantised() -> None:
    weight, vector = torch.zeros(2, 2), torch.zeros(2)
    assert is_quantised("model.layers.0.self_attn.q_proj.weight", weight)
    assert not is_quantised("model.layers.0.self_attn.q_proj.bias", vector)
    assert not is_quantised("model.layers.0.input_layernorm.weight", vector)
    assert not is_quantised("lm_head.weight", weight)


def test_a_tied_output_layer_is_read_once(micro_model: Path) -> None:
    tensors = read_parent(micro_model)
    assert "lm_head.weight" not in tensors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_a_long_list_of_faults_is_cut(tmp_path: Path) -> None:
    raise_faults("folder", [])
    with pytest.raises(VerificationError, match="folder has 30 faults") as error:
        raise_faults("folder", [f"fault {i}" for i in range(30)])
    assert str(error.value).count("\n") == 20
    with pytest.raises(VerificationError, match="no safetensors"):
        read_tensors(tmp_path)
