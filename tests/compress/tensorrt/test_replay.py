from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from compress.distance import compare_on
from compress.prompts import hash_examples
from compress.tensorrt.formats import FORMATS as BY_NAME
from compress.tensorrt.formats import Precision
from compress.tensorrt.quantise import quantise
from compress.tensorrt.readers import write_for_older_readers
from compress.tensorrt.replay import compare_answers, load_dequantised, weight_errors
from curt.corpus.case import Case
from curt.dialogue import THINK_END, render_answer
from curt.files import write_json
from curt.law.verdict import Term, Verdict
from tests.compress.onnx.exports import make_untied_model
from tests.micro import FACTS

EXAMPLES = [list(range(5, 60)), list(range(60, 140))]
Q_PROJ = "model.layers.0.self_attn.q_proj"
DOWN_PROJ = "model.layers.1.mlp.down_proj"
FORMATS: tuple[Precision, ...] = ("bf16", "fp8", "int4_awq", "nvfp4")


@pytest.fixture(scope="module")
def parent(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_untied_model(tmp_path_factory.mktemp("replay") / "model", micro_model)


def load(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def checkpoints(parent: Path) -> dict[Precision, Path]:
    folders = {}
    tokenizer = AutoTokenizer.from_pretrained(parent)
    for precision in FORMATS:
        folders[precision] = parent.parent / precision
        folders[precision].mkdir()
        quantise(parent, precision, EXAMPLES, 0, folders[precision])
        tokenizer.save_pretrained(folders[precision])
        write_for_older_readers(parent, folders[precision])
    return folders


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "most"),
    [("bf16", 0.01), ("fp8", 0.1), ("int4_awq", 1.0), ("nvfp4", 1.0)],
)
def test_stored_numbers_say_what_the_parent_says(
    checkpoints: dict[Precision, Path], parent: Path, precision: Precision, most: float
) -> None:
    child = load_dequantised(checkpoints[precision], precision)
    distance = compare_on(load(parent), child, EXAMPLES).to_row()
    assert 0 <= distance["kl"] < most


@pytest.mark.slow
def test_a_lost_rotary_base_shows_in_what_the_model_says(
    checkpoints: dict[Precision, Path], parent: Path
) -> None:
    folder = checkpoints["bf16"]
    text = (folder / "config.json").read_text()
    config = json.loads(text)
    config["rope_parameters"]["rope_theta"] = config["rope_theta"] = 100.0
    write_json(folder / "config.json", config)
    try:
        wrong = compare_on(load(parent), load_dequantised(folder, "bf16"), EXAMPLES).to_row()
    finally:
        (folder / "config.json").write_text(text)
    right = compare_on(load(parent), load_dequantised(folder, "bf16"), EXAMPLES).to_row()
    assert wrong["kl"] > 10 * right["kl"]


