from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from compress.distill.student import StudentShape, kept_layers, make_student
from tests.compress.onnx.exports import make_untied_model


@pytest.fixture(scope="module")
def teacher(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose two layers do something, so that a student with one is far from it."""
    return make_untied_model(tmp_path_factory.mktemp("student") / "teacher", micro_model)


@pytest.mark.parametrize(
    ("count", "total", "kept"),
    [(1, 6, [0]), (2, 6, [0, 5]), (3, 6, [0, 3, 5]), (4, 6, [0, 2, 3, 5]), (6, 6, [*range(6)])],
)
def test_kept_layers_are_evenly_spread(count, total, kept):
    assert kept_layers(count, total) == kept


def test_kept_layers_rise_from_the_first_to_the_last():
    for total in range(2, 40):
        for count in range(2, total + 1):
            kept = kept_layers(count, total)
            assert (kept[0], kept[-1], len(set(kept)), kept) == (
                0,
                total - 1,
                count,
                sorted(kept),
            )
    with pytest.raises(ValueError, match="use 1 to 3"):
        kept_layers(4, 3)


def test_a_student_of_fewer_layers_carries_its_teachers_weights(teacher: Path):
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    whole = make_student(model, StudentShape(layers=2), seed=0)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert whole(ids).logits.equal(model(ids).logits)
    one = make_student(model, StudentShape(layers=1), seed=0)
    assert one.config.num_hidden_layers == len(one.model.layers) == len(one.config.layer_types) == 1
    assert one.config.rope_parameters == model.config.rope_parameters
    first = model.model.layers[0].state_dict()
    assert all(first[name].equal(value) for name, value in one.model.layers[0].state_dict().items())
    assert one.lm_head.weight.equal(model.lm_head.weight)
    assert one.lm_head.weight.data_ptr() != model.lm_head.weight.data_ptr()


def test_narrower_students_start_from_seeded_random_weights(teacher: Path):
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    shape = StudentShape(hidden=64, ffn=128, heads=1)
    one, same, other = (make_student(model, shape, seed=s) for s in (1, 1, 2))
    assert one.lm_head.weight.shape == (model.config.vocab_size, 64)
    assert one.lm_head.weight.equal(same.lm_head.weight)
    assert not one.lm_head.weight.equal(other.lm_head.weight)


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ({"layers": 3}, "num_hidden_layers 3 is above the teacher's 2"),
        ({"hidden": 256}, "hidden_size 256 is above the teacher's 128"),
    ],
)
def test_a_student_above_its_teacher_is_refused(teacher: Path, shape, named):
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    with pytest.raises(ValueError, match=named):
        make_student(model, StudentShape(**shape), seed=0)


def test_heads_that_do_not_divide_are_refused(teacher: Path):
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    model.config.num_key_value_heads = 2
    with pytest.raises(ValueError, match="1 heads over 2 kv_heads"):
        make_student(model, StudentShape(heads=1), seed=0)
