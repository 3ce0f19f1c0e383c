"""Runs a TensorRT-LLM checkpoint's own numbers on a CPU, next to its parent.

The stored weights are unpacked by hand (`compress.tensorrt.formats`) into the architecture that the
checkpoint's own `config.json` describes, so that a wrong rotary base or a mislaid factor shows
in what the model says. Activations stay in float32, except for NVFP4, whose rounding of the
inputs is simulated too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compress.distance import continue_greedily
from compress.tensorrt.formats import (
    E2M1_MAX,
    E4M3_MAX,
    FORMATS,
    NVFP4_BLOCK,
    Precision,
    round_to_e2m1,
)
from compress.tensorrt.verify import packed_weight, read_tensors
from curt.corpus.case import Case
from curt.dialogue import MAX_ANSWER_TOKENS, THINK_END, ParseFailure, parse_completion

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def load_dequantised(folder: Path, precision: Precision) -> torch.nn.Module:
    """The model a checkpoint holds, in float32, its stored factors multiplied back in.

    Raises ValueError when the files do not fill the architecture of its `config.json`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = "float32"
    model = AutoModelForCausalLM.from_config(config).float().eval()
    found = read_tensors(folder)
    state = {}
    for name, tensor in found.items():
        prefix = name.removesuffix("weight")
        if not name.endswith(".weight"):
            continue
        if f"{prefix}weight_scale" not in found:
            state[name] = tensor.float()
            continue
        value = FORMATS[precision].dequantise(packed_weight(name, found))
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
    if precision == "nvfp4":
        _round_inputs(model, found)
    return model


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


def _round_inputs(model: torch.nn.Module, found: dict[str, Tensor]) -> None:
    for name, module in model.named_modules():
        scale = found.get(f"{name}.input_scale")
        if scale is not None:
            whole = float(scale)

            def hook(_: Any, arguments: tuple[Tensor, ...], whole: float = whole) -> Any:
                return (round_activations(arguments[0], whole), *arguments[1:])

            module.register_forward_pre_hook(hook)


def round_activations(value: Tensor, input_scale: float) -> Tensor:
    """Round to NVFP4 as its kernels do: E2M1 times an E4M3 scale for every 16 numbers."""
    blocks = value.float().reshape(*value.shape[:-1], -1, NVFP4_BLOCK)
    largest = blocks.abs().amax(-1, keepdim=True)
    scale = (largest / E2M1_MAX / input_scale).clamp_max(E4M3_MAX)
    scale = scale.to(torch.float8_e4m3fn).float() * input_scale
    rounded = round_to_e2m1(blocks / scale.clamp_min(1e-30)) * scale
    return torch.where(scale > 0, rounded, 0.0).reshape(value.shape).to(value.dtype)