def altered(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    shutil.copytree(folder, target)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    return target


def scale(key: str, factor: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[key] = (tensors[key].float() * factor).to(tensors[key].dtype)

    return change


def drop(key: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[key]

    return change


def swap_nibbles(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name, tensor in tensors.items() if tensor.dtype == torch.uint8]:
        tensors[name] = (tensors[name] >> 4) | (tensors[name] << 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "change", "name"),
    [
        ("fp8", scale(f"{Q_PROJ}.weight_scale", 1.1), f"{Q_PROJ}.weight"),
        ("fp8", scale("model.norm.weight", 1.5), "model.norm.weight"),
        ("int4_awq", swap_nibbles, f"{Q_PROJ}.weight"),
        ("int4_awq", scale(f"{DOWN_PROJ}.pre_quant_scale", 2.0), f"{DOWN_PROJ}.weight"),
        ("int4_awq", scale("model.layers.0.input_layernorm.weight", -1.0), f"{Q_PROJ}.weight"),
        ("nvfp4", swap_nibbles, f"{DOWN_PROJ}.weight"),
        ("nvfp4", scale(f"{DOWN_PROJ}.weight_scale_2", 1.5), f"{DOWN_PROJ}.weight"),
        ("bf16", scale("model.embed_tokens.weight", 1.01), "model.embed_tokens.weight"),
    ],
)
def test_an_altered_tensor_is_told_from_its_parents(
    checkpoints: dict[Precision, Path],
    parent: Path,
    tmp_path: Path,
    precision: Precision,
    change: Callable[[dict[str, torch.Tensor]], None],
    name: str,
) -> None:
    folder, most = checkpoints[precision], BY_NAME[precision].most_error
    right = weight_errors(load(parent), load_dequantised(folder, precision), EXAMPLES)
    assert max(right.values()) <= most
    child = load_dequantised(altered(folder, tmp_path / "altered", change), precision)
    wrong = weight_errors(load(parent), child, EXAMPLES)
    assert name in {key for key, error in wrong.items() if error > most}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "change", "fault"),
    [
        ("fp8", drop(f"{DOWN_PROJ}.input_scale"), "down_proj.weight has no input_scale"),
        ("fp8", drop("lm_head.weight"), "disagree on lm_head.weight"),
        ("fp8", scale(f"{DOWN_PROJ}.input_scale", -1.0), "down_proj.input_scale is -0"),
        ("nvfp4", drop(f"{Q_PROJ}.weight_scale_2"), "q_proj.weight has no weight_scale_2"),
    ],
)
def test_a_lost_tensor_or_a_scale_that_is_none_is_named(
    checkpoints: dict[Precision, Path],
    tmp_path: Path,
    precision: Precision,
    change: Callable[[dict[str, torch.Tensor]], None],
    fault: str,
) -> None:
    folder = altered(checkpoints[precision], tmp_path / "altered", change)
    with pytest.raises(ValueError, match=fault):
        load_dequantised(folder, precision)


@pytest.mark.slow
def test_another_format_than_the_settings_name_is_refused(
    checkpoints: dict[Precision, Path],
) -> None:
    with pytest.raises(ValueError, match="said to be FP8, not NVFP4"):
        load_dequantised(checkpoints["fp8"], "nvfp4")


