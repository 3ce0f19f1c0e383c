"""Every formula of the planner against hand-computed values, and memory against real torch runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from train.plan.__main__ import RunPlan, make_plan, plan_class, refusal, report
from train.plan.devices import DEVICES, GIB, Device, parse_gpus
from train.plan.load import GRPOPlan, Load, SFTPlan, grpo_load, sft_load
from train.plan.memory import (
    activation_bytes,
    estimate_memory,
    layer_bytes_a_token,
    state_bytes,
    vllm_rows,
)
from train.plan.shapes import NAMED, ModelShape, find_shape
from train.plan.speed import (
    Efficiency,
    exchange_seconds,
    forward_flops,
    generation_seconds,
    optimizer_seconds,
    token_step_seconds,
    update_seconds,
)

ROOT = Path(__file__).parents[3]
TINY = ModelShape("tiny", 64, 2, 4, 2, 16, 128, 100, tied=True, qk_norm=True)
LOAD = Load(
    ranks=1, rows=8, pass_rows=4, prompt=20, completion=10, mean_completion=5, steps=3,
    bf16=False, checkpointing=False, lora_rank=None, generates=True, group=4,
)  # fmt: skip
UNIT = Device(memory_gib=1, teraflops=1e-6, bandwidth_gb_s=1e-3, link_gb_s=1e-3, host_gb_s=1e-3,
              dispatch_us=0)  # fmt: skip
FULL = Efficiency(1, 1, 0)
MATRICES = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128  # 36,864


def build(shape: ModelShape) -> torch.nn.Module:
    options = {
        "hidden_size": shape.hidden, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.ffn, "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied, "attn_implementation": "sdpa",
    }  # fmt: skip
    if shape.qk_norm:
        return Qwen3ForCausalLM(Qwen3Config(**options, head_dim=shape.head_dim))
    return Qwen2ForCausalLM(Qwen2Config(**options))


@pytest.mark.parametrize("shape", NAMED.values(), ids=lambda s: s.name)
def test_named_models_have_the_parameters_that_transformers_builds(shape):
    with torch.device("meta"):
        model = build(shape)
    assert sum(p.numel() for p in model.parameters()) == shape.parameters


def test_adapters_are_counted_as_peft_makes_them():
    from peft import get_peft_model

    from train.runs.lora import Lora, adapter_config

    adapted = get_peft_model(build(TINY), adapter_config(Lora(rank=4)))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == TINY.trained_parameters(4)


@pytest.mark.parametrize("rank", [None, 4])
def test_weights_gradients_and_adamw_are_those_of_a_real_update(rank):
    model = build(TINY)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    parameters = list(model.parameters())
    moments = [s[k] for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")]
    weights, gradients, states, host = state_bytes(TINY.parameters, TINY.parameters, 1, "ddp")
    assert weights == sum(p.nbytes for p in parameters)
    assert gradients == sum(p.grad.nbytes for p in parameters)
    assert (states, host) == (sum(m.nbytes for m in moments), 0)
    if rank:
        trained = TINY.trained_parameters(rank)
        assert state_bytes(TINY.parameters, trained, 1, "ddp")[1:3] == (4 * trained, 8 * trained)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_activations_are_what_autograd_keeps(bf16, qk_norm):
    """Byte for byte, a layer and token: the difference between a deeper and a shallower model."""
    rows, length = 2, 32

    def kept(layers):
        model = build(replace(TINY, layers=layers, qk_norm=qk_norm))
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        seen = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept alive: no reuse
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            model.model(input_ids=torch.ones(rows, length, dtype=torch.long), use_cache=False)
        return sum(size for size, _ in seen.values())

    a_layer = kept(3) - kept(2)
    weights = 2 * MATRICES if bf16 else 0  # autocast's copies, counted apart
    shape = replace(TINY, qk_norm=qk_norm)
    assert a_layer - weights == rows * length * layer_bytes_a_token(shape, bf16=bf16)


@pytest.mark.parametrize(
    ("sharding", "expected"),
    [
        ("ddp", (4000, 400, 800, 0)),
        ("zero2", (2000, 50, 300, 0)),
        ("zero2-offload", (2000, 0, 0, 400)),
        ("zero3", (500, 50, 300, 0)),
        ("fsdp", (1000, 100, 200, 0)),
    ],
)
def test_states_by_sharding(sharding, expected):
    assert state_bytes(1000, 100, 4, sharding) == expected


def test_a_quantised_base_takes_about_half_a_byte_a_weight():
    plain = replace(LOAD, lora_rank=4, bf16=True)
    device = Device(memory_gib=1, teraflops=1, bandwidth_gb_s=1, link_gb_s=1, host_gb_s=1)
    whole, small = (
        estimate_memory(TINY, load, device) for load in (plain, replace(plain, quantised=True))
    )
    trained, layers = TINY.trained_parameters(4), 2 * MATRICES
    assert whole.weights == 4 * TINY.parameters
    assert small.weights == int(layers * 4.13 / 8) + 4 * (TINY.parameters - layers + trained)
    assert small.copies < whole.copies


def test_checkpointing_keeps_a_layers_input_and_one_layer():
    tokens = 4 * 10 + 4 * 20
    a_layer = layer_bytes_a_token(TINY, bf16=False)
    assert activation_bytes(TINY, LOAD) == tokens * (2 * a_layer + 8 * 64)
    checkpointed = activation_bytes(TINY, replace(LOAD, checkpointing=True))
    assert checkpointed == tokens * (2 * 4 * 64 + a_layer + 8 * 64)
    packed = activation_bytes(TINY, replace(LOAD, packed=True))  # one prompt for the four rows
    assert packed == (4 * 10 + 20) * (2 * a_layer + 8 * 64)


def test_logits_rollouts_and_peak():
    memory = estimate_memory(TINY, LOAD, UNIT)
    assert memory.logits == 5 * 4 * 100 * 4 * 10
    assert memory.rollouts == 8 * 30 * 2 * 2 * 32 * 4
    update = memory.copies + memory.activations + memory.logits
    assert memory.peak == memory.states + max(update, memory.rollouts)
    assert memory.needed() == round(memory.peak * 1.05) + int(1.5 * GIB)


def test_vllms_share_stays_unless_it_sleeps():
    load = replace(LOAD, vllm=True, vllm_share=0.25, bf16=True)
    device = DEVICES["L4"]
    awake = estimate_memory(TINY, load, device)
    asleep = estimate_memory(TINY, replace(load, vllm_sleeps=True), device)
    assert awake.rollouts == int(0.25 * 22.5 * GIB)
    assert awake.peak - asleep.peak == awake.copies + awake.activations + awake.logits
    room = int(0.25 * 22.5 * GIB) - GIB - 2 * TINY.parameters
    assert vllm_rows(TINY, load, device) == room // (30 * 2 * 2 * 32 * 2)
    assert vllm_rows(NAMED["Qwen2.5-7B"], load, device) == 0


def test_forward_flops_by_hand():
    assert forward_flops(TINY, 10, 30, 4) == 10 * 2 * (2 * MATRICES + 2 * 64 * 30) + 4 * 2 * 6400


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, 3),
        ({"checkpointing": True}, 4),
        ({"lora_rank": 4}, 2),
        ({"extra_forwards": 2}, 5),
    ],
)
def test_update_takes_its_passes_at_the_stated_utilisation(changes, passes):
    load = replace(LOAD, **changes)
    forward = forward_flops(TINY, 8 * 5 + 8 * 20, 25, 40)
    seconds = update_seconds(TINY, load, UNIT, Efficiency(0.5, 1, 0))
    assert seconds == pytest.approx(forward * passes / (1e6 * 0.5))


def test_a_small_update_is_bound_by_launching():
    slow = UNIT.model_copy(update={"teraflops": 1e6, "dispatch_us": 10.0})
    # 3 x forward, 2 passes a step, 2 layers of 83 operations
    assert update_seconds(TINY, LOAD, slow, FULL) == pytest.approx(3 * 2 * 2 * 83 * 10e-6)


def test_optimizer_moves_28_bytes_a_parameter():
    p = TINY.parameters
    load = replace(LOAD, ranks=4)
    assert optimizer_seconds(TINY, load, UNIT) == pytest.approx(28 * p / 1e6)
    assert optimizer_seconds(TINY, replace(load, sharding="zero3"), UNIT) == pytest.approx(
        7 * p / 1e6
    )
    assert optimizer_seconds(TINY, replace(load, sharding="zero2-offload"), UNIT) == pytest.approx(
        1.5 * p / 1e6
    )


def test_exchange_is_a_ring_and_nothing_alone():
    p = TINY.parameters
    load = replace(LOAD, ranks=4)
    assert exchange_seconds(TINY, LOAD, UNIT) == 0
    assert exchange_seconds(TINY, load, UNIT) == pytest.approx(2 * 0.75 * 4 * p / 1e6)
    # gradients 2 bytes twice, weights 2 bytes in two gathers of two passes
    assert exchange_seconds(TINY, replace(load, sharding="zero3"), UNIT) == pytest.approx(
        0.75 * (4 + 8) * p / 1e6
    )
    assert exchange_seconds(TINY, replace(load, sharding="zero2"), UNIT) == pytest.approx(
        0.75 * (4 + 2) * p / 1e6
    )


def test_a_token_step_is_bound_by_bytes_or_flops_or_launches():
    weights = 2 * MATRICES + 6400
    fast = UNIT.model_copy(update={"teraflops": 1e6})
    moving = 4 * weights + 3 * 22.5 * 2 * 2 * 32 * 4
    assert token_step_seconds(TINY, LOAD, fast, Efficiency(1, 0.5, 0), 3) == pytest.approx(
        moving / (1e6 * 0.5)
    )
    wide = UNIT.model_copy(update={"bandwidth_gb_s": 1e6})
    assert token_step_seconds(TINY, LOAD, wide, FULL, 3) == pytest.approx(2 * weights * 3 / 1e6)
    slow = wide.model_copy(update={"teraflops": 1e6, "dispatch_us": 5.0})
    assert token_step_seconds(TINY, LOAD, slow, FULL, 3) == pytest.approx(2 * 83 * 5e-6)
    engine = replace(LOAD, vllm=True)
    assert token_step_seconds(TINY, engine, slow, Efficiency(1, 1, 3), 3) == pytest.approx(
        3e-3, rel=1e-3
    )


def test_generation_is_reading_then_the_longest_completion():
    reading = forward_flops(TINY, 8 * 20, 20, 8) / 1e6
    step = token_step_seconds(TINY, LOAD, UNIT, FULL, 8)
    assert generation_seconds(TINY, LOAD, UNIT, FULL) == pytest.approx(reading + 10 * step)
    packed = replace(LOAD, packed=True)
    reading = forward_flops(TINY, 2 * 20, 20, 2) / 1e6
    step = token_step_seconds(TINY, packed, UNIT, FULL, 4)  # half the rows live on average
    assert generation_seconds(TINY, packed, UNIT, FULL) == pytest.approx(reading + 10 * step)


def test_hours_and_cost_of_a_plan():
    plan = RunPlan(TINY, LOAD, "unit", UNIT, FULL)
    assert plan.hours == pytest.approx(3 * plan.step.seconds / 3600)
    priced = report(plan, 2.0).splitlines()[-1]
    assert float(priced.split()[-1]) == pytest.approx(plan.hours * 2, abs=0.005)
    assert "cost" not in report(plan, None)


def test_what_does_not_fit_is_refused_with_what_does():
    config = GRPOPlan(
        gpus="1xL4", architecture="Qwen3-0.6B", prompt_tokens=300, prompts=16, bf16=True
    )
    plan = make_plan(config)
    assert not plan.fits
    said = list(refusal(plan))
    assert "GiB needed" in said[0]
    assert any("micro_batch" in line for line in said[1:])
    huge = make_plan(config.model_copy(update={"architecture": "Qwen3-8B"}))
    assert any("LoRA" in line or "larger devices" in line for line in refusal(huge))


def test_micro_batch_that_is_offered_fits_when_taken():
    config = GRPOPlan(
        gpus="1xL4", architecture="Qwen3-0.6B", prompt_tokens=300, prompts=16, bf16=True
    )
    said = "\n".join(refusal(make_plan(config)))
    size = int(said.split("micro_batch ")[1].split()[0])
    assert make_plan(config.model_copy(update={"micro_batch": size})).fits


@pytest.mark.parametrize(
    ("text", "said"), [("H100", "count"), ("0xH100", "count"), ("2xV9", "--device")]
)
def test_bad_devices_are_named(text, said):
    with pytest.raises(ValueError, match=said):
        parse_gpus(text)
    assert parse_gpus("8xh100") == (8, "H100", DEVICES["H100"])
    assert parse_gpus("2xV9", UNIT) == (2, "V9", UNIT)


def test_models_are_found_by_name_or_folder(micro_model):
    assert find_shape("artifacts/qwen2.5-7b/warm-start").name == "Qwen2.5-7B"
    shape = find_shape(str(micro_model))
    assert (shape.hidden, shape.layers, shape.kv, shape.tied) == (128, 2, 64, True)
    with pytest.raises(ValueError, match="--architecture"):
        find_shape("artifacts/other")


@pytest.mark.parametrize(
    "file",
    [
        file
        for file in sorted((ROOT / "configs").glob("*/*.toml"))
        if file.stem.startswith(("sft", "grpo", "pure-rl"))
    ],
    ids=lambda f: f"{f.parent.name}/{f.stem}",
)
def test_every_shipped_training_configuration_can_be_planned(file):
    from curt.config import load_config

    arguments = [f"@{file}", "--gpus", "8xH100", "--architecture", "Qwen3-0.6B"]
    extra = ["--cases", "6325"] if file.stem.startswith("sft") else ["--prompt_tokens", "1100"]
    if not file.parent.name.startswith("qwen"):
        extra += ["--gpus", "1xH100"]
    if file.parent.name == "real":
        extra += ["--model", "Qwen3-0.6B"]  # any checkpoint: the file names none
    cls = plan_class(arguments)
    assert cls is (SFTPlan if file.stem.startswith("sft") else GRPOPlan)
    plan = make_plan(load_config(cls, arguments + extra))
    assert plan.hours > 0
    assert plan.memory.peak > 0


def test_loads_are_read_off_configurations():
    config = GRPOPlan(
        model="Qwen3-0.6B",
        max_fact_tokens=100,
        prompts=8,
        generations=4,
        micro_batch=4,
        kl=0.1,
        trl={"use_vllm": True, "vllm_mode": "colocate"},
    )
    load = grpo_load(config, 2)
    assert (load.rows, load.pass_rows, load.prompt, load.completion) == (16, 4, 140, 192)
    assert (load.extra_forwards, load.vllm, load.generates) == (2, True, True)
    remote = config.model_copy(update={"trl": {"use_vllm": True, "vllm_mode": "server"}})
    assert not grpo_load(remote, 2).generates
    warm = sft_load(SFTPlan(batch=10, per_case=2, max_fact_tokens=60, cases=95), 1)
    assert (warm.steps, warm.rows, warm.prompt, warm.completion) == (10, 10, 100, 384)
