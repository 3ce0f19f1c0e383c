from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from compress.prune.importance import Importance, measure, weigh
from compress.prune.prune import (
    HeadCut,
    HeadUnit,
    LayerPlan,
    make_plan,
    plan_heads,
    plan_neurons,
    shrink,
)

PROMPTS = [[1, 5, 9, 40, 33, 2, 60, 7], [3, 3, 21, 50], [11]]
LAYERS, HEADS, GROUPS, HEAD_DIM, NEURONS = 3, 8, 2, 16, 96

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "intermediate_size": NEURONS,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=HEAD_DIM, tie_word_embeddings=True))


def qwen3_biased_sliding() -> PreTrainedModel:
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    window = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
    config = Qwen3Config(
        **SIZES, **window, head_dim=HEAD_DIM, layer_types=kinds, attention_bias=True
    )
    return Qwen3ForCausalLM(config)


def qwen2() -> PreTrainedModel:
    # its configuration knows no head_dim: 48 / 8 = 6 is implied
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True))


def llama() -> PreTrainedModel:
    biases = {"attention_bias": True, "mlp_bias": True}
    return LlamaForCausalLM(LlamaConfig(**SIZES, **biases, tie_word_embeddings=False))


FAMILIES: list[Callable[[], PreTrainedModel]] = [qwen3, qwen3_biased_sliding, qwen2, llama]


@pytest.fixture(params=FAMILIES, ids=lambda make: make.__name__)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(3)
    made: PreTrainedModel = request.param()
    for parameter in made.parameters():  # norms and biases too: ones and zeros would hide a slip
        torch.nn.init.normal_(parameter, mean=0.3 if parameter.dim() == 1 else 0.0, std=0.2)
    return made.eval()


def logits(model: PreTrainedModel) -> list[Tensor]:
    with torch.no_grad():
        return [model(torch.tensor([prompt])).logits[0] for prompt in PROMPTS]


