"""Runs a TensorRT-LLM checkpoint's own numbers on a CPU, next to its parent.

The stored weights are unpacked by hand (`compress.tensorrt.formats`) into the architecture that the
checkpoint's own `config.json` describes, and what goes into its layers is rounded as the GPU's
kernels round it: a wrong rotary base, a mislaid factor or scale shows in what the model says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.distance import continue_greedily
from compress.inputs import listen_to_inputs
from compress.tensorrt.formats import FORMATS, Precision, WeightFormat
from curt.corpus.case import Case
from curt.dialogue import MAX_ANSWER_TOKENS, THINK_END, ParseFailure, parse_completion

# Projections whose factor AWQ may fold into the norm before them.
NORM_OF = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "input_layernorm"),
    **dict.fromkeys(("gate_proj", "up_proj"), "post_attention_layernorm"),
}

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_dequantised(folder: Path, precision: Precision) -> torch.nn.Module:
    """The model a checkpoint holds, in float32, its stored factors multiplied back in.

    Raises ValueError when its `config.json` names another format, a weight lacks a scale or has one
    that is none, or the files do not fill the architecture.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    form = FORMATS[precision]
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    told = settings.get("quantization_config", {}).get("quant_algo")
    if told != form.algorithm:
        raise ValueError(f"{folder.name} is said to be {told}, not {form.algorithm}")
    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = "float32"
    model = AutoModelForCausalLM.from_config(config).float().eval()
    found = read_tensors(folder)
    state = {}
    for name, tensor in found.items():
        prefix = name.removesuffix("weight")
        if not name.endswith((".weight", ".bias")):
            continue
        if f"{prefix}weight_scale" not in found:
            state[name] = tensor.float()
            continue
        value = form.dequantise(_parts_of(prefix, found, form))
        if f"{prefix}pre_quant_scale" in found:  # it multiplies the input
            value = value * found[f"{prefix}pre_quant_scale"].float()
        state[name] = value
    result = model.load_state_dict(state, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    wrong = [*(set(result.missing_keys) - tied), *result.unexpected_keys]
    if wrong:
        raise ValueError(f"{folder.name} and its config.json disagree on {', '.join(wrong[:5])}")
    model.tie_weights()
    assert isinstance(model, torch.nn.Module)
    _round_inputs(model, found, form)
    return model


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors files. Raises ValueError without any."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    if not tensors:
        raise ValueError(f"{folder} holds no safetensors file: export it again")
    return tensors


def _parts_of(prefix: str, found: Mapping[str, Tensor], form: WeightFormat) -> dict[str, Tensor]:
    """A stored weight and the scales beside it, all of which the format must have there."""
    if lacking := [scale for scale in form.scales if f"{prefix}{scale}" not in found]:
        raise ValueError(f"{prefix}weight has no {', '.join(lacking)}: export it again")
    return {part: found[f"{prefix}{part}"] for part in ("weight", *form.scales)}


def weight_errors(
    parent: torch.nn.Module, child: torch.nn.Module, examples: Sequence[Sequence[int]]
) -> dict[str, float]:
    """How far each tensor is from the parent's, ‖(child − parent)·D‖ / ‖parent·D‖, by name.

    D holds how large each input channel of a projection is (root mean square) when the parent reads
    `examples` of token ids, since AWQ rounds small channels coarsely on purpose; else D is 1.
    A projection is compared together with the norm that it reads, and such a norm not by itself.
    """
    theirs, ours = parent.state_dict(), child.state_dict()
    sizes = _input_sizes(parent, examples)
    norm_of, one = NORM_OF, 0.0
    if any("pre_feedforward_layernorm" in name for name in theirs):
        # Gemma's norms stand on both sides of a block, and scale by 1 + weight.
        norm_of = NORM_OF | dict.fromkeys(("gate_proj", "up_proj"), "pre_feedforward_layernorm")
        one = 1.0
    errors = {}
    for name, wanted in theirs.items():
        value, path = ours[name], name.split(".")
        if path[-2] in norm_of.values():
            continue
        size = sizes.get(name, torch.ones(()))
        if path[-2] in norm_of and path[-1] == "weight":
            norm = ".".join([*path[:-3], norm_of[path[-2]], "weight"])
            before = one + theirs[norm]
            value, wanted = value * (one + ours[norm]), wanted * before
            size = size / before.abs().clamp_min(1e-6)  # of what the norm scales
        gap, whole = (value - wanted) * size, wanted * size
        errors[name] = float(gap.norm() / whole.norm().clamp_min(1e-12))
    return errors


def _input_sizes(model: torch.nn.Module, examples: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Root mean square of each input channel (C,) of every linear layer, by its weight's name."""
    squares: dict[str, Tensor] = {}

    def note(name: str, inputs: Tensor) -> None:
        key, found = f"{name}.weight", inputs.pow(2).sum(0)
        squares[key] = squares[key] + found if key in squares else found

    listen_to_inputs(model, examples, note)
    read = max(1, sum(len(ids) for ids in examples))
    return {name: (total / read).sqrt() for name, total in squares.items()}


def compare_answers(
    parent: torch.nn.Module,
    child: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    cases: Sequence[Case],
    max_thinking_tokens: int,
) -> dict[str, float]:
    """How the child differs from its parent on cases: likelihood, and answers written greedily.

    `prompts` and `completions` are token ids: the question, and the case's own reasoning and
    verdict. Returns, in nats a token of the completions, `parent_nll` and `nll_difference`
    (child minus parent); the shares of cases answered exactly, `parent_exact` and `exact`; and
    `same_answer`, the share on which both write the same answer. Raises ValueError without cases.
    """
    if not cases:
        raise ValueError("no cases to compare answers on: give at least one")
    rows = [(parent, [0.0, 0.0]), (child, [0.0, 0.0])]
    answers: list[list[str]] = []
    for prompt, completion, case in zip(prompts, completions, cases, strict=True):
        written = []
        for model, totals in rows:
            totals[0] += _nll(model, prompt, completion)
            text = _write(model, tokenizer, prompt, max_thinking_tokens)
            verdict = parse_completion(text).verdict
            if not isinstance(verdict, ParseFailure) and verdict == case.verdict:
                totals[1] += 1
            written.append(text.partition(THINK_END)[2].strip())
        answers.append(written)
    tokens, count = sum(len(c) for c in completions), len(cases)
    (theirs, their_exact), (ours, our_exact) = (totals for _, totals in rows)
    return {
        "parent_nll": theirs / tokens,
        "nll_difference": (ours - theirs) / tokens,
        "parent_exact": their_exact / count,
        "exact": our_exact / count,
        "same_answer": sum(a == b for a, b in answers) / count,
        "compared_cases": float(count),
    }


@torch.inference_mode()
def _nll(model: torch.nn.Module, prompt: list[int], completion: list[int]) -> float:
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
    targets = torch.tensor(completion)
    return float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))


def _write(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: list[int], thinking: int) -> str:
    written = continue_greedily(
        model,
        prompt,
        thinking + 1 + MAX_ANSWER_TOKENS,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kept = [token for token in written if token != tokenizer.eos_token_id]
    return str(tokenizer.decode(kept, skip_special_tokens=False))


def _round_inputs(model: torch.nn.Module, found: Mapping[str, Tensor], form: WeightFormat) -> None:
    for name, module in model.named_modules():
        scale = found.get(f"{name}.input_scale")
        if scale is not None:
            if not 0 < float(scale) < math.inf:
                raise ValueError(f"{name}.input_scale is {float(scale)}: export it again")

            def hook(_: Any, arguments: tuple[Tensor, ...], scale: float = float(scale)) -> Any:
                return (form.round_inputs(arguments[0], scale), *arguments[1:])

            module.register_forward_pre_hook(hook)