@pytest.mark.slow
def test_files_that_do_not_fill_the_architecture_are_refused(
    checkpoints: dict[Precision, Path], tmp_path: Path
) -> None:
    config = json.loads((checkpoints["bf16"] / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(checkpoints["bf16"] / "model.safetensors")
    write_json(tmp_path / "config.json", config | {"num_hidden_layers": 3, "layer_types": None})
    with pytest.raises(ValueError, match=r"disagree on model\.layers\.2"):
        load_dequantised(tmp_path, "bf16")


def test_answers_are_counted_by_their_verdict(micro_model: Path, tmp_path: Path) -> None:
    """Two models that always write one text: right for one case and wrong for the other."""
    tokenizer = AutoTokenizer.from_pretrained(micro_model)
    verdict = Verdict(("盗窃",), ("264",), Term("fixed", 8), 8000)
    other = Verdict(("盗窃",), ("264",), Term("fixed", 9), 8000)
    completion = tokenizer(f"{THINK_END}{render_answer(verdict)}<|im_end|>")["input_ids"]
    writer = Scripted(load(micro_model), completion)
    silent = Scripted(load(micro_model), [tokenizer.eos_token_id])
    prompt = tokenizer(FACTS[0])["input_ids"]
    cases = [Case("a", FACTS[0], verdict, "test"), Case("b", FACTS[0], other, "test")]
    figures = compare_answers(
        writer, silent, tokenizer, [prompt] * 2, [completion] * 2, cases, max_thinking_tokens=64
    )
    assert figures["parent_exact"] == 0.5
    assert figures["exact"] == 0
    assert figures["same_answer"] == 0
    assert figures["nll_difference"] == 0
    assert figures["parent_nll"] > 0
    with pytest.raises(ValueError, match="at least one"):
        compare_answers(writer, silent, tokenizer, [], [], [], max_thinking_tokens=64)


class Scripted(torch.nn.Module):
    """A model that judges as the one inside and writes a fixed text."""

    def __init__(self, inner: torch.nn.Module, text: list[int]) -> None:
        super().__init__()
        self.inner, self.text, self.config = inner, text, inner.config

    def forward(self, ids: torch.Tensor) -> object:
        return self.inner(ids)

    def generate(self, ids: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.cat([ids, torch.tensor([self.text])], dim=1)


def test_rounded_inputs_stay_within_a_step() -> None:
    value = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    value[1, :16] = 0.0
    scale = float(value.abs().max()) / (6 * 448)
    rounded = BY_NAME["nvfp4"].round_inputs(value, scale)
    assert bool((rounded[1, :16] == 0).all())
    blocks = value.reshape(3, 4, 16).abs().amax(-1, keepdim=True).expand(3, 4, 16).reshape(3, 64)
    assert bool(((rounded - value).abs() <= blocks / 6 * 1.13).all())
    assert len(set(rounded[0, :16].abs().tolist())) <= 8


def test_a_calibration_set_is_known_by_its_tokens_and_their_order() -> None:
    assert hash_examples([[1, 2], [3]]) == hash_examples([(1, 2), (3,)])
    assert len({hash_examples(e) for e in ([[1, 2], [3]], [[3], [1, 2]], [[1], [2, 3]])}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("precision", FORMATS)
def test_the_biases_of_qwen2_are_read(tmp_path: Path, precision: Precision) -> None:
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    parent = Qwen2ForCausalLM(shape)
    for name, weight in parent.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    parent.save_pretrained(tmp_path / "parent")
    (tmp_path / "out").mkdir()
    quantise(tmp_path / "parent", precision, EXAMPLES, 0, tmp_path / "out")
    errors = weight_errors(parent, load_dequantised(tmp_path / "out", precision), EXAMPLES)
    biases = {name: error for name, error in errors.items() if name.endswith("bias")}
    assert len(biases) == 6
    assert max(biases.values()) < 0.01
    assert max(errors.values()) < 0.25


@pytest.mark.slow
def test_factors_in_gemmas_norms_are_found_there(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = Gemma3TextConfig(
        vocab_size=160, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=64, max_position_embeddings=256,
    )  # fmt: skip
    parent = Gemma3ForCausalLM(shape)
    with torch.no_grad():  # norms as training leaves them, one input far wider than the others
        for name, weight in parent.named_parameters():
            if name.endswith("norm.weight"):
                weight.normal_(0.5, 0.3)[3] = 20.0
    parent.save_pretrained(tmp_path / "parent")
    (tmp_path / "child").mkdir()
    quantise(tmp_path / "parent", "int4_awq", EXAMPLES, 0, tmp_path / "child")
    child = load_dequantised(tmp_path / "child", "int4_awq")
    errors = weight_errors(load(tmp_path / "parent"), child, EXAMPLES)
    assert "model.layers.0.post_attention_layernorm.weight" in errors
    assert max(errors.values()) <= BY_NAME["int4_awq"].most_error
    child.get_parameter("model.layers.0.pre_feedforward_layernorm.weight").data *= 2
    wrong = weight_errors(load(tmp_path / "parent"), child, EXAMPLES)
    assert wrong["model.layers.0.mlp.gate_proj.weight"] > BY_NAME["int4_awq"].most_error


def test_a_channel_counts_by_what_goes_into_it(parent: Path) -> None:
    theirs, ours = load(parent), load(parent)
    weight = f"{Q_PROJ}.weight"
    for channel, scale_of_inputs in ((3, 0.01), (4, 1.0)):
        for model in (theirs, ours):
            model.get_parameter("model.embed_tokens.weight").data[:, channel] *= scale_of_inputs
        changed = ours.get_parameter(weight).data
        kept = changed.clone()
        changed[:, channel] *= 5
        error = weight_errors(theirs, ours, EXAMPLES)[weight]
        changed.copy_(kept)
        assert (error < 0.02) == (channel == 3), f"channel {channel}: {error}"