def assert_same_logits(left: PreTrainedModel, right: PreTrainedModel) -> None:
    for one, other in zip(logits(left), logits(right), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


def head_dim_of(model: PreTrainedModel) -> int:
    width: int = model.model.layers[0].self_attn.head_dim
    return width


def keep_only(model: PreTrainedModel, plan: list[LayerPlan]) -> None:
    """Zero what the plan leaves out at the inputs of the projections that read it."""

    def zero(width: int, kept: tuple[int, ...]) -> Callable[..., tuple[Tensor]]:
        def hook(_: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            parts = args[0].unflatten(-1, (-1, width))
            mask = torch.zeros(parts.shape[-2], 1)
            mask[list(kept)] = 1.0
            return ((parts * mask).flatten(-2),)

        return hook

    def skip(_: torch.nn.Module, args: tuple[Tensor, ...], __: object) -> Tensor:
        return args[0]

    by_source = {layer.source: layer for layer in plan}
    for index, layer in enumerate(model.model.layers):
        kept = by_source.get(index)
        if kept is None:
            layer.register_forward_hook(skip)
            continue
        layer.self_attn.o_proj.register_forward_pre_hook(zero(head_dim_of(model), kept.heads))
        layer.mlp.down_proj.register_forward_pre_hook(zero(1, kept.neurons))


CUTS = {
    "heads": {"cut": HeadCut("query", 1, 0.25)},
    "groups": {"cut": HeadCut("group", 1, 0.5)},
    "neurons": {"neurons": 40},
    "layers": {"layers": 1},
    "all": {"cut": HeadCut("query", 2, 0.5), "neurons": 64, "layers": 2},
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_the_pruned_model_equals_the_original_with_the_same_parts_silenced(
    model: PreTrainedModel, cut: dict[str, Any], tmp_path: Path
) -> None:
    plan = make_plan(model.config, measure(model, PROMPTS), **({"neurons": NEURONS} | cut))
    smaller = shrink(model, plan)
    assert smaller.num_parameters() < model.num_parameters()
    untouched = logits(model)
    keep_only(model, plan)
    assert not torch.allclose(logits(model)[0], untouched[0], atol=1e-3)  # it did matter
    assert_same_logits(smaller, model)
    smaller.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert_same_logits(loaded, model)
    assert head_dim_of(loaded) == head_dim_of(model)


def test_pruning_leaves_the_original_as_it_was(model: PreTrainedModel) -> None:
    before = logits(model)
    config = model.config.to_dict()
    plan = make_plan(model.config, weigh(model), cut=HeadCut("query", 2, 0.5), neurons=32)
    shrink(model, plan)
    assert model.config.to_dict() == config
    assert all(torch.equal(a, b) for a, b in zip(logits(model), before, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_cached_generation_equals_one_without_cache(model: PreTrainedModel) -> None:
    importance = measure(model, PROMPTS)
    cut = HeadCut("query", 2, 0.5)
    smaller = shrink(model, make_plan(model.config, importance, cut=cut, neurons=64, layers=1))
    ids = torch.tensor([PROMPTS[0]])
    settings = GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=0)
    outs = [
        smaller.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=settings, use_cache=cache
        )
        for cache in (True, False)
    ]
    assert torch.equal(*outs)
    assert outs[0].shape[1] > ids.shape[1]


@pytest.mark.parametrize(("gone", "kinds"), [(0, ["sliding", "sliding"]), (1, ["full", "sliding"])])
def test_lists_of_layer_kinds_follow_the_layers(gone: int, kinds: list[str]) -> None:
    model = qwen3_biased_sliding()
    influence = torch.ones(LAYERS)
    influence[gone] = 0.1
    importance = Importance([torch.ones(HEADS)] * LAYERS, [torch.ones(NEURONS)] * LAYERS, influence)
    smaller = shrink(model, make_plan(model.config, importance, neurons=NEURONS, layers=1))
    assert smaller.config.layer_types == [f"{kind}_attention" for kind in kinds]
    assert smaller.config.num_hidden_layers == 2
    assert smaller.config.max_window_layers == kinds.count("full")
    assert [layer.self_attn.layer_idx for layer in smaller.model.layers] == [0, 1]


def test_tied_embeddings_stay_tied_and_own_ones_apart() -> None:
    for model, tied in ((qwen3(), True), (llama(), False)):
        smaller = shrink(model, make_plan(model.config, weigh(model), neurons=32))
        assert (smaller.lm_head.weight is smaller.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("unit", ["query", "group"])
def test_every_group_keeps_as_many_query_heads(unit: HeadUnit) -> None:
    model = qwen3()
    cut = plan_heads(model.config, 0.5, unit)
    for layer in make_plan(model.config, weigh(model), cut=cut, neurons=NEURONS):
        size = HEADS // GROUPS
        served = [sum(head // size == group for head in layer.heads) for group in layer.groups]
        assert len(layer.groups) == (2 if unit == "query" else 1)
        assert served == [size // 2] * 2 if unit == "query" else [size]
        assert list(layer.heads) == sorted(layer.heads)


@given(
    per_group=st.integers(1, 8),
    groups=st.integers(1, 8),
    share=st.floats(0.01, 0.99),
    kind=st.sampled_from(["qwen3", "llama"]),
    unit=st.sampled_from(["nearest", "query", "group"]),
)
def test_a_cut_is_the_nearest_that_leaves_a_loadable_model(
    per_group: int, groups: int, share: float, kind: str, unit: HeadUnit
) -> None:
    heads = per_group * groups
    config = (Qwen3Config if kind == "qwen3" else LlamaConfig)(
        num_attention_heads=heads, num_key_value_heads=groups, hidden_size=heads * 8
    )
    kept = {groups * n for n in range(1, per_group)} if unit != "group" else set()
    kept |= {per_group * n for n in range(1, groups)} if unit != "query" else set()
    gaps = [
        abs((heads - n) / heads - share)
        for n in kept
        if kind == "qwen3" or config.hidden_size % n == 0
    ]
    bound = min(share, 1 - share)
    if min(gaps, default=1.0) > bound + 1e-9:
        with pytest.raises(ValueError, match=f"^heads {share} (removes|leaves) no head"):
            plan_heads(config, share, unit)
    elif min(gaps) < bound - 1e-9:  # between the two, rounding decides
        cut = plan_heads(config, share, unit)
        assert abs(cut.share - share) == pytest.approx(min(gaps), abs=1e-9)
        whole = per_group if cut.unit == "query" else groups
        assert cut.share == cut.count / whole


@pytest.mark.parametrize(
    ("heads", "groups", "share", "unit", "message"),
    [
        (4, 2, 0.2, "nearest", "0.2 removes no head.* 0.5"),
        (4, 2, 0.9, "nearest", "0.9 leaves no head.* 0.5"),
        (4, 4, 0.5, "query", "0.5 removes no head.* none"),
        (1, 1, 0.5, "nearest", "none"),
    ],
)
def test_a_share_that_no_cut_meets_is_refused(
    heads: int, groups: int, share: float, unit: HeadUnit, message: str
) -> None:
    config = Qwen3Config(num_attention_heads=heads, num_key_value_heads=groups)
    with pytest.raises(ValueError, match=message):
        plan_heads(config, share, unit)


def test_kept_neurons_are_a_multiple_or_the_request_is_refused() -> None:
    assert plan_neurons(576, 0.2, 32) == 448
    assert plan_neurons(576, 0.2, 1) == 461
    assert plan_neurons(100, 0.0, 32) == 100
    with pytest.raises(ValueError, match=r"0\.01 removes none of 256 in multiples of 32"):
        plan_neurons(256, 0.01, 32)
    with pytest.raises(ValueError, match=r"0\.99 leaves none of 256 in multiples of 32"):
        plan_neurons(256, 0.99, 32)


def test_activation_finds_a_planted_dead_head_and_neuron(model: PreTrainedModel) -> None:
    # Dead by their output alone: the other weights are large, so that size alone would mislead.
    width, dead_head, dead_neuron = head_dim_of(model), 5, 17
    with torch.no_grad():
        attention, mlp = model.model.layers[1].self_attn, model.model.layers[1].mlp
        attention.o_proj.weight[:, dead_head * width : (dead_head + 1) * width] = 0.0
        attention.q_proj.weight[dead_head * width : (dead_head + 1) * width] *= 100.0
        mlp.down_proj.weight[:, dead_neuron] = 0.0
        mlp.gate_proj.weight[dead_neuron] *= 100.0
    measured, weighed = measure(model, PROMPTS), weigh(model)
    assert measured.heads[1].argmin() == dead_head
    assert measured.heads[1][dead_head] == 0.0
    assert measured.neurons[1].argmin() == dead_neuron
    assert weighed.heads[1].argmax() == dead_head
    assert weighed.neurons[1].argmax() == dead_neuron
    cut = HeadCut("query", 1, 0.25)
    plan = make_plan(model.config, measured, cut=cut, neurons=NEURONS - 1)
    assert dead_head not in plan[1].heads
    assert dead_neuron not in plan[1].neurons


def test_magnitude_is_the_mean_absolute_weight_of_a_heads_own_slices() -> None:
    model = qwen3()
    attention = model.model.layers[2].self_attn
    rows = slice(3 * HEAD_DIM, 4 * HEAD_DIM)
    own = torch.cat([attention.q_proj.weight[rows].T, attention.o_proj.weight[:, rows]])
    torch.testing.assert_close(weigh(model).heads[2][3], own.abs().mean().detach())


def test_activation_is_the_norm_of_what_a_head_adds(model: PreTrainedModel) -> None:
    width, seen = head_dim_of(model), []
    attention = model.model.layers[0].self_attn
    handle = attention.o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    logits(model)
    handle.remove()
    columns = slice(2 * width, 3 * width)
    added = torch.cat(seen)[:, columns] @ attention.o_proj.weight[:, columns].T
    expected = added.norm(dim=-1).mean().detach()
    torch.testing.assert_close(measure(model, PROMPTS).heads[0][2], expected, atol=1e-5, rtol=1e-4)


def test_a_layer_that_passes_its_input_through_has_no_influence(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for projection in (
            model.model.layers[1].self_attn.o_proj,
            model.model.layers[1].mlp.down_proj,
        ):
            projection.weight.zero_()
            if projection.bias is not None:
                projection.bias.zero_()
    importance = measure(model, PROMPTS)
    assert importance.influence is not None
    assert importance.influence[1].abs() < 1e-6
    assert importance.influence[[0, 2]].min() > 1e-3
    plan = make_plan(model.config, importance, neurons=NEURONS, layers=1)
    assert [layer.source for layer in plan] == [0, 2]
    assert_same_logits(shrink(model, plan), model)


def test_nothing_to_measure_on_and_broken_weights_are_refused() -> None:
    model = qwen3()
    with pytest.raises(ValueError, match="no prompts"):
        measure(model, [])
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        weigh(model)
    with pytest.raises(ValueError, match="not finite"):
        measure(model, PROMPTS)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
